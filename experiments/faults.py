"""Faults injected into sweeps: `make faults`, or ``make faults NAMES='"disk full"'``; prints a table.

Each fault disturbs a study of tiny trials, and then the same command is typed again until nothing is left. The oracle
is an undisturbed run of the study in this process: the final table has the same trials, each once and ok, with the same
loss at every step, bit for bit, and every file can be read. Exit status 1 where that is not so.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from drivers import Drivers
from fault_kinds import FAULTS
from fault_support import Case, Unavailable, judge


def run_fault(name: str, inject: Callable[[Case], Any], text: str, drivers: Drivers) -> dict[str, Any]:
    """Inject one kind of fault and return its row of the table."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"fault-{name}-".replace(" ", "-")) as folder:
        try:
            case = Case(Path(folder), text, drivers)
            inject(case)
            counts = judge(case)
        except Unavailable as reason:
            return {"fault": name, "injected": 0, "note": f"skipped: {reason}"}
    notes = {"seconds": round(time.monotonic() - begun), "note": "; ".join(case.notes)}
    return {"fault": name, "injected": case.injected, "trials": len(case.reference), **counts, **notes}


def main(names: Sequence[str]) -> int:
    """Run the faults and print the table as Markdown; exit status 1 if anything was lost."""
    torch.set_num_threads(1)
    unknown = [name for name in names if name not in FAULTS]
    if unknown:
        sys.exit(f"unknown: {', '.join(unknown)}; known: {', '.join(FAULTS)}")
    rows, drivers = [], Drivers()
    for name in names or FAULTS:
        inject, text = FAULTS[name]
        rows.append(run_fault(name, inject, text, drivers))
        print(rows[-1], flush=True)
    drivers.stop()
    table = pd.DataFrame(rows).fillna("")
    print("| " + " | ".join(table) + " |\n|" + "---|" * len(table.columns))
    print("\n".join("| " + " | ".join(str(value).removesuffix(".0") for value in row) + " |" for row in table.values))
    return int(any(row.get(key) for row in rows for key in ("lost", "other losses", "twice", "unreadable")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
