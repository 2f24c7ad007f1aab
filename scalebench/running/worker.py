"""One trial in one process: ``python -m scalebench.running.worker TRIAL_DIR``.

TRIAL_DIR is an attempt folder holding ``trial.json`` (what to do) and, from most engines, ``placement.json`` (where).
Whatever happens, the folder ends with a ``record.json`` that has the trial's status; the engine writes that of a worker
that was killed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Any

from scalebench.running.node import settle
from scalebench.store import read_header, write_json, write_record


def main(arguments: list[str] | None = None) -> int:
    """Run the trial in the given folder; exit status 0 when its status is ok, 1 otherwise."""
    (folder,) = sys.argv[1:] if arguments is None else arguments
    attempt = Path(folder)
    header = read_header(attempt)
    status = run_trial(attempt, header, settle(attempt, header))
    return 0 if status == "ok" else 1


def run_trial(attempt: Path, header: dict[str, Any], placement: dict[str, Any]) -> str:
    """Run one trial, write its record and return its status."""
    from scalebench.measure.environment import environment, environment_file
    from scalebench.workloads import WORKLOADS, read_trial
    from scalebench.workloads.recorder import Recorder

    trial, recorder = read_trial(header["trial"]), Recorder(attempt, header, placement)
    write_json(attempt / "environment.json", environment_file(trial.device_kind))
    outcome: dict[str, Any] = {"status": "ok"}
    try:
        WORKLOADS[trial.workload].run(trial, recorder)
    # The boundary of a trial: any error of a model, its data or a compiler becomes a row; stderr.log has the traceback.
    except Exception as error:  # noqa: BLE001
        traceback.print_exception(error)
        message = str(error).strip()[:2000]
        outcome = {"status": status_of(error), "error_class": type(error).__name__, "error_message": message}
    recorder.columns["wall_time_s"] = recorder.age_s()
    row = recorder.columns | environment(trial.device_kind) | outcome
    write_record(attempt, row | {"invalid_reason": invalid_reason(row)})
    return str(outcome["status"])


def status_of(error: Exception) -> str:
    """Return the trial's status after an exception."""
    import torch

    from scalebench.families import Unsupported
    from scalebench.workloads.loop import Diverged

    # On a CPU torch reports a failed allocation as a plain RuntimeError.
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return "oom"
    if isinstance(error, Diverged):
        return "diverged"
    return "unsupported" if isinstance(error, Unsupported) else "failed"


def invalid_reason(row: dict[str, Any]) -> str | None:
    """Return why a row's numbers are impossible, or None. Such a row stays visible and out of the fits."""
    if (row.get("mfu") or 0) > 1:
        return f"achieved {row['mfu']:.0%} of the peak ({row['peak_source']})"
    negative = [name for name, value in row.items() if name.endswith(("_s", "_bytes")) and (value or 0) < 0]
    return f"negative {', '.join(negative)}" if negative else None


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is written. A regular exit would wait seconds for CUDA and for compilers' processes, which the engine
    # stops anyway; and the next trial waits for the GPU as long as this process lives.
    os._exit(code)
