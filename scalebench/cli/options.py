"""Options and arguments that several commands share. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter, Token

from scalebench.cli import completions
from scalebench.comparison.options import Whole

__all__ = ["Whole"]  # as for the other types, commands import it from here

RESULTS = Path("results")
# 124M in a setting, outside the texts in quotes.
SUFFIXED = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"|'[^']*')|(?<![\w.:"'/-])\d[\d_]*(?:\.\d+)?[kKMBGT](?![\w"'/-])"""
)


def _quantity(_type: Any, tokens: Sequence[Token]) -> float:
    """Read a number such as 7e9, 124M or 300B; cyclopts reports the ``ValueError``."""
    from scalebench.points.numerals import number

    return number(tokens[0].value)


def _seconds(_type: Any, tokens: Sequence[Token]) -> float:
    from scalebench.points.numerals import SECONDS, number_with_unit

    return number_with_unit(tokens[0].value, SECONDS)


def _bytes(_type: Any, tokens: Sequence[Token]) -> float:
    from scalebench.points.numerals import byte_count

    return byte_count(tokens[0].value)


def _setting(_type: Any, tokens: Sequence[Token]) -> str:
    """Return ``key=value`` with 300M and [1k, 1.3B] as numbers of TOML, anything else as it is."""
    from tomllib import TOMLDecodeError, loads

    from scalebench.points.numerals import number

    key, _, text = tokens[0].value.partition("=")
    written = SUFFIXED.sub(lambda match: match["quoted"] or f"{number(match[0]):.0f}", text)
    try:
        loads(f"value = {written}")
    except (TOMLDecodeError, RecursionError):
        return tokens[0].value
    return f"{key}={written}" if written != text else tokens[0].value


def _path(_type: Any, tokens: Sequence[Token]) -> Path:
    """Return a path; the shell leaves the ``~`` of --results=~/mine, and of quoted words, as it is."""
    from scalebench.store import expanded

    if not tokens[0].value:  # as of a shell variable that is not set
        raise ValueError("an empty path; name a file or folder, or . for this one")
    return expanded(tokens[0].value)


Json = Annotated[bool, Parameter("--json", help="Print JSON.", negative=())]
Settings = Annotated[
    list[Annotated[str, Parameter(converter=_setting)]],
    Parameter("--set", help="Override a field of the study: --set train.steps=100.", negative=(), show_default=False),
]
StudyFile = Annotated[
    str, Parameter(help="A study file (TOML), or the name of a study that ships.", completer=completions.study_files)
]
File = Annotated[Path, Parameter(converter=_path)]
ResultsArgument = Annotated[Path, Parameter(converter=_path, help="Results folder, of one study or of several.")]
SeveralResults = Annotated[list[File], Parameter(negative=(), help="Results folders, of one study or of several.")]
ResultsOption = Annotated[Path, Parameter(converter=_path, help="Results folder; each study gets a subfolder.")]
Points = Annotated[
    Path,
    Parameter(
        converter=_path, help="A table of points (CSV, TSV, JSON lines, Parquet, gzipped too), or a results folder."
    ),
]
Where = Annotated[
    str | None,
    Parameter(show_default=False, help='Keep only rows that match this expression, such as "N > 1e7".'),
]
Plot = Annotated[
    Path | None,
    Parameter(show_default=False, converter=_path, help="Draw the points and the law into this file: PNG, SVG or PDF."),
]
Quantity = Annotated[float, Parameter(converter=_quantity)]  # 7e9, 124M, 300B
Number = Annotated[float | None, Parameter(show_default=False, converter=_quantity)]
Seconds = Annotated[float | None, Parameter(show_default=False, converter=_seconds)]  # 0.002, 2ms
Bytes = Annotated[float | None, Parameter(show_default=False, converter=_bytes)]  # 40k, 40kB, 64KiB
Law = Annotated[
    str | None,
    Parameter(
        show_default=False,
        help="The law to fit; `scalebench list` shows them (default: power).",
        completer=completions.laws,
    ),
]
