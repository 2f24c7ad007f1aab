"""``study.json``: what a study is, and which trials it plans. A folder may also hold trials of its earlier settings."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from scalebench.errors import beginning, several, unknown
from scalebench.store.files import NewerSchemaError, NoSuchFileError, StoreError, read_checked_json, write_checked_json
from scalebench.store.locks import FileLock
from scalebench.store.names import is_name
from scalebench.store.records import check_schema

STUDY = "study.json"
LOCK = ".study.lock"
# File systems without locks report one of these.
NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


@contextlib.contextmanager
def changing_study(study_dir: Path) -> Iterator[None]:
    """Hold the lock of a study's ``study.json`` from reading to writing it: two drivers may begin in the same instant.

    On a file system without locks the later of two changes counts. Raises ``StoreError``.
    """
    lock = FileLock(study_dir / LOCK)
    try:
        lock.take()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise StoreError(f"{study_dir / STUDY}: cannot be written ({error.strerror})") from error
    try:
        yield
    finally:
        lock.release()


def write_study(study_dir: Path, content: Mapping[str, Any]) -> None:
    """Write a study's ``study.json``, with a checksum. Raises ``StoreError``."""
    try:
        write_checked_json(study_dir / STUDY, content)
    except OSError as error:
        raise StoreError(f"{study_dir / STUDY}: cannot be written ({error.strerror})") from error


def read_study(study_dir: Path, damaged: list[str]) -> dict[str, Any]:
    """Read ``study.json``: {} if it is absent, or damaged, which adds a line to ``damaged``.

    Raises ``NewerSchemaError`` where a newer version wrote it.
    """
    path = study_dir / STUDY
    try:
        content, checked = read_checked_json(path)
        if "schema" in content:
            check_schema(path, content["schema"], checked=checked)
        _check_shapes(path, content)
    except NewerSchemaError:
        raise
    except NoSuchFileError:
        return {}
    except StoreError as error:
        damaged.append(str(error))
        return {}
    return content


def _is_plan(value: Any) -> bool:
    """Whether a value lists trials by id, each as a name or as an object with one."""
    return isinstance(value, list) and all(
        is_name(trial.get("trial_id") if isinstance(trial, dict) else trial) for trial in value
    )


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def _is_axes(value: Any) -> bool:
    """Whether a value maps names to lists of scalars, or to single scalars."""
    return isinstance(value, dict) and all(
        all(map(_is_scalar, values)) if isinstance(values, list) else _is_scalar(values) for values in value.values()
    )


