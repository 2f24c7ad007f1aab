"""Axes of a study: a scalar, a list or a geometric range becomes a tuple of values, each of a strict type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
)

from scalebench.errors import unknown

# What a study may ask for is bounded before anything is expanded.
MOST_VALUES = 100_000  # of an axis
MOST_COUNTED = 10**15
MOST_SAMPLES = 10_000_000
LARGEST_INTEGER = 2**63 - 1
LARGEST, LARGEST_EXPONENT = 1e300, 996  # of the ends of a geometric axis


def _geometric(spec: dict[str, Any]) -> list[float | int]:
    """Expand { geom = [lo, hi], points = n } or { log2 = [a, b], points = n }; integers stay integers."""
    kind = "geom" if "geom" in spec else "log2"
    ends = spec.get(kind)
    if set(spec) - {kind, "points"} or not isinstance(ends, list) or len(ends) != 2:
        hint = "; { log = … } and { linear = … } are for [sample]" if {"log", "linear"} & set(spec) else ""
        raise ValueError(
            f"an axis is a list, {{ geom = [lo, hi], points = n }} or {{ log2 = [a, b], points = n }}{hint}"
        )
    if not all(isinstance(end, int | float) and not isinstance(end, bool) for end in ends):
        raise ValueError(f"{kind} needs two numbers, as in {kind} = [1, 8]")
    whole = all(isinstance(end, int) for end in ends)
    if not all(abs(end) <= (LARGEST_EXPONENT if kind == "log2" else LARGEST) for end in ends):
        allowed = f"-{LARGEST_EXPONENT} to {LARGEST_EXPONENT}" if kind == "log2" else f"up to {LARGEST:g}"
        raise ValueError(f"{kind} takes ends of {allowed}")
    points = spec.get("points", abs(ends[1] - ends[0]) + 1 if kind == "log2" and whole else None)
    low, high = (2.0 ** ends[0], 2.0 ** ends[1]) if kind == "log2" else ends
    if not isinstance(points, int) or points < 2:
        raise ValueError(f"points must be a whole number of at least 2, as in {{ {kind} = {ends}, points = 5 }}")
    if points > MOST_VALUES:
        raise ValueError(f"points: {points:,} are given; an axis has at most {MOST_VALUES:,}")
    if low <= 0 or high <= 0:
        raise ValueError(f"{kind} needs positive ends, given {ends}")
    values = [low * (high / low) ** (i / (points - 1)) for i in range(points)]
    return [round(value) if whole and min(ends) >= 0 else float(f"{value:.12g}") for value in values]


def values_of(value: Any) -> tuple[Any, ...]:
    """Return the values of an axis as a tuple; a scalar becomes a tuple of one."""
    if isinstance(value, dict):
        return tuple(_geometric(value))
    if isinstance(value, list):
        if not value:
            raise ValueError("an axis needs at least one value")
        if len(value) > MOST_VALUES:
            raise ValueError(f"{len(value):,} values are given; an axis has at most {MOST_VALUES:,}")
        return tuple(value)
    return value if isinstance(value, tuple) else (value,)


def whole(value: Any) -> Any:
    """Accept 1e6 for a count: TOML calls it a float."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def one_of(allowed: Sequence[str]) -> AfterValidator:
    """Refuse a value outside ``allowed``; the error lists the allowed ones and has a suggestion."""

    def check(value: str) -> str:
        if value not in allowed:
            raise ValueError(unknown(value, allowed))
        return value

    check.allowed = tuple(allowed)  # type: ignore[attr-defined]  # for the JSON Schema of study files
    return AfterValidator(check)


def _learning_rate(value: Any) -> Any:
    if value == "auto" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")):
        return value if value == "auto" else float(value)
    raise ValueError('expected a positive number or "auto" (the family\'s rule for each size)')


T = TypeVar("T")
Axis = Annotated[tuple[T, ...], BeforeValidator(values_of)]
Count = Annotated[PositiveInt, Field(le=MOST_COUNTED), BeforeValidator(whole)]
Points = Annotated[PositiveInt, Field(le=MOST_VALUES), BeforeValidator(whole)]  # values of an axis
Samples = Annotated[Count, Field(le=MOST_SAMPLES)]  # of a set that is held in memory
WholeNumber = Annotated[NonNegativeInt, Field(le=LARGEST_INTEGER), BeforeValidator(whole)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(gt=0, le=1)]
Finite = Annotated[PositiveFloat, Field(allow_inf_nan=False)]
Size = Annotated[Finite, Field(le=float(MOST_COUNTED))]
LearningRate = Annotated[Any, AfterValidator(_learning_rate)]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=100)]


def tables_of(point: Mapping[str, Any], *names: str) -> list[dict[str, Any]]:
    """Return the values of these tables at a point such as {"model.params": 1e4, …}, each by field."""
    tables: dict[str, dict[str, Any]] = {name: {} for name in names}
    for key, value in point.items():
        table, _, field = key.partition(".")
        if table in tables:
            tables[table][field] = value
    return list(tables.values())
