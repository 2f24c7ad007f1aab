"""One trial in one process: ``python -m scalebench.running.worker TRIAL_DIR``, or a fork of ``fork_server.py``.

TRIAL_DIR is an attempt folder holding ``trial.json`` (what to do) and, from most engines, ``placement.json`` (where).
Whatever happens, the folder ends with a ``record.json`` that has the trial's status; the engine writes that of a worker
that was killed.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from scalebench.running import processes
from scalebench.running.batches import members_of
from scalebench.running.limits import allocation_failed, limit_memory, shortage, with_smaller_micro_batches
from scalebench.running.members import run_members
from scalebench.running.node import settle
from scalebench.running.ranks import run_processes, run_rank
from scalebench.store import read_header, write_json, write_record

SETTLED = ("ok", "diverged")  # another attempt would end as this one did

if TYPE_CHECKING:
    from scalebench.study import Trial
    from scalebench.workloads.recorder import Recorder


def run_and_exit(folder: str, parent: str | None = None) -> NoReturn:
    """Run the trial in the given folder and end the process as soon as everything is written.

    With a ``parent``, the id of the trial's worker, this is one of its several processes (``ranks.py``).
    A regular exit would wait seconds for CUDA and for compilers' processes, which the engine stops anyway; and the next
    trial waits for the GPU as long as this process runs.
    """
    code = main(folder) if parent is None else run_rank(Path(folder), int(parent), trial_row)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def main(folder: str) -> int:
    """Run the trial in the given folder; exit status 0 when its status is ok, 1 otherwise."""
    attempt = Path(folder)
    header = read_header(attempt)
    placement = settle(attempt, header)
    if header["resources"]["processes"] > 1:
        ends = [(attempt, run_processes(attempt, header, placement))]
    elif len(members_of(attempt)) > 1:
        ends = run_members(attempt, placement, started, write_end)
    else:
        ends = [(attempt, run_trial(attempt, header, placement))]
    for ended, status in ends:
        if status in SETTLED:
            from scalebench.workloads.resuming import delete_snapshots

            delete_snapshots(ended.parent)
    return 0 if all(status == "ok" for _, status in ends) else 1


def run_trial(attempt: Path, header: dict[str, Any], placement: dict[str, Any]) -> str:
    """Run one trial, write its record and return its status."""
    row = trial_row(attempt, header, placement)
    write_record(attempt, row)
    return str(row["status"])


def trial_row(attempt: Path, header: dict[str, Any], placement: dict[str, Any]) -> dict[str, Any]:
    """Run one trial and return its record; what it measured sample by sample is written to the attempt's folder."""
    trial, recorder = started(attempt, header, placement)
    limit_memory(header.get("memory_limit_bytes"))
    outcome = attempt_trial(trial, recorder)
    # One of several processes cannot change alone what all of them do.
    accumulate = header.get("on_oom") == "accumulate" and header["resources"]["processes"] == 1
    while accumulate and outcome["status"] == "oom" and (smaller := with_smaller_micro_batches(trial)):
        trial = smaller
        print(f"out of memory: again with {trial.spec.accumulation} micro-batches", file=sys.stderr)
        outcome = attempt_trial(trial, recorder)
        recorder.columns["accumulation"] = trial.spec.accumulation
    if not recorder.columns.get("resumed_from_step"):  # else most of the trial's time was another process'
        recorder.columns["wall_time_s"] = recorder.age_s()
    return finished_row(trial, recorder, outcome)


def started(attempt: Path, header: dict[str, Any], placement: dict[str, Any]) -> tuple[Trial, Recorder]:
    """Return an attempt's trial with its recorder, and write its ``environment.json``."""
    from scalebench.measure.environment import environment_file
    from scalebench.workloads import read_trial
    from scalebench.workloads.recorder import Recorder

    trial = read_trial(header["trial"])
    write_json(attempt / "environment.json", environment_file(trial.device_kind))
    return trial, Recorder(attempt, header, placement)


def finished_row(trial: Trial, recorder: Recorder, outcome: dict[str, Any]) -> dict[str, Any]:
    """Return the record of a trial with its outcome, the environment, and who else ran."""
    from scalebench.measure.environment import environment

    recorder.columns |= recorder.exclusivity()
    row = recorder.columns | environment(trial.device_kind) | outcome
    return row | {"invalid_reason": invalid_reason(row)}


def write_end(trial: Trial, recorder: Recorder, error: Exception | None) -> str:
    """Write the record of a trial that was trained together with others, and return its status."""
    recorder.columns["ensemble_time_s"] = recorder.age_s()
    row = finished_row(trial, recorder, {"status": "ok"} if error is None else error_columns(error))
    write_record(recorder.attempt, row)
    return str(row["status"])


def attempt_trial(trial: Trial, recorder: Recorder) -> dict[str, Any]:
    """Run a trial and return the columns of its outcome; one that ran out of memory has the peak so far."""
    import torch

    from scalebench.measure.memory import peak_columns
    from scalebench.workloads import WORKLOADS

    outcome: dict[str, Any] = {"status": "ok"}
    try:
        WORKLOADS[trial.workload].run(trial, recorder)
    # The boundary of a trial: any error of a model, its data or a compiler becomes a row; stderr.log has the traceback.
    except Exception as error:  # noqa: BLE001
        outcome = error_columns(error)
    if outcome["status"] == "oom":
        recorder.columns |= peak_columns(torch.device(trial.device_kind))
    return outcome


def error_columns(error: Exception) -> dict[str, Any]:
    """Return the columns of a trial that an exception ended, and print its traceback."""
    traceback.print_exception(error)
    status = status_of(error)
    message = str(error).strip()[:2000] or (shortage() if status == "oom" else "")
    return {"status": status, "error_class": type(error).__name__, "error_message": message}


def status_of(error: Exception) -> str:
    """Return the trial's status after an exception."""
    from scalekernels import Unsupported

    from scalebench.workloads.loop import Diverged

    if allocation_failed(error):
        return "oom"
    if isinstance(error, Diverged):
        return "diverged"
    return "unsupported" if isinstance(error, Unsupported) else "failed"


def invalid_reason(row: dict[str, Any]) -> str | None:
    """Return why a row's numbers are impossible, or None. Such a row stays visible and out of the fits.

    A reason that the workload recorded comes first.
    """
    if row.get("invalid_reason"):
        return str(row["invalid_reason"])
    if (row.get("mfu") or 0) > 1:
        return f"achieved {row['mfu']:.0%} of the peak ({row['peak_source']})"
    # A text is a field of a user's model.
    numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
    negative = [name for name, value in numbers.items() if name.endswith(("_s", "_bytes")) and value < 0]
    return f"negative {', '.join(negative)}" if negative else None


if __name__ == "__main__":
    processes.end_with_parent(os.getppid())  # the engine's process on this node
    run_and_exit(*sys.argv[1:])