def _are_columns(value: Any) -> bool:
    """Whether a value lists columns: name, unit and meaning."""
    return isinstance(value, list) and all(
        isinstance(column, dict) and {"name", "unit", "meaning"} <= {*column} and _is_texts([*column.values()])
        for column in value
    )


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_fit(value: Any) -> bool:
    """Whether a value is a study's [fit], with a list of tuned axes, if any."""
    return (
        isinstance(value, dict)
        and _is_texts(value.get("best_over") or [])
        and all(isinstance(value.get(name, ""), str) for name in ("law", "holdout"))
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_dials(value: Any) -> bool:
    """Whether a value lists dials: a family, fields of its Config, and the data of a training step."""
    return isinstance(value, list) and all(
        isinstance(dial, dict)
        and isinstance(dial.get("family"), str)
        and isinstance(fields := dial.get("fields"), dict)
        and all(map(_is_scalar, fields.values()))
        and type(dial.get("batch_size")) is int
        and type(dial.get("sequence_length", 0)) in (int, type(None))
        for dial in value
    )


SHAPES: Mapping[str, Callable[[Any], bool]] = {
    "planned": _is_plan, "earlier": _is_plan, "axes": _is_axes, "fields": _is_axes, "columns": _are_columns,
    "measured": _is_texts, "fit": _is_fit, "title": _is_text, "command": _is_text, "study_toml": _is_text,
    "workload": _is_text, "dials": _are_dials,
}  # fmt: skip


def _check_shapes(path: Path, content: Mapping[str, Any]) -> None:
    """Raise ``StoreError`` for a value of ``study.json`` of the wrong kind; what is absent or null may be so."""
    for name, has_shape in SHAPES.items():
        if content.get(name) is not None and not has_shape(content[name]):
            raise StoreError(f"{path}: {name}: not what a study has there")


def planned_ids(study: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of the trials that the latest run of a study planned, by its ``study.json``; none if unknown."""
    planned = study.get("planned") or []
    return tuple(str(trial["trial_id"] if isinstance(trial, dict) else trial) for trial in planned)


def planned_flops(study: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the FLOPs of each planned trial by id, None where the plan has only the id."""
    return {trial_id: trial.get("flops") for trial_id, trial in _trials(study).items()}


def earlier_ids(study: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of trials that only earlier versions of a study planned: of another file, or of other data."""
    return planned_ids({"planned": study.get("earlier")})


def _as_plan(ids: Iterable[str]) -> list[dict[str, str]]:
    return [{"trial_id": trial_id} for trial_id in ids]


def replaced_plan(earlier: Mapping[str, Any], study: dict[str, Any]) -> dict[str, Any]:
    """Return a study's ``study.json`` that remembers what an earlier version planned, apart from its own plan."""
    ids = dict.fromkeys([*earlier_ids(earlier), *planned_ids(earlier)])
    return study | {"earlier": _as_plan(sorted(ids.keys() - set(planned_ids(study))))}


def joined_plans(earlier: Mapping[str, Any], study: dict[str, Any]) -> dict[str, Any]:
    """Return a study's ``study.json`` with the planned trials, field values and dials of both.

    Two folders may hold parts of one study, and so may two runs with other ``--set`` values. The later one counts in
    all else, unless it is absent or damaged ({}).
    """
    if not study:
        return dict(earlier)
    if not planned_ids(study) or not (planned_ids(earlier) or earlier_ids(earlier)):
        return study
    before = dict.fromkeys([*earlier_ids(earlier), *earlier_ids(study)])
    trials = _trials(earlier) | _trials(study)
    fields = {name: list(values) for name, values in (earlier.get("fields") or {}).items()}
    for name, values in (study.get("fields") or {}).items():
        fields[name] = list(dict.fromkeys([*fields.get(name, []), *values]))
    apart = {"earlier": _as_plan(sorted(before.keys() - trials.keys()))} if before else {}
    dials = [*(earlier.get("dials") or [])]
    dials += [dial for dial in study.get("dials") or [] if dial not in dials]
    return study | {"planned": [*trials.values()], "fields": fields} | apart | ({"dials": dials} if dials else {})


def _trials(study: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the entry of each trial in a study's plan, by id: the id, and its FLOPs if known."""
    plan = [trial if isinstance(trial, dict) else {"trial_id": trial} for trial in study.get("planned") or []]
    return {str(trial["trial_id"]): trial for trial in plan}


def drop(study_dir: Path, names: Sequence[str], finished: Collection[str]) -> list[str]:
    """Forget trials of a study's plans that have no result, named by id or the start of one; return their ids.

    Raises ``StoreError`` for a name that stands for none of them, or for several, and then forgets none.
    """
    with changing_study(study_dir):
        return _drop(study_dir, names, finished)


def _drop(study_dir: Path, names: Sequence[str], finished: Collection[str]) -> list[str]:
    damaged: list[str] = []
    study = read_study(study_dir, damaged)
    if damaged:
        raise StoreError(damaged[0])
    unfinished = [name for name in (*planned_ids(study), *earlier_ids(study)) if name not in finished]
    dropped = [*dict.fromkeys(_unfinished(study_dir, name, unfinished, finished) for name in names)]
    remaining = {
        key: [trial for trial in study.get(key) or [] if not {*planned_ids({"planned": [trial]})} & {*dropped}]
        for key in ("planned", "earlier")
    }
    write_study(study_dir, study | remaining)
    return dropped


def _unfinished(study_dir: Path, name: str, unfinished: Sequence[str], finished: Collection[str]) -> str:
    """Return the trial without a result that a name stands for. Raises ``StoreError``."""
    matches = beginning(name, unfinished)
    if len(matches) > 1:
        raise StoreError(f"{study_dir}: {several(name, matches)}")
    if matches:
        return matches[0]
    if ended := beginning(name, sorted(finished)):
        raise StoreError(f"{study_dir}: {ended[0]} has a result, and only trials without one can be dropped")
    if not unfinished:
        raise StoreError(f"{study_dir}: no trial is without a result, so there is nothing to drop")
    raise StoreError(f"{study_dir}: no trial without a result has this id: {unknown(name, unfinished)}")


def left_out_line(number: int) -> str:
    """Return a sentence on recorded trials that the latest run did not plan, without a full stop; "" for none."""
    if not number:
        return ""
    trials = "1 more trial of other settings is" if number == 1 else f"{number:,} more trials of other settings are"
    return f"{trials} in this folder and left out: the study file of the latest run does not plan them"
