"""Load an operation by name or from a file, and choose its cases: by list name, or from shapes on the command line."""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from scalebench.comparison.options import OPERATION_MODULES, check_operation
from scalebench.errors import InputError, unknown
from scalebench.families import own

EAGER = "eager"
REQUIRED = ("Case", "CASES", "inputs", "results", "cost", "providers")
PLANNED = ("cost", "providers")  # functions that a plan calls; what the others raise is in the rows
DTYPES = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16", "float64")}
FIELD_DTYPES = DTYPES | {"int8": torch.int8, "uint8": torch.uint8, "float8_e4m3fn": torch.float8_e4m3fn}
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Operation:
    """An operation's name and its module, which has the names in ``REQUIRED`` (see kernels/README.md)."""

    name: str
    module: Any
    origin: str

    @property
    def cases(self) -> Mapping[str, Sequence[Any]]:
        """The lists of cases by name: small odd shapes, and benchmark sizes for a GPU."""
        return {"cases": self.module.CASES, "ladder": getattr(self.module, "LADDER", self.module.CASES)}


def load_operation(name: str) -> Operation:
    """Return an operation by name, or from a Python file that defines the same names.

    Raises ``InputError`` for an unknown name, a missing file, or a file that lacks a required name or provider.
    """
    check_operation(name)
    if name.endswith(own.ENDING):
        module, title = _from_file(Path(name)), re.sub(r"[^a-z0-9]+", "-", Path(name).stem.lower()).strip("-")
    else:
        module, title = importlib.import_module(OPERATION_MODULES[name]), name
    if EAGER not in (known := list(module.providers())):
        line = f"no provider {EAGER!r} (plain PyTorch); others are checked by its error, and it is the default baseline"
        raise InputError([f"{name}: {line}; providers: {', '.join(known)}"])
    return Operation(title, module, str(Path(name).resolve()) if name.endswith(".py") else name)


def _from_file(path: Path) -> ModuleType:
    """Import an operation's file and check what a plan reads. Raises ``InputError``, with the line where it has one."""
    module = own.imported(path, path.read_bytes(), "operation")
    if lacking := [required for required in REQUIRED if not hasattr(module, required)]:
        raise InputError([f"{path}: lacks {', '.join(lacking)}; an operation defines {', '.join(REQUIRED)}"])
    if not own.is_frozen(module.Case):
        raise InputError(f"{path}: Case must be a frozen dataclass; write @dataclass(frozen=True) above it")
    fields = {field.name for field in dataclasses.fields(module.Case)}
    if without := [name for name in ("label", "dtype") if name not in fields and not hasattr(module.Case, name)]:
        raise InputError(f"{path}: Case has no {' and no '.join(without)}")
    if not module.CASES:
        raise InputError(f"{path}: CASES is empty; it needs a Case at least")
    for name in PLANNED:
        setattr(module, name, own.reporting(path, getattr(module, name)))
    return module


def choose_providers(operation: Operation, names: Sequence[str]) -> list[str]:
    """Return the providers to run, by default all of them. Raises ``InputError`` for unknown names."""
    known = list(operation.module.providers())
    wrong = [f"--providers: {unknown(name, known)}" for name in names if name not in known]
    if wrong:
        raise InputError(wrong)
    return list(dict.fromkeys(names)) or known


# --- cases -----------------------------------------------------------------------------------------------------------


def choose_cases(operation: Operation, shapes: Sequence[str], dtypes: Sequence[str], device: str) -> list[Any]:
    """Return the cases for ``shapes`` (each "cases", "ladder" or "name=value,…") in ``dtypes``.

    Default shapes: the small cases on a CPU, the ladder on a GPU. Dtypes replace those of the cases. Raises
    ``InputError`` with one line per error.
    """
    wrong = [f"--dtype: {unknown(name, DTYPES)}" for name in dtypes if name not in DTYPES]
    cases: list[Any] = []
    for text in shapes or ["ladder" if device == "cuda" else "cases"]:
        if "=" not in text and text in operation.cases:
            cases.extend(operation.cases[text])
        elif "=" not in text:
            wrong.append(f"--shapes: {unknown(text, operation.cases)}; or a case such as {example(operation)}")
        else:
            try:
                cases.append(parse_case(operation, text))
            except InputError as error:
                wrong.extend(error.lines)
    if wrong:
        raise InputError(wrong)
    if dtypes:
        cases = [dataclasses.replace(case, dtype=DTYPES[name]) for case in cases for name in dtypes]
    return list(dict.fromkeys(cases))


