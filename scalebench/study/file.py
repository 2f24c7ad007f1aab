"""Reading a study file: TOML, overrides, and all its errors together, one line each, with the key."""

from __future__ import annotations

import copy
import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from scalebench.errors import StudyError, unknown
from scalebench.store import RULE
from scalebench.study import Study, WorkloadTable, study_class
from scalebench.study.axes import LARGEST_INTEGER

STUDY_BYTES = 16 << 20
MOST_TRIALS = 200_000
MOST_VALUES = 6  # of an axis, in a message
# Plainer messages for errors of pydantic.
PLAIN = {"tuple_type": "expected a list", "string_pattern_mismatch": f"expected {RULE}"}
REQUIRED = {
    "schema": "; write schema = 1", "name": '; as in name = "my-study"', "sample.points": "; as in points = 16",
}  # fmt: skip
WORDS = re.compile(r"""\[[^][{}"',]+(,[^][{}"',]+)*\]""")
SUFFIXED = re.compile(r"[\d.,_]+ ?[kKmMbBgGtT]")  # a number, though not in TOML
MODEL_SIZES = ("params", "size")  # two ways to name a model's size


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file, or raise ``StudyError`` with the file and the line of the error."""
    try:
        if path.is_fifo():  # opening it would wait for a writer, and a study is read more than once
            raise StudyError([f"{path}: a pipe; a study is a regular file"])
        with path.open("rb") as file:
            content = file.read(STUDY_BYTES + 1)
        if len(content) > STUDY_BYTES:
            raise StudyError([f"{path}: a study file has at most {STUDY_BYTES:,} bytes"])
        return tomllib.loads(content.decode("utf-8-sig"))
    except OSError as error:
        raise StudyError([f"{path}: cannot be read ({error.strerror})"]) from error
    except StudyError:
        raise
    except UnicodeDecodeError as error:
        raise StudyError([f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8"]) from error
    except (ValueError, RecursionError) as error:  # not TOML, or a number of thousands of digits
        raise StudyError([f"{path}: not valid TOML: {error}"]) from error


def override(raw: dict[str, Any], settings: Sequence[str], workloads: Mapping[str, WorkloadTable]) -> None:
    """Apply ``key=value`` settings in place; the value is TOML (``train.steps=[100,200]``); words need no quotes.

    A setting also replaces what the file has in fields that exclude it: ``train.tokens=1e6`` the file's ``steps``.
    """
    keys = {setting.partition("=")[0].strip() for setting in settings}
    exclusive = {table.TABLE: table.Section.EXCLUSIVE for table in workloads.values()} | {"model": (MODEL_SIZES,)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key.strip():
            raise StudyError([f"--set {setting}: expected key=value, as in --set train.steps=100"])
        try:
            value = _value(text)
        except (ValueError, RecursionError) as error:
            raise StudyError([f"--set {setting[:60]}: not valid TOML: {error}"]) from error
        *tables, leaf = key.strip().split(".")
        node = raw
        for table in tables:
            node = node.setdefault(table, {})
            if not isinstance(node, dict):
                raise StudyError([f"--set {setting}: {table} is not a table of the study"])
        node[leaf] = value
        for group in exclusive.get(tables[0], ()) if len(tables) == 1 else ():
            for other in set(group) - {leaf} if leaf in group else ():
                if f"{tables[0]}.{other}" not in keys:
                    node.pop(other, None)


def _value(text: str) -> Any:
    """Read the value of a setting: TOML, or a word, or a list of words, from which a shell has taken the quotes."""
    try:
        content = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return (
            [_value(word.strip()) for word in text.strip()[1:-1].split(",")] if WORDS.fullmatch(text.strip()) else text
        )
    return content["value"] if len(content) == 1 else text  # a text of several lines is no other setting


def _together_lines(raw: Mapping[str, Any], study: Study) -> Iterator[str]:
    tables = ("model", "data", *study.TABLES.values())
    contents = {table: content for table in tables if isinstance(content := raw.get(table), dict)}
    fixed = {f"{table}.{key}" for table, content in contents.items() for key in content}
    together: set[str] = set()
    for place, entry in study.together.items():
        axes = entry.axes()
        lengths = {name: len(values) for name, values in axes.items()}
        if len(set(lengths.values())) > 1:
            yield f"{place}: axes that advance together need equal lengths, given {lengths}"
        if entry is study.sampled and not any(isinstance(value, dict) for value in raw["sample"].values()):
            yield f"{place}: needs at least one field, as in train.learning_rate = {{ log = [1e-4, 1e-1] }}"
        elif entry is not study.sampled and len(lengths) < 2:
            yield f"{place}: needs at least two fields, given {list(lengths)}"
        for name in sorted(set(axes) & (fixed | together)):
            yield f"{place}.{name}: set elsewhere as well; leave it in one place"
        together |= set(axes)


def _exclude_lines(study: Study) -> Iterator[str]:
    """Yield a line for every field of [[exclude]] that no combination has: it would exclude nothing."""
    axes = study.axes()
    for index, entry in enumerate(study.excluded):
        for name in entry.axes():
            if name not in axes:
                table, _, field = name.partition(".")
                fields = [axis.partition(".")[2] for axis in axes if axis.startswith(f"{table}.")]
                reason = unknown(field, fields).replace("unknown", "no combination has", 1)
                yield f"exclude[{index}].{name}: {reason}, so that this excludes nothing; leave it out"


def idle_exclusions(study: Study) -> list[str]:
    """Return a line for every value of [[exclude]] that no axis has, as after a slip or with ``--set``."""
    axes = study.axes()
    return [
        f"exclude[{index}].{name} = {', '.join(map(repr, values))}: excludes nothing; {name} takes "
        f"{', '.join(map(repr, axes[name][:MOST_VALUES]))}{', …' * (len(axes[name]) > MOST_VALUES)}"
        for index, entry in enumerate(study.excluded)
        for name, values in entry.axes().items()
        if not set(values) & set(axes[name])
    ]


def _model_lines(study: Study) -> Iterator[str]:
    axes = study.axes()
    if "model.family" not in axes and study.parents is None:
        yield (
            'model.family: missing; name a family, as in family = "gpt" (`scalebench list` shows them), '
            "or with [from] the study whose trained models to start from"
        )
    if {f"model.{field}" for field in MODEL_SIZES} <= set(axes):
        yield "model.size: params and size exclude each other; leave one out"


def _exclusive_lines(study: Study) -> Iterator[str]:
    """Yield a line where the file names more than one of the fields that exclude each other."""
    table, axes = study.TABLES[study.workload], study.axes()
    for group in getattr(study, table).EXCLUSIVE:
        set_keys = [key for key in group if f"{table}.{key}" in axes]
        if len(set_keys) > 1:
            yield f"{table}.{set_keys[1]}: only one of {', '.join(group)} can be set, given {' and '.join(set_keys)}"


def _unread_lines(study: Study) -> Iterator[str]:
    """Yield a line for every field that only other workloads read."""
    for other in sorted(set(study.TABLES.values()) - {study.TABLES[study.workload]}):
        fields = [f"{other}.{field}" for field in getattr(study, other).fields_in_file()]
        for place, entry in study.entries.items():
            fields += [f"{place}.{axis}" for axis in entry.axes() if axis.startswith(f"{other}.")]
        readers = " or ".join(f'workload = "{name}"' for name, table in study.TABLES.items() if table == other)
        reason = f"the workload {study.workload!r} reads no [{other}]; leave it out, or set {readers}"
        yield from (f"{field}: {reason}" for field in fields)


def _from_lines(study: Study) -> Iterator[str]:
    source = study.parents
    if source is not None and (source.study is None) == (source.results is None):
        yield f'{source.KEY}: needs either study = "NAME" or results = "PATH"'


def _oversized(value: Any, key: str = "") -> Iterator[str]:
    """Yield a line for every integer that no field can hold."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _oversized(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _oversized(item, f"{key}[{index}]")
    elif isinstance(value, int) and abs(value) > LARGEST_INTEGER:
        digits = len(str(abs(value)))
        yield f"{key}: an integer of {digits:,} digits; at most {LARGEST_INTEGER} is allowed"


