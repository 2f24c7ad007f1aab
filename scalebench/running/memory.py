"""Whether this machine has the memory that planned trials are predicted to need."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from scalebench.errors import InputError
from scalebench.running.planning import PlannedTrial

GIB = 1 << 30


def check_memory(planned: Sequence[PlannedTrial]) -> None:
    """Raise ``InputError`` with a line per size that needs more memory than there is here.

    The prediction assumes float32: trials in 16 bits, which need down to a third of it, are not judged. Nor is a trial
    on a GPU by a machine without one.
    """
    lines = {}
    for trial in planned:
        available = memory_bytes(trial.trial.device_kind) if trial.trial.spec.precision == "float32" else None
        if available is not None and trial.memory_bytes > available:
            lines[trial.counts.total] = (
                f"{trial.trial.family} of {trial.counts.total:.3g} parameters needs about "
                f"{trial.memory_bytes / GIB:,.0f} GiB and this machine has {available / GIB:,.0f} GiB: leave that size "
                "out, or run it with --force"
            )
    if lines:
        raise InputError(list(lines.values()))


def memory_bytes(device_kind: str) -> int | None:
    """Return the memory of this machine, or of its first GPU, in bytes; None without a GPU."""
    if device_kind == "cpu":
        return int(psutil.virtual_memory().total)
    import torch

    return torch.cuda.get_device_properties(0).total_memory if torch.cuda.is_available() else None
