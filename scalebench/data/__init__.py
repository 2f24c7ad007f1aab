"""Data that is there on every machine, and a user's own.

``SOURCES`` maps the name of a source to the function that opens it; a study writes ``source = "stdlib"``, or
``source = "text:PATH"`` for those that take a path.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

from scalebench.data import retrieval, synthetic, text, transduction


class DataError(ValueError):
    """A source that is missing, empty or corrupt; the message names it and says what to do."""


class Data(Protocol):
    """What every opened source says of itself."""

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes, or of the definition of a synthetic source."""
        ...


@dataclass(frozen=True)
class Source:
    """How a source is opened: ``open(argument)``, with the text after the colon where one is needed."""

    summary: str
    open: Callable[[str], Data]
    argument: str = ""


SOURCES: Mapping[str, Source] = {
    "stdlib": Source("the Python standard library's own source, as bytes", text.open_stdlib),
    "text": Source("UTF-8 or other text, as bytes: a file, or a folder of files", text.open_path, "PATH"),
    "teacher": Source("regression on a fixed teacher with Gaussian noise: floor known", synthetic.open_teacher),
    "retrieval": Source(
        "sets in which a query picks what to sum, with Gaussian noise: floor known", retrieval.open_retrieval
    ),
    "transduction": Source(
        "sequences with an exact answer: reversal, sorting or addition", transduction.open_transduction, "KIND"
    ),
}


def source_names() -> list[str]:
    """Return the names as a study writes them: stdlib, text:PATH, …"""
    return [f"{name}:{source.argument}" if source.argument else name for name, source in SOURCES.items()]


@lru_cache(maxsize=8)
def open_source(source: str) -> Data:
    """Open ``stdlib``, ``text:PATH``, …; raises ``DataError`` for an unknown, missing or empty source."""
    from scalebench.errors import unknown

    name, colon, argument = source.partition(":")
    if name not in SOURCES:
        raise DataError(unknown(source, source_names()))
    if bool(SOURCES[name].argument) != bool(colon and argument):
        raise DataError(f"{source!r} should be written {dict(zip(SOURCES, source_names(), strict=True))[name]}")
    try:
        return SOURCES[name].open(argument)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error