def example(operation: Operation) -> str:
    """Return the first case in command-line syntax."""
    return ",".join(f"{name}={spell(value)}" for name, value in encode(operation.module.CASES[0]).items())


def spell(value: Any) -> str:
    """Return a field of a case in the syntax of ``parse_case``."""
    if isinstance(value, list):
        return ("+" if any(isinstance(part, list) for part in value) else "x").join(map(spell, value))
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def parse_case(operation: Operation, text: str) -> Any:
    """Parse ``batch=1,heads=8,dtype=float32`` as a case. Fields with a default are optional.

    Raises ``InputError`` with one line per error.
    """
    kinds, fields = typing.get_type_hints(operation.module.Case), dataclasses.fields(operation.module.Case)
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    known, wrong, values = [field.name for field in fields], [], {}
    for name, _, value in pairs:
        if name.strip() not in known:
            wrong.append(f"--shapes {text}: {unknown(name.strip(), known)}")
            continue
        try:
            values[name.strip()] = _value(value.strip(), kinds[name.strip()])
        except ValueError as error:
            wrong.append(f"--shapes {text}: {name.strip()}: {error}")
    required = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    lacking = [name for name in required if name not in values and name != "dtype"]
    if lacking and not wrong:
        wrong.append(f"--shapes {text}: missing {', '.join(lacking)}; for example {example(operation)}")
    if wrong:
        raise InputError(wrong)
    if "dtype" in required:
        values = {"dtype": torch.float32} | values
    try:
        return operation.module.Case(**values)
    except (TypeError, ValueError) as error:
        raise InputError([f"--shapes {text}: {error}"]) from error


def _value(text: str, kind: Any) -> Any:
    """Parse a field by its type: number, true or false, dtype, literal, none, shape as 3x5, or shapes joined by "+"."""
    options = [part for part in typing.get_args(kind) if part is not type(None)]
    if typing.get_origin(kind) is tuple:
        parts = text.split("+" if typing.get_origin(options[0]) is tuple else "x")
        return tuple(_value(part, options[0]) for part in parts) if text else ()
    if type(None) in typing.get_args(kind):
        return None if text.lower() == "none" else _value(text, options[0])
    words: dict[Any, dict[str, Any]] = {torch.dtype: FIELD_DTYPES, bool: _BOOLEANS}
    if typing.get_origin(kind) is typing.Literal:
        words[kind] = {str(option): option for option in options}
    if kind in words:
        if text.lower() not in words[kind]:
            raise ValueError(unknown(text, words[kind]))
        return words[kind][text.lower()]
    try:
        return kind(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not {'a whole number' if kind is int else 'a number'}") from error


def encode(case: Any) -> dict[str, Any]:
    """Return a case as JSON values: a dtype by name, a tuple as a list."""

    def plain(value: Any) -> Any:
        if isinstance(value, torch.dtype):
            return str(value).removeprefix("torch.")
        return [plain(part) for part in value] if isinstance(value, tuple) else value

    return {field.name: plain(getattr(case, field.name)) for field in dataclasses.fields(case)}


def decode(operation: Operation, values: Mapping[str, Any]) -> Any:
    """Return the case for the values from ``encode``."""
    kinds = typing.get_type_hints(operation.module.Case)

    def rich(value: Any, kind: Any) -> Any:
        if isinstance(value, list):
            return tuple(rich(part, typing.get_args(kind)[0]) for part in value)
        return FIELD_DTYPES[value] if kind is torch.dtype else value

    return operation.module.Case(**{name: rich(value, kinds[name]) for name, value in values.items()})


def dtype_name(case: Any) -> str:
    """Return the name of a case's dtype: "bfloat16"."""
    return str(case.dtype).removeprefix("torch.")
