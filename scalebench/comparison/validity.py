"""What makes a row invalid, or takes its verdict: impossible rates, work left behind, two modes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalebench.comparison.pool import CPU_CACHE_BYTES
from scalebench.measure.modes import Modes, two_modes

# A rate this far above the ceiling measured in the same run is impossible. On a CPU that is shared with other programs
# ceilings and calls are measured under different loads.
SLACK = {"cpu": 2.0, "cuda": 1.05}


def invalid_columns(row: Mapping[str, Any], limits: Mapping[str, Any], device: str) -> dict[str, Any]:
    """Return why a row is invalid, without a verdict; nothing if it is valid.

    ``limits`` are those of ``limits_of``, ``device`` is "cpu" or "cuda".
    """
    reasons = [row.get("invalid_reason"), impossible_rate(row, limits, SLACK[device])]
    reason = "; ".join(filter(None, reasons))
    return {"invalid_reason": reason, "verdict": None, "verdict_reason": reason} if reason else {}


def limits_of(ceilings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what no call can exceed, from the columns of ``rows.best_ceilings``.

    ``flops_per_s``; ``bytes_per_s`` of memory, which counts only bytes beyond ``cache_bytes``, since the last writes of
    a call may still be in the cache when its time is taken; and ``cached_bytes_per_s`` of calls that move no more than
    ``cached_bytes``, whose inputs may be in the cache (None on a GPU, where the cache is flushed).
    """
    cached = ceilings["cached_ceiling_bytes_per_s"]
    return {
        "flops_per_s": ceilings["flops_limit_per_s"],
        "bytes_per_s": ceilings["copy_ceiling_bytes_per_s"],
        "cache_bytes": ceilings["cache_bytes"],
        "cached_bytes_per_s": cached,
        "cached_bytes": None if cached is None else 2 * CPU_CACHE_BYTES,
    }


def impossible_rate(row: Mapping[str, Any], limits: Mapping[str, Any], slack: float) -> str:
    """Return how a row's rates exceed ``slack`` times the limits, or "" if they do not."""
    time, flops, moved = row.get("time_median_s"), row.get("flops") or 0, row.get("bytes_moved") or 0
    if not time:
        return ""
    cached = limits["cached_bytes"] is not None and moved <= limits["cached_bytes"]
    memory_limit = limits["cached_bytes_per_s"] if cached else limits["bytes_per_s"]
    counted = moved if cached else moved - (limits["cache_bytes"] or 0)
    rates = (("FLOP/s", flops / time, limits["flops_per_s"]), ("B/s", counted / time, memory_limit))
    above = [f"{rate:.3g} {unit} of {limit:.3g}" for unit, rate, limit in rates if rate > slack * limit]
    return f"faster than the device can be: {', '.join(above)} measured in the same run" if above else ""


# --- two modes -------------------------------------------------------------------------------------------------------


def modes_of(samples: Sequence[ArrayLike]) -> Modes | None:
    """Return the modes of a provider's samples, one array per process, if most processes have two: their means."""
    split = [modes for modes in map(two_modes, samples) if modes is not None]
    if 2 * len(split) <= len(samples):
        return None
    low, high, low_share = np.mean([(modes.low, modes.high, modes.low_share) for modes in split], axis=0).tolist()
    return Modes(low, high, low_share)


def mode_columns(samples: Sequence[ArrayLike]) -> dict[str, Any]:
    """Return the columns of two modes, null for one."""
    modes = modes_of(samples)
    values = (None, None, None) if modes is None else (modes.low, modes.high, modes.low_share)
    return dict(zip(("fast_mode_s", "slow_mode_s", "fast_mode_share"), values, strict=True))


def two_modes_reason(name: str, samples: Sequence[ArrayLike]) -> str:
    """Return that a provider has two modes, or "" if it has one."""
    modes = modes_of(samples)
    if modes is None:
        return ""
    low, high = (f"{1e3 * seconds:.3g} ms" for seconds in (modes.low, modes.high))
    return f"{name} has two modes: {low} in {100 * modes.low_share:.0f} % of the samples, {high} in the others"
