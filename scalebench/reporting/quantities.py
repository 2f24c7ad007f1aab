"""Numbers for readers, on the page and in the terminal: stored in SI units, printed with prefix, unit and digits."""

from __future__ import annotations

import math
import re
from typing import Any

NOT_MEASURED = "—"
CLEAR = 2.0  # standard errors; a smaller change is called noise
NO_INTERVAL = "no interval"
NO_SPREAD = "no spread"  # of an interval without width: trials that agree exactly
UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
NBSP = "\u00a0"  # keeps a number and its unit on one line
GREEK = {"alpha": "α", "beta": "β", "gamma": "γ"}
SI_PREFIXES = {
    "Y": 1e24,
    "Z": 1e21,
    "E": 1e18,
    "P": 1e15,
    "T": 1e12,
    "G": 1e9,
    "M": 1e6,
    "k": 1e3,
    "": 1.0,
    "m": 1e-3,
    "µ": 1e-6,
    "n": 1e-9,
}
SPREAD_FROM = 1e-5  # of the value: a narrower interval is rounding, as of FLOPs and of bytes of checkpoints
TINY = 1e-6  # below this, numbers with an interval have an exponent
BEYOND_USE = 1e6  # the upper end of an interval over its value, from which it limits nothing
NEGLIGIBLE = 1e-6  # a value beside the ends of its interval, whose digits it does not set
PREFIXED = ("s", "B", "FLOP", "J")  # units of predicted quantities that take a prefix
BINARY_PREFIXES = {"Ti": 2.0**40, "Gi": 2.0**30, "Mi": 2.0**20, "Ki": 2.0**10, "": 1.0}


def printable(text: str) -> str:
    """Replace the characters that neither XML nor UTF-8 can hold: control characters and halves of surrogates."""
    return UNPRINTABLE.sub("\ufffd", text)


def tick(value: float) -> str:
    """Format the label of a tick: as short as possible, with a prefix instead of an exponent."""
    return f"{value:,.6g}" if 1e-3 <= abs(value) < 1e4 or not value else quantity(value)


def scale(value: float, unit: str) -> tuple[float, str]:
    """Return the divisor and prefixed unit for a magnitude: (1e-3, "ms") for 0.004 "s". Bytes take binary prefixes."""
    prefixes = BINARY_PREFIXES if unit == "B" else SI_PREFIXES
    size = abs(value)
    fitting = [item for item in prefixes.items() if size >= item[1] * 0.9995]
    # Only times have prefixes below one; a time below a nanosecond is still in nanoseconds.
    usable = fitting or ([("n", 1e-9)] if unit == "s" and size > 0 else [("", 1.0)])
    prefix, factor = usable[0] if unit == "s" or usable[0][1] >= 1 else ("", 1.0)
    return factor, f"{prefix}{unit}"


def significant(value: float, digits: int = 3) -> str:
    """Format a number with ``digits`` significant digits, without an exponent between 1e-4 and 1e6."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else ("∞" if value > 0 else "−∞")
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.{digits - 1}e}".replace("-", "−")
    rounded = float(f"{value:.{digits - 1}e}")  # 0.9999 has the decimals of 1.00
    places = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{value:,.{places}f}".replace("-", "−")


def quantity(value: Any, unit: str = "", digits: int = 3) -> str:
    """Format a value with its unit: 98.3 k, 4.21 ms, 12.5 MiB; an em dash for what was not measured."""
    if not present(value):
        return NOT_MEASURED
    if not unit and float(value).is_integer() and abs(value) < 10_000:
        return f"{value:,.0f}".replace("-", "−")
    factor, prefixed = scale(float(value), unit)
    return f"{significant(float(value) / factor, digits)}{NBSP}{prefixed}".rstrip()


def present(value: Any) -> bool:
    """Return whether a cell of the results has a value: not None, NaN or pandas' NA."""
    if value is None or isinstance(value, str | int | float):
        return value is not None and value == value  # noqa: PLR0124 - NaN differs from itself
    import pandas as pd  # for its own kinds of a missing value, which only a table holds

    return bool(pd.notna(value))


def decimals_of(width: float) -> int:
    """Return the number of decimals that shows two digits of an uncertainty of this width."""
    if not (width > 0 and math.isfinite(width)):
        return 3
    return min(9, max(0, 1 - math.floor(math.log10(float(f"{width:.1e}")))))


