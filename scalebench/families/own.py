"""A family of a user's own: a Python file with the names of ``base.Family``, in a study as ``family = "model.py"``.

Names that most files would give the same value may be left out (``DEFAULTS``). The SHA-256 of the file is part of the
identity of its trials, so that an edited model is another model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Collection
from dataclasses import is_dataclass
from functools import lru_cache, wraps
from pathlib import Path
from types import ModuleType
from typing import Any

from scalebench.errors import InputError
from scalebench.families.base import Family
from scalebench.families.sharding import shard_blocks
from scalebench.store import expanded

ENDING = ".py"
REQUIRED = ("Config", "DATA", "build", "config_for", "count", "defaults", "learning_rate", "task")
PLANNED = ("config_for", "count", "defaults", "learning_rate", "task")  # functions that a plan calls
DEFAULTS: dict[str, Any] = {
    "TAKES": object,
    "SEQUENCES": True,
    "IMPLEMENTATIONS": ("eager", "compile"),
    "CAPABILITIES": (),
    "SIZES": {},
    "parallelize": shard_blocks,
}

# What the code of a file may raise: everything but an interrupt and exhausted memory.
ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    RuntimeError,
    SyntaxError,
    SystemExit,
    TypeError,
    ValueError,
)


class Families(dict[str, Family]):
    """The families that ship, by name; looking up a path that ends in .py loads that file."""

    def __missing__(self, name: str) -> Family:
        """Return the family in a file. Raises ``KeyError`` for other names, ``InputError`` for a file that is none."""
        if not name.endswith(ENDING):
            raise KeyError(name)
        return load(expanded(name))


def load(path: Path) -> Family:
    """Return the family that a file defines; read again whenever its content has changed.

    Raises ``InputError`` for a file that is missing, cannot be imported or lacks a required name.
    """
    return _loaded(path, _read(path))


def file_sha256(name: str) -> str | None:
    """Return the SHA-256 of the file that a family comes from; None for a family that ships."""
    return hashlib.sha256(_read(expanded(name))).hexdigest() if name.endswith(ENDING) else None


class ForeignCodeError(InputError):
    """Stored results need a Python file whose code the user has not named, or that is no longer what it was."""


def check_named(name: str, sha256: str | None, named: Collection[str]) -> None:
    """Raise ``ForeignCodeError`` for a family from a file that the user did not name, or that changed since."""
    if not name.endswith(ENDING):
        return
    if expanded(name) not in map(expanded, named):
        where = "under [model] family of a study, or after generate --family"
        raise ForeignCodeError(
            f"its family is the Python file {name!a}, whose code runs only where you name it: {where}"
        )
    if file_sha256(name) != sha256:
        raise ForeignCodeError(f"its family {name!a} has changed since it was trained; restore that file")


def check_unchanged(name: str, sha256: str | None) -> None:
    """Raise ``RuntimeError`` if the file of a family is no longer the one that a trial was planned with."""
    if sha256 is not None and file_sha256(name) != sha256:
        raise RuntimeError(f"{name} changed since the trial was planned; plan again")


def _read(path: Path) -> bytes:
    try:
        if not path.is_file():  # nor a device or a FIFO, which may have no end
            raise InputError(f"{path}: no such file, in the folder {Path.cwd()}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


@lru_cache(maxsize=32)
def _loaded(path: Path, content: bytes) -> Any:
    module = imported(path, content, "family")
    if lacking := [name for name in REQUIRED if not hasattr(module, name)]:
        raise InputError(f"{path}: lacks {', '.join(lacking)}; scalebench/families/base.py documents each")
    if not is_frozen(module.Config):
        raise InputError(f"{path}: Config must be a frozen dataclass; write @dataclass(frozen=True) above it")
    for name in PLANNED:
        setattr(module, name, reporting(path, getattr(module, name)))
    summary = (module.__doc__ or path.stem).strip().splitlines()[0]
    for name, value in (DEFAULTS | {"SUMMARY": summary, "explicit": module.Config}).items():
        module.__dict__.setdefault(name, value)
    return module


def is_frozen(config: Any) -> bool:
    """Return whether it is a frozen dataclass: configurations are compared, written to records and kept by value."""
    return is_dataclass(config) and getattr(config, "__dataclass_params__").frozen  # noqa: B009 - no stub has it


def imported(path: Path, content: bytes, kind: str) -> ModuleType:
    """Import a file as a module with a unique name, which dataclasses and torch.compile look up in sys.modules.

    Raises ``InputError`` with the line of what the file itself raises.
    """
    name = f"scalebench_{kind}_{path.stem}_{hashlib.sha256(content).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        exec(compile(content, str(path), "exec"), module.__dict__)  # noqa: S102 - the user's own code; not from __pycache__
    except ERRORS as error:
        del sys.modules[name]
        raise _as_input_error(path, error) from error
    return module


def reporting(path: Path, function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function of the file that raises its errors, and a missing value, as ``InputError`` with the line."""

    @wraps(function)
    def call(*values: Any, **options: Any) -> Any:
        try:
            result = function(*values, **options)
        except InputError:  # a size that cannot be reached, for example
            raise
        except ERRORS as error:
            raise _as_input_error(path, error) from error
        if result is None:
            raise InputError(f"{path}: {function.__name__} returns nothing")
        return result

    return call


def _as_input_error(path: Path, error: BaseException) -> InputError:
    beside = "; set PYTHONPATH to the folder that has it" if isinstance(error, ModuleNotFoundError) else ""
    return InputError(f"{path}{_line_of(error, path)}: {type(error).__name__}: {error}{beside}")


def _line_of(error: BaseException, path: Path) -> str:
    """Return ":12" for an error that line 12 of the file raised, or that was found there."""
    if isinstance(error, SyntaxError):
        return f":{error.lineno}"
    lines, trace = [], error.__traceback__
    while trace is not None:
        lines += [trace.tb_lineno] if trace.tb_frame.f_code.co_filename == str(path) else []
        trace = trace.tb_next
    return f":{lines[-1]}" if lines else ""