def _grid_lines(study: Study) -> Iterator[str]:
    if (combinations := study.combinations()) > MOST_TRIALS:
        lengths = {name: len(values) for name, values in study.axes().items() if len(values) > 1}
        axes = " x ".join(f"{name} {length:,}" for name, length in lengths.items())
        yield f"axes: {combinations:,} combinations ({axes}); a study has at most {MOST_TRIALS:,}"


def _lookup(raw: Any, path: Sequence[str | int]) -> Any:
    for part in path:
        try:
            raw = raw[part]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _fields_at(kind: Any, path: Sequence[str | int]) -> list[str]:
    """Return the known keys of the table at ``path`` of a study class, for suggestions."""
    for part in path:
        fields = {field.alias or name: field for name, field in getattr(kind, "model_fields", {}).items()}
        if isinstance(part, str) and part in fields:
            annotation = fields[part].annotation
            kind = next((arg for arg in get_args(annotation) if hasattr(arg, "model_fields")), annotation)
    return [field.alias or name for name, field in getattr(kind, "model_fields", {}).items()]


def _home(key: str, raw: Mapping[str, Any], kind: type[Study]) -> str:
    """Return the full name of a field that stands outside its table, as ``steps`` for ``train.steps``; else ""."""
    tables = ("model", kind.TABLES.get(str(raw.get("workload", "training")), ""), "data", "fit", "run")
    homes = [f"{table}.{key}" for table in tables if table and key in _fields_at(kind, [table])]
    return f"; the field is {' or '.join(homes)}" if homes else ""


