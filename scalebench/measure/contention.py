"""Load of other programs on a trial's cores: their busy time by the kernel's account, less what the trial itself used.

Times of a trial count as exclusive only while others used no more than ``OTHERS_LIMIT`` of its cores' time. Busy is the
time in user and kernel mode of all processes, interrupts included, that ``/proc/stat`` counts in ticks of 10 ms; time
stolen by a hypervisor is not in it. The trial's own is that of its process, and of children that it has waited for.
"""

from __future__ import annotations

import math
import os
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scalebench.errors import InputError

OTHERS_LIMIT = 0.1
LIMIT_VARIABLE = "SCALEBENCH_OTHERS_LIMIT"
OTHERS_LEAST_S = 0.05  # a few ticks are noise
BUSY_FIELDS = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq


@dataclass(frozen=True)
class CoreUse:
    """What had been used up to a point in time: of the cores by all processes, and by this one; all in seconds."""

    cores: int
    busy_s: float
    own_s: float
    at_s: float

    def others_s(self, before: CoreUse) -> float:
        """Return the time that others used since ``before``."""
        return max(0.0, self.busy_s - before.busy_s - (self.own_s - before.own_s))

    def others_share(self, before: CoreUse) -> float:
        """Return the share of the cores' time that others used since ``before``."""
        return self.others_s(before) / max(1e-9, self.cores * (self.at_s - before.at_s))

    def undisturbed(self, before: CoreUse) -> bool:
        """Whether others used so little of the cores that times measured meanwhile are the trial's own."""
        return self.others_s(before) <= OTHERS_LEAST_S or self.others_share(before) <= others_limit()


def others_limit() -> float:
    """Return the limit: ``OTHERS_LIMIT``, unless the environment variable SCALEBENCH_OTHERS_LIMIT has another.

    Raises ``InputError`` where that is no share.
    """
    text = os.environ.get(LIMIT_VARIABLE, "").strip() or str(OTHERS_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit >= 0:
        raise InputError(f"{LIMIT_VARIABLE}={text}: expected a share of the cores' time such as {OTHERS_LIMIT}, or inf")
    return limit


def core_use(cpus: Sequence[int]) -> CoreUse | None:
    """Return the use of these cores so far; None if the system does not report it."""
    try:
        text = Path("/proc/stat").read_text(encoding="utf-8")
    except OSError:
        return None
    rows = {words[0]: words[1:] for words in map(str.split, text.splitlines()) if words}
    usage_rows = [rows[f"cpu{cpu}"] for cpu in cpus if f"cpu{cpu}" in rows]
    if not usage_rows:
        return None
    ticks = sum(int(row[index]) for row in usage_rows for index in BUSY_FIELDS)
    usage = [resource.getrusage(processes) for processes in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own_s = sum(part.ru_utime + part.ru_stime for part in usage)
    return CoreUse(len(usage_rows), ticks / os.sysconf("SC_CLK_TCK"), own_s, time.monotonic())


def start_ticks(process: int | str = "self") -> int:
    """Return when a process, given by its id, was started: clock ticks since boot, on Linux.

    Raises ``OSError`` where it does not run.
    """
    text = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    return int(text.rpartition(")")[2].split()[19])
