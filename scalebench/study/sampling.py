"""Values of ``[sample]``: points of a sequence that fills the space of its fields evenly, however many are drawn."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from scalebench.study.axes import LARGEST, values_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RANGES = ("log", "linear")
DIGITS = 4  # significant ones of a sampled number: more would be longer names of the same trial
EXAMPLE = "{ log = [1e-4, 1e-1] }, { linear = [0, 0.3] }, or a list of at least two values"
BITS = 30  # of a fraction
UnitInterval = float


def sampled(
    raw: Mapping[str, Any], points: int, seed: int, is_count: Callable[[str, str], bool | None]
) -> dict[str, dict[str, list[Any]]]:
    """Return the tables of ``[sample]`` with the drawn values of each field in place of its range.

    ``is_count`` is whether a table's field takes whole numbers; None where its ends say so. More points leave the first
    as they are. Fields are taken by name: their order in the file changes nothing. ``ValueError`` names the field.
    """
    fields = sorted((table, field) for table, content in raw.items() for field in content)
    tables: dict[str, dict[str, list[Any]]] = {table: {} for table in raw}
    for (table, field), fractions in zip(fields, fractions_of(points, len(fields), seed).T.tolist(), strict=True):
        try:
            value_at = _scale(raw[table][field], is_count(table, field))
        except ValueError as error:
            raise ValueError(f"{table}.{field}: {error} (given {raw[table][field]!r})") from None
        tables[table][field] = [value_at(fraction) for fraction in fractions]
    return tables


def fractions_of(points: int, dimensions: int, seed: int) -> NDArray[np.float64]:
    """Return the first points of a Sobol sequence in [0, 1)^d, [points, d], all shifted by the seed.

    The shift flips bits of all points alike (a digital shift), which keeps how evenly they fill the space. Neither the
    sequence nor the numbers that ``random()`` gives for a seed change between versions: trials keep their ids.
    """
    import numpy as np
    from scipy.stats import qmc  # takes half a second to import

    if not dimensions:
        return np.zeros((points, 0))
    sequence = qmc.Sobol(dimensions, scramble=False, bits=BITS).random_base2(math.ceil(math.log2(points)))[:points]
    flips = random.Random(seed)
    shift = np.array([int(flips.random() * 2**BITS) for _ in range(dimensions)])
    return ((sequence * 2**BITS).astype(np.int64) ^ shift) / 2**BITS


def _scale(spec: Any, counts: bool | None) -> Callable[[UnitInterval], Any]:
    """Return the function from [0, 1) to the values of a range, or of a list, which are all as likely."""
    kind = next((name for name in RANGES if isinstance(spec, dict) and name in spec), None)
    if kind is not None:
        return _range(kind, spec, counts)
    values = values_of(spec)
    if len(values) < 2:
        raise ValueError(f"one value is no range; write {EXAMPLE}, or set it outside [sample]")
    return lambda fraction: values[int(fraction * len(values))]


def _range(kind: str, spec: Mapping[str, Any], counts: bool | None) -> Callable[[UnitInterval], float | int]:
    ends = spec[kind]
    if len(spec) > 1 or not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_number, ends)):
        raise ValueError(f"{kind} needs two numbers and nothing else, as in {{ {kind} = [1, 8] }}")
    low, high = sorted(ends)
    if low == high:
        raise ValueError(f"{kind} needs two different ends")
    if kind == "log" and low <= 0:
        raise ValueError("log needs positive ends; linear takes any")
    first, last = (math.log(low), math.log(high)) if kind == "log" else (low, high)
    invert = math.exp if kind == "log" else float
    whole = counts if counts is not None else all(isinstance(end, int) for end in ends)

    def value_at(fraction: UnitInterval) -> float | int:
        value = invert(first + (last - first) * fraction)
        return min(max(round(value) if whole else float(f"{value:.{DIGITS}g}"), low), high)

    return value_at


def _is_number(end: Any) -> bool:
    return isinstance(end, int | float) and not isinstance(end, bool) and abs(end) <= LARGEST
