"""What the one-dial rules of several families share: depth from an aspect ratio, widths in steps, the rest in F."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from scalebench.families.base import OutOfReach

C = TypeVar("C")
Steps = Mapping[float, int]  # below this limit, a multiple of that

# Larger widths in coarser steps: tensor cores want multiples of 8 and tiles multiples of 64.
WIDTH_STEPS: Steps = {64: 4, 512: 8, math.inf: 64}
HIDDEN_STEPS: Steps = {256: 2, 2048: 8, math.inf: 64}
# Where heads share the width exactly, it is a multiple of a head dimension that kernels take.
HEADED_WIDTH_STEPS: Steps = {128: 16, 512: 32, 2048: 64, math.inf: 128}


def rounded(value: float, steps: Steps) -> int:
    """Round to a multiple of the step of the first limit that ``value`` lies below, and at least one step up."""
    step = next(step for limit, step in steps.items() if value < limit)
    return max(step, round(value / step) * step)


def heads_of(width: int) -> int:
    """Return how many heads share a width of ``HEADED_WIDTH_STEPS`` exactly: of 16, 32, 64 or 128 features each."""
    head_dim = next(size for limit, size in ((128, 16), (512, 32), (2048, 64), (math.inf, 128)) if width < limit)
    return max(1, width // head_dim)


def depth_and_width(
    params: float, per_block: int, steps: Steps, depth: int | None = None, width: int | None = None
) -> tuple[int, int]:
    """Return the shape of N ~ ``per_block`` L C^2 parameters with C/L = 32 (N/1e5)^0.1; either may be held.

    At least two layers deep unless the width is held: with one layer attention cannot compose.
    """
    ideal_depth = (params / (per_block * (32 * (params / 1e5) ** 0.1) ** 2)) ** (1 / 3)
    if width:
        ideal_depth = params / (per_block * width**2)
    depth = depth or max(1 if width else 2, round(ideal_depth))
    return depth, width or rounded(math.sqrt(params / (per_block * depth)), steps)


def with_hidden(config: C, params: float, size: Callable[[C], int], steps: Steps = HIDDEN_STEPS) -> C:
    """Return ``config`` with the hidden width that brings ``size``, which is linear in it, to ``params``."""
    base, one_more = (size(_hidden(config, hidden)) for hidden in (0, 1))
    return _hidden(config, rounded((params - base) / (one_more - base), steps))


def _hidden(config: C, hidden: int) -> C:
    changed: C = replace(config, hidden=hidden)  # type: ignore[type-var]
    return changed


def landed(config: C, params: float, found: int, what: str, hint: str) -> C:
    """Return ``config``, or raise ``OutOfReach`` when its ``found`` parameters are more than 5 % from ``params``."""
    if abs(found / params - 1) > 0.05:
        raise OutOfReach(f"{params:g} {what}: the nearest {_shape(config)} has {found:,}; {hint}")
    return config


def dialled(
    params: float,
    per_block: int,
    widths: Steps,
    explicit: Callable[..., C],
    size: Callable[[C], int],
    held: dict[str, Any],
    hint: str,
    *,
    hiddens: Steps = HIDDEN_STEPS,
    what: str = "non-embedding parameters",
) -> C:
    """Return the Config of ``params`` parameters, as ``size`` counts them, within 5 %, or raise ``OutOfReach``.

    Depth and width by ``depth_and_width`` unless ``held`` has them, the rest by ``explicit``; the hidden width takes up
    what is left.
    """
    shape = depth_and_width(params, per_block, widths, held.pop("depth", None), held.pop("width", None))
    config = explicit(*shape, **held)
    if "hidden" not in held:
        config = with_hidden(config, params, size, hiddens)
    return landed(config, params, size(config), what, hint)


def _shape(config: Any) -> str:
    name = type(config).__module__.rpartition(".")[2]
    named = ", ".join(f"{key} {getattr(config, key)}" for key in ("depth", "width") if hasattr(config, key))
    return f"{name} ({named})"
