"""The GPUs of this machine as slots: a trial gets as many as it asks for, named by UUID, those with the fewest trials.

A worker sees only its own (``CUDA_VISIBLE_DEVICES``). A process that computes on a GPU holds its lock
(``measure/device_lock.py``), so that drivers that do not know of each other take turns as well.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from scalebench.errors import InputError


def gpu_names(slots: int | None = None) -> list[str]:
    """Return the names of the GPUs that trials may use, at most ``slots``, without starting a CUDA context.

    On a machine without a GPU there are ``slots`` with names of no device: what is placed there can be tested, and
    every trial ends as unsupported. Raises ``InputError`` for more slots than GPUs.
    """
    import torch

    names = _visible(torch.cuda.device_count())
    if slots is None:
        return names
    if names and slots > len(names):
        raise InputError(f"--slots: gpu={slots}, and this machine has {len(names)}")
    return names[:slots] or [f"slot-{number}" for number in range(slots)]


def _visible(count: int) -> list[str]:
    """Return the UUIDs of the GPUs that this process may use, or their names in CUDA_VISIBLE_DEVICES."""
    if (variable := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return [name.strip() for name in variable.split(",")][:count]
    return _uuids(count) if count else []


def _uuids(count: int) -> list[str]:
    import pynvml

    try:
        pynvml.nvmlInit()
        if pynvml.nvmlDeviceGetCount() == count:
            return [pynvml.nvmlDeviceGetUUID(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in range(count)]
    except pynvml.NVMLError:  # no library of the driver that can say
        pass
    return [str(index) for index in range(count)]


class Slots:
    """Which GPUs are taken by how many trials. With ``share`` a GPU can be given to more than one."""

    def __init__(self, names: Sequence[str], *, share: bool = False) -> None:
        self.names, self.share = tuple(names), share
        self.load: Counter[str] = Counter()

    def take(self, count: int) -> tuple[str, ...] | None:
        """Return the names of ``count`` GPUs with the fewest trials, or of all; None where too few are free.

        In the order of ``names``: two trials of several GPUs that take turns cannot each hold what the other waits for.
        """
        by_load = sorted(self.names, key=lambda name: self.load[name])[:count]
        if not self.share and any(self.load[name] for name in by_load):
            return None
        self.load.update(by_load)
        return tuple(name for name in self.names if name in by_load)

    def give_back(self, names: Iterable[str]) -> None:
        """Free the GPUs of a trial that has ended."""
        self.load.subtract(names)
