"""Numbers as people write them: 124M and 300B, decimal commas and thousands separators.

``1,234,567``, ``1.234.567`` and ``3,14`` have one meaning each; ``4,608`` alone has two, so other numbers of the file
decide it. In a file of decimal commas ``4.608`` is four thousand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}  # B and G are both 10^9
# The unit of a count at the end of its column's name: "Params (M)", "tokens [billions]", "size (in millions)".
HEADER_UNIT = re.compile(
    r"[(\[] *(?:in )? *(k|thousands?|m|millions?|b|bn|billions?|t|trillions?) *[)\]] *$", re.IGNORECASE
)
PATTERN = "1234567.8"  # how messages ask for a number to be written
Mark = Literal[".", ","]  # what separates the whole part of a number from its decimals

_SIGN, _EXPONENT = r"[+-]?", r"(?:[eE][+-]?\d+)?"
_GROUPS = r"\d{1,3}"
_GAPS = r"_'’ \u00a0\u202f\u2009"  # between thousands: Swiss apostrophes, and spaces of several widths
_SUFFIXED = re.compile(rf"({_SIGN}\d[\d.,{_GAPS}]*?{_EXPONENT}) ?([kKmMbBgGtTpP])")
# Thousands with commas (1,234,567 or 1,234.5), and decimal commas (3,14, 0,123, 1.234,5).
_COMMA_GROUPS = re.compile(rf"{_SIGN}{_GROUPS}(?:(?:,\d{{3}}){{2,}}(?:\.\d*)?|,\d{{3}}\.\d*){_EXPONENT}")
_DECIMAL_COMMA = re.compile(
    rf"{_SIGN}(?:\d+,(?:\d{{1,2}}|\d{{4,}})|0+,\d+|\d{{4,}},\d+|{_GROUPS}(?:\.\d{{3}})+,\d*|\d+,\d+[eE][+-]?\d+)"
    rf"{_EXPONENT}"
)
# Thousands with dots: 1.234.567 in any file, 1.234 in a file of decimal commas.
_DOT_GROUPS = re.compile(rf"{_SIGN}[1-9]\d{{0,2}}(?:\.\d{{3}})+")
ONE_DOT = r"^[+-]?[1-9]\d{0,2}\.\d{3}$"
_POINT = re.compile(rf"{_SIGN}\d*\.\d+{_EXPONENT}")
_ONE_COMMA = re.compile(rf"{_SIGN}[1-9]\d{{0,2}},\d{{3}}")  # either
_OTHER_GROUPS = re.compile(rf"{_SIGN}{_GROUPS}(?:[{_GAPS}]\d{{3}})+(?:[.,]\d*)?{_EXPONENT}")


def number(text: str) -> float:
    """Read a number: 7e9, 124M, 1.3B, 1,234,567, 3,14. Raises ``ValueError``."""
    value = plain(text, mark_of([text]) or ".")
    if meanings := ambiguity(text):
        raise ValueError(f"{text!r} is {meanings}; write it as {PATTERN}")
    if "_" in value:
        raise ValueError(f"{text!r} may be two numbers; write it as {PATTERN}")
    try:
        return float(value)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a number such as 7e9, 124M or 300B") from error


def ambiguity(text: str) -> str:
    """Return both meanings of a number such as 1,000, to follow "is"; "" for a text that does not have two."""
    inner = without_suffix(text)
    if not _ONE_COMMA.fullmatch(inner):
        return ""
    suffix = text.strip().removeprefix(inner)
    return f"ambiguous: {inner.replace(',', '')}{suffix} or, with a decimal comma, {inner.replace(',', '.')}{suffix}"


SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
BYTES = {"kB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}


def number_with_unit(text: str, units: Mapping[str, float]) -> float:
    """Read a number, times its unit if it has one: 2ms, 40kB. Raises ``ValueError``."""
    unit = max((unit for unit in units if text.endswith(unit)), key=len, default="")
    try:
        return number(text.removesuffix(unit).strip()) * units.get(unit, 1.0)
    except ValueError as error:
        raise ValueError(f"{error}, or one with a unit: {', '.join(units)}") from error


def byte_count(text: str) -> float:
    """Read a number of bytes: 40k, 40kB, 64KiB. Raises ``ValueError``, also for 40B, which is ambiguous."""
    if text.endswith("B") and not text.endswith(tuple(BYTES)):
        raise ValueError(f"{text!r} may be bytes or 10^9 of them; write the number alone, or with G")
    return number_with_unit(text, BYTES)


def header_unit(name: str) -> float:
    """Return the unit that the name of a column of counts ends in: 1e6 of "Params (M)"; 1 without one."""
    match = HEADER_UNIT.search(name)
    return _named_unit(match[1].lower()) if match else 1.0


def _named_unit(unit: str) -> float:
    return 1e3 if unit.startswith("th") else SUFFIXES[unit[0]]


def mark_of(cells: Iterable[str]) -> Mark | None:
    """Return the decimal mark that the cells of a file show, or None."""
    for cell in cells:
        text = without_suffix(cell.strip())
        if _DECIMAL_COMMA.fullmatch(text) or (text.count(".") > 1 and _DOT_GROUPS.fullmatch(text)):
            return ","
        if _COMMA_GROUPS.fullmatch(text):
            return "."
    return None


def semicolon_mark(cells: Iterable[str]) -> Mark | None:
    """Return the decimal mark of a file with semicolons between cells that ``mark_of`` cannot tell, or None.

    Spreadsheets write semicolons where the comma is that mark, so 3,464 is three and a half unless a cell has a point.
    """
    comma = False
    for cell in cells:
        text = without_suffix(cell.strip())
        if _POINT.fullmatch(text) and not re.match(ONE_DOT, text):
            return None
        comma = comma or bool(_ONE_COMMA.fullmatch(text))
    return "," if comma else None


def without_suffix(text: str) -> str:
    """Return a text without a suffix such as M."""
    suffixed = _SUFFIXED.fullmatch(text.strip())
    return suffixed[1] if suffixed else text.strip()


def plain(text: str, mark: Mark | None) -> str:
    """Return a number as Python writes it; any other text, or an ambiguous one, unchanged."""
    text = text.strip()
    suffixed = _SUFFIXED.fullmatch(text)
    if suffixed:
        inner = plain(suffixed[1], mark)
        try:
            return repr(float(inner) * SUFFIXES[suffixed[2].lower()])
        except ValueError:
            return text
    if _OTHER_GROUPS.fullmatch(text):
        return re.sub(f"[{_GAPS}]", "", text).replace(",", ".")
    if mark == "," and any(form.fullmatch(text) for form in (_DOT_GROUPS, _DECIMAL_COMMA, _ONE_COMMA)):
        return text.replace(".", "").replace(",", ".")
    if mark == "." and (_COMMA_GROUPS.fullmatch(text) or _ONE_COMMA.fullmatch(text)):
        return text.replace(",", "")
    return text


def numbers(cells: Any, mark: Mark | None) -> NDArray[np.float64]:
    """Return texts as float64 (n,), NaN for what is not a number."""
    import pandas as pd

    series = pd.Series(cells).astype(object)
    return np.asarray(pd.to_numeric(series.map(lambda cell: plain(str(cell), mark)), errors="coerce"), dtype=np.float64)