def uncertain(value: float, error: float) -> str:
    """Format ``value ± error`` with two digits of the error, or the value alone where the error is unknown."""
    if not math.isfinite(error) or error <= 0:
        return f"{value:.3f}"
    return f"{value:.{decimals_of(error)}f}{NBSP}±{NBSP}{error:.{decimals_of(error)}f}"


def bounded(value: float, low: float, high: float, unit: str = "") -> tuple[str, str]:
    """Format a value and its interval with the digits the interval supports: ("62 ns", "58 to 66 ns").

    An infinite value is a rate that the data do not resolve: its interval has only a lower bound. So has one whose
    upper end is ``BEYOND_USE`` times the value: such a limit is no limit.
    """
    if value > 0 and low > 0 and BEYOND_USE * value < high < math.inf:
        text, _ = bounded(value, low, value, unit)
        factor, prefixed = scale(low, unit) if unit else (1.0, "")
        return text, f"above {significant(low / factor, 2)}{NBSP}{prefixed}".rstrip()
    if math.isinf(value):
        factor, prefixed = scale(low, unit) if unit else (1.0, "")
        lowest = f"above {significant(low / factor, 2)}{NBSP}{prefixed}".rstrip()
        return "not resolved", NO_INTERVAL if math.isnan(low) else lowest
    finite = [x for x in (value, low, high) if math.isfinite(x)]
    factor, prefixed = scale(value or max(finite, key=abs), unit) if unit else (1.0, "")
    suffix = f"{NBSP}{prefixed}" if prefixed else ""
    if math.isnan(low) or math.isnan(high):
        return significant(value / factor) + suffix, NO_INTERVAL
    if not any(finite):
        return f"0{suffix}", NO_SPREAD
    if abs(high - low) <= SPREAD_FROM * abs(value):
        return significant(value / factor) + suffix, NO_SPREAD
    width = max((abs(end - value) for end in (low, high) if math.isfinite(end)), default=0.0) / factor
    # At least two digits of the value and at most four: an interval may be wide, or have no width at all.
    scaled = [x / factor for x in (value, low, high)]
    largest = max(abs(x) for x in scaled if math.isfinite(x))
    negligible = 0 < abs(scaled[0]) <= NEGLIGIBLE * largest
    least = 0 if negligible else decimals_of(abs(scaled[0]))
    decimals = min(max(decimals_of(width), least), least + 2)
    # Large and tiny numbers: enough significant digits, two to four, to show two digits of the width.
    digits = min(max(2, 2 + _magnitude(largest) - _magnitude(width)), 4)
    plain = largest == 0 or largest >= TINY
    far = 100 * abs(scaled[0]) or math.inf  # beyond this only the order of magnitude is worth writing
    text, *ends = (
        f"{float(f'{x:.1e}'):,.0f}" if far < abs(x) < 1e6 and abs(x) >= 100
        else f"{x:,.{decimals}f}" if plain and abs(x) < 1e6 else significant(x, digits)
        for x in scaled
    )  # fmt: skip
    if ends[0] == ends[1]:  # four digits do not tell the ends apart: as many as do
        ends = _distinct(low / factor, high / factor)
    return (text + suffix).replace("-", "−"), (" to ".join(ends) + suffix).replace("-", "−")


def interval_words(ends: str) -> str:
    """Return the ends of an interval as ``bounded`` writes them, in words: 95 % interval 1 to 2; or "no interval"."""
    return ends if ends in (NO_INTERVAL, NO_SPREAD) else f"95 % interval {ends}"


def _distinct(low: float, high: float) -> list[str]:
    """Format two different numbers with the fewest significant digits, five or more, that distinguish them."""
    texts = ([significant(end, digits) for end in (low, high)] for digits in range(5, 17))
    return next((pair for pair in texts if pair[0] != pair[1]), [f"{low:.17g}", f"{high:.17g}"])


def _magnitude(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def percent(fraction: float, sign: bool = True) -> str:
    """Format a fraction as a percentage with one decimal, two below one percent, and none for 0 and 100 %."""
    digits = 0 if fraction in (0, 1) else 1 if abs(fraction) >= 0.01 else 2
    return f"{100 * fraction:{'+' if sign else ''}.{digits}f}{NBSP}%".replace("-", "−")


def symbol(name: str) -> str:
    """Return a parameter's name with its Greek letter, where it has one: γ_D."""
    letter, mark, index = name.partition("_")
    return f"{GREEK.get(letter, letter)}{mark}{index}"


def formula(text: str) -> str:
    """Format the formula of a law: L = E + A·N^−α."""
    for name, letter in GREEK.items():
        text = text.replace(name, letter)
    return text.replace(" * ", "·").replace("^-", "^−")