def _describe(error: Any, raw: Mapping[str, Any], kind: type[Study]) -> str:
    """Write one pydantic error as ``key: what is wrong (given …)``."""
    path = list(error["loc"])
    if path and isinstance(path[-1], int) and not isinstance(_lookup(raw, path[:-1]), list):
        path.pop()
    key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    if error["type"] == "extra_forbidden":
        reason = unknown(str(path[-1]), _fields_at(kind, path[:-1])).replace("unknown", "unknown key", 1)
        return f"{key}: {reason}{_home(key, raw, kind)}"
    if error["type"] == "missing":
        return f"{key}: missing{REQUIRED.get(key, '')}"
    if error["type"] == "tuple_type" and key in ("zip", "exclude"):
        return f"{key}: expected tables headed [[{key}]] (given {error['input']!r})"
    if error["type"] == "model_type":
        return f"{key}: expected a table (given {error['input']!r})"
    message = PLAIN.get(error["type"], error["msg"].removeprefix("Value error, "))
    if path == ["sample"]:  # its ranges are replaced before its fields are read, so that the field is in the message
        return f"{key}.{message}"
    hint = "; in a study file a number is written 1e6 or 1_000_000" if SUFFIXED.fullmatch(str(error["input"])) else ""
    value_text = "" if message.startswith("unknown") else f" (given {error['input']!r}{hint})"
    return f"{key}: {message[0].lower()}{message[1:]}{value_text}"


def _without(raw: Mapping[str, Any], paths: Sequence[Sequence[str | int]]) -> dict[str, Any]:
    """Return a copy of ``raw`` with the fields at ``paths`` left out (a list that holds a bad value goes whole)."""
    pruned = copy.deepcopy(dict(raw))
    for path in paths:
        names = list(itertools.takewhile(lambda part: isinstance(part, str), path))
        table = _lookup(pruned, names[:-1])
        if isinstance(table, dict) and names:
            table.pop(names[-1], None)
    return pruned


def _tupled(raw: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in raw.items()}


def parse_study(raw: Mapping[str, Any], workloads: Mapping[str, WorkloadTable]) -> tuple[Study | None, list[str]]:
    """Validate a study's content, with a table for every workload.

    Returns it with a line ``key: what is wrong (given …)`` for every error. When there are errors the study returned is
    its valid part, or None, so that a caller can go on and find more.
    """
    lines: list[str] = []
    if lines := list(_oversized(raw)):
        return None, lines
    kind = study_class(workloads)
    try:
        study = kind.model_validate(_tupled(raw))
    except ValidationError as errors:
        lines = [_describe(error, raw, kind) for error in errors.errors()]
        try:
            study = kind.model_validate(_tupled(_without(raw, [error["loc"] for error in errors.errors()])))
        except ValidationError:
            return None, lines
    unread = [] if any(line.startswith("workload:") for line in lines) else [*_unread_lines(study)]
    exclusive = [*_exclusive_lines(study)]
    lines += [*_together_lines(raw, study), *_model_lines(study), *exclusive, *_from_lines(study), *unread]
    lines += [] if unread else _exclude_lines(study)
    if exclusive or any(line.startswith(("zip", "sample")) for line in lines):
        return None, lines
    too_many = [*_grid_lines(study)]
    return (None if too_many else study), lines + too_many
