"""The one-dial rules that families share: depth from an aspect ratio, widths in steps, hidden width for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from scalebench.errors import InputError

C = TypeVar("C")
Steps = Mapping[float, int]  # limit: step; values below the limit are rounded to multiples of the step

TOLERANCE = 0.05  # how far the parameter count may be from the one requested
# Larger widths in coarser steps: tensor cores want multiples of 8 and tiles multiples of 64.
WIDTH_STEPS: Steps = {64: 4, 512: 8, math.inf: 64}
HIDDEN_STEPS: Steps = {256: 2, 2048: 8, math.inf: 64}
# Where heads share the width exactly, it is a multiple of a head dimension that kernels support.
HEADED_WIDTH_STEPS: Steps = {128: 16, 512: 32, 2048: 64, math.inf: 128}


def step_for(value: float, steps: Steps) -> int:
    """Return the step for ``value``: that of the first limit above it."""
    return next(step for limit, step in steps.items() if value < limit)


def rounded(value: float, steps: Steps) -> int:
    """Round to a multiple of the step for ``value``; at least one step."""
    step = step_for(value, steps)
    return max(step, round(value / step) * step)


def heads_of(width: int) -> int:
    """Return the number of heads for a width of ``HEADED_WIDTH_STEPS``: one per 16, 32, 64 or 128 features."""
    return max(1, width // step_for(width, HEADED_WIDTH_STEPS))


def depth_and_width(
    params: float, per_block: int, steps: Steps, depth: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Return depth L and width C for N ~ ``per_block`` L C^2 parameters with C/L = 32 (N/1e5)^0.1; either may be fixed.

    At least two layers unless the width is fixed: with one layer attention cannot compose.
    """
    ideal_depth = (params / (per_block * (32 * (params / 1e5) ** 0.1) ** 2)) ** (1 / 3)
    if width:
        ideal_depth = params / (per_block * width**2)
    depth = depth or max(1 if width else 2, round(ideal_depth))
    return depth, width or rounded(math.sqrt(params / (per_block * depth)), steps)


def with_hidden(config: C, params: float, size: Callable[[C], int], steps: Steps = HIDDEN_STEPS) -> C:
    """Return ``config`` with the hidden width that brings ``size``, which is linear in it, to ``params``."""
    base, slope = linear_in("hidden", config, size)
    return _replaced(config, "hidden", rounded((params - base) / slope, steps))


def linear_in(name: str, config: C, size: Callable[[C], int]) -> tuple[int, int]:
    """Return intercept and slope of ``size`` as a function of the field ``name``, in which it is linear."""
    base, next_size = (size(_replaced(config, name, value)) for value in (0, 1))
    return base, next_size - base


def _replaced(config: C, name: str, value: int) -> C:
    changed: C = replace(config, **{name: value})  # type: ignore[type-var]
    return changed


def within_tolerance(config: C, params: float, actual: int, shape: str, hint: str, counted: str = "parameters") -> C:
    """Return ``config`` if its ``actual`` parameters are within 5 % of ``params``.

    Raises ``InputError`` otherwise; the message has the ``shape`` that came closest and a ``hint`` on the dial's range.
    """
    if abs(actual / params - 1) > TOLERANCE:
        raise InputError(f"{params:g} {counted}: the nearest {shape} has {actual:,}; {hint}")
    return config


@dataclass(frozen=True)
class Dial(Generic[C]):
    """The dial of a transformer family: N ~ ``per_block`` L C^2, and a hidden width that makes up the difference.

    ``explicit(depth, width, **fields)`` builds a Config with the family's default heads, ``size`` counts the parameters
    that the dial means. Widths are multiples of ``widths``, hidden widths of ``hiddens``.
    """

    family: str
    explicit: Callable[..., C]
    size: Callable[[C], int]
    per_block: int
    widths: Steps
    hint: str
    hiddens: Steps = field(default_factory=lambda: HIDDEN_STEPS)
    counted: str = "non-embedding parameters"

    def config_for(self, params: float, **fields: Any) -> C:
        """Return the Config with ``params`` parameters within 5 %, or raise ``InputError``.

        ``fields`` may fix any field of Config; vocab_size and context are required.
        """
        depth, width = depth_and_width(
            params, self.per_block, self.widths, fields.pop("depth", None), fields.pop("width", None)
        )
        config = self.explicit(depth, width, **fields)
        if "hidden" not in fields:
            config = with_hidden(config, params, self.size, self.hiddens)
        shape = f"{self.family} (depth {depth}, width {width})"
        return within_tolerance(config, params, self.size(config), shape, self.hint, self.counted)
