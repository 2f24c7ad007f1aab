"""Faults injected into sweeps: `make faults`, or ``make faults NAMES='"disk full"'``; prints a table.

Each fault disturbs a study of tiny trials, and then the same command is typed again until nothing is left. The oracle
is an undisturbed run of the study in this process: the final table has the same trials, each once and with the same
status and the same loss at every step, bit for bit, and every file can be read. Trials that are trained together
(``[run] ensemble``) are compared with training one by one, within ``fault_support.TOGETHER``. Exit status 1 where that
is not so, and where a fault was not injected as often as asked. A fault is skipped, with the reason, where what it
needs is not installed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import fault_clusters as clusters
import fault_kinds as kinds
import pandas as pd
import torch
from drivers import Drivers
from fault_support import STUDY, TOGETHER, Case, Unavailable, judge

BAD = ("not injected", "lost", "other losses", "twice", "unreadable", "wrong")


@dataclass(frozen=True)
class Fault:
    """What disturbs a study, and how often; ``tolerance`` is relative, of losses."""

    inject: kinds.Inject
    study: str
    times: int
    tolerance: float = 0.0

    def case(self, folder: Path, drivers: Drivers) -> Case:
        """Return a study in a folder of its own, run undisturbed."""
        return Case(folder, self.study, drivers, self.times, self.tolerance)


def longer(study: str, steps: int) -> str:
    """Return a study with more steps."""
    return study.replace("steps = 40", f"steps = {steps}")


FORTY, TEN, FOUR, TWO = (STUDY % [*range(trials)] for trials in (40, 10, 4, 2))
RANKS = longer(TWO.replace("batch_size = 32", "batch_size = 32\nprocesses = 2"), 300)
BATCHES = FORTY.replace("checkpoint_every_steps = 10", "ensemble = 5")  # eight batches of five
FAULTS = {
    "driver killed": Fault(kinds.driver_killed, FORTY, 30),
    "driver interrupted": Fault(kinds.driver_interrupted, TEN, 8),
    "workers killed": Fault(kinds.workers_killed, longer(TEN, 400), 12),
    "workers stopped": Fault(kinds.workers_stopped, longer(TEN, 400), 3),
    "trials misbehave": Fault(kinds.misbehaving, TEN, len(kinds.EXPECTED)),
    "disk full": Fault(kinds.disk_full, FOUR, 7),
    "files damaged": Fault(kinds.files_damaged, FOUR, 2_000),
    "clocks differ": Fault(kinds.clocks, TEN, 2),
    "two drivers": Fault(partial(kinds.together, preparations=[""] * 2), TEN, 2),
    "four drivers": Fault(partial(kinds.together, preparations=[""] * 4), longer(TEN, 200), 4),
    "folder copied": Fault(kinds.copied, TEN, 3),
    "rank killed": Fault(clusters.rank_killed, RANKS, 1),
    "Ray killed": Fault(clusters.ray_killed, longer(FOUR, 400), 2),
    "Slurm disturbed": Fault(clusters.slurm_disturbed, longer(TWO, 4_000), 2),
    "batches: worker killed": Fault(kinds.workers_killed, BATCHES, 8, TOGETHER),
    "batches: worker stopped": Fault(partial(kinds.workers_stopped, timeout_s=1), BATCHES, 2, TOGETHER),
    "batches: driver killed": Fault(kinds.driver_killed, BATCHES, 8, TOGETHER),
    "batches: driver interrupted": Fault(kinds.driver_interrupted, BATCHES, 4, TOGETHER),
    "batches: two drivers": Fault(partial(kinds.together, preparations=[""] * 2), BATCHES, 2, TOGETHER),
    "batches: disk full": Fault(kinds.disk_full, BATCHES, 7, TOGETHER),
}


def run_fault(name: str, fault: Fault, drivers: Drivers) -> dict[str, Any]:
    """Inject one kind of fault and return its row of the table."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"fault-{name}-".replace(" ", "-")) as folder:
        try:
            case = fault.case(Path(folder), drivers)
            fault.inject(case)
            counts = judge(case)
        except Unavailable as reason:
            return {"fault": name, "injected": 0, "note": f"skipped: {reason}"}
    notes = {"seconds": round(time.monotonic() - begun), "note": "; ".join([*case.wrong, *case.notes])}
    return {"fault": name, "injected": case.injected, "trials": len(case.reference), **counts, **notes}


def main(names: Sequence[str]) -> int:
    """Run the faults and print the table as Markdown; exit status 1 if anything was lost or a fault is missing."""
    torch.set_num_threads(1)
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    rows, drivers = [], Drivers()
    for name in names or FAULTS:
        rows.append(run_fault(name, FAULTS[name], drivers))
        print(rows[-1], flush=True)
    drivers.stop()
    table = pd.DataFrame(rows).fillna("")
    print("| " + " | ".join(table) + " |\n|" + "---|" * len(table.columns))
    print("\n".join("| " + " | ".join(str(value).removesuffix(".0") for value in row) + " |" for row in table.values))
    return int(any(row.get(key) for row in rows for key in BAD))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
