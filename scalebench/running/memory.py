"""Whether this machine has the memory that planned trials are predicted to need."""

from __future__ import annotations

from collections.abc import Sequence

import psutil

from scalebench.errors import InputError
from scalebench.running.planning import PlannedTrial

GIB = 1 << 30
SLACK = 1.3  # how far predictions for 16 bits may be off: workloads/training_memory.py


def check_memory(planned: Sequence[PlannedTrial]) -> None:
    """Raise ``InputError`` with a line per size that needs more memory than this machine has.

    A trial in 16 bits is refused only if its prediction is ``SLACK`` times as much. Trials on a GPU are not checked
    on a machine without one.
    """
    lines = {}
    for trial in planned:
        available = memory_bytes(trial.trial.device_kind)
        slack = 1.0 if trial.trial.spec.precision == "float32" else SLACK
        if available is not None and trial.memory_bytes > slack * available:
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
