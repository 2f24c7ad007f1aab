"""Run trials on this machine: ``jobs`` workers at a time, each on cores of its own, each in a process group."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from scalebench.measure.device_lock import WAITING
from scalebench.store import StoreError, read_json, write_json, write_record

POLL_S = 0.05
GRACE_S = 3.0  # between asking a worker to stop and stopping it


@dataclass(frozen=True)
class Slot:
    """Where one worker runs: its cores, whether it has them (or the GPU) to itself, and the device's peaks.

    ``peaks`` maps a precision to {"flops_per_s": …, "source": …}.
    """

    cpus: tuple[int, ...]
    exclusive: bool
    peaks: Mapping[str, Mapping[str, Any]]


@dataclass
class _Running:
    attempt: Path
    slot: Slot
    process: subprocess.Popen[bytes]
    timeout_s: float | None
    deadline: float | None


def usable_cpus() -> list[int]:
    """Return the cores this process may use."""
    process = psutil.Process()
    return list(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count() or 1))


def core_sets(jobs: int) -> list[tuple[int, ...]]:
    """Deal the usable cores to ``jobs`` workers; with more workers than cores they share, and are not exclusive."""
    cpus = usable_cpus()
    if jobs >= len(cpus):
        return [(cpus[job % len(cpus)],) for job in range(jobs)]
    each = len(cpus) // jobs
    return [tuple(cpus[job * each : (job + 1) * each]) for job in range(jobs)]


def place(
    attempts: Sequence[Path],
    slots: Sequence[Slot],
    timeout_s: float | None = None,
    tick: Callable[[Sequence[Path]], None] = lambda _: None,
) -> Iterator[Path]:
    """Run each attempt folder in a worker, yielding those that finished, each with its record written.

    ``tick`` is told, many times a second, which attempts are running. A worker past ``timeout_s``, waiting for a GPU
    apart, is stopped with everything it started. Closing the iterator (or an interrupt) stops all workers; their
    attempts keep no record, so that a later run takes them up.
    """
    waiting, free = list(reversed(attempts)), list(reversed(slots))
    running: list[_Running] = []
    try:
        while waiting or running:
            while waiting and free:
                running.append(_start(waiting.pop(), free.pop(), timeout_s))
            for worker in [worker for worker in running if _finished(worker)]:
                running.remove(worker)
                free.append(worker.slot)
                yield worker.attempt
            tick([worker.attempt for worker in running])
            time.sleep(POLL_S)
    finally:
        for worker in running:
            _stop(worker)


def _start(attempt: Path, slot: Slot, timeout_s: float | None) -> _Running:
    write_json(attempt / "placement.json", asdict(slot) | {"threads": len(slot.cpus)})
    threads = str(len(slot.cpus))
    # Two workers that spin while waiting cost each other a factor of three on two cores.
    environment = os.environ | {
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "passive",
        "TORCHINDUCTOR_COMPILE_THREADS": threads,
    }
    with (attempt / "stdout.log").open("wb") as out, (attempt / "stderr.log").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "scalebench.running.worker", str(attempt)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env=environment,
            start_new_session=True,
        )
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    return _Running(attempt, slot, process, timeout_s, deadline)


def _finished(worker: _Running) -> bool:
    """Say whether a worker is done, having written the record that it could not write itself."""
    code = worker.process.poll()
    if code is None:
        if worker.timeout_s is not None and waits(worker.attempt):  # the limit counts from when it has the GPU
            worker.deadline = time.monotonic() + worker.timeout_s
        if worker.deadline is None or time.monotonic() < worker.deadline:
            return False
        _stop(worker)
        if not (worker.attempt / "record.json").exists():
            _close(worker.attempt, "timeout", "Timeout", "stopped at the time limit (timeout_s)")
        return True
    _stop(worker)  # what the trial started and left behind
    if not (worker.attempt / "record.json").exists():
        status = "killed" if code < 0 else "failed"
        cause = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit status {code}: {_last_line(worker)}"
        _close(worker.attempt, status, "WorkerEnded", f"the worker ended without a record: {cause}")
    return True


def last_step(attempt: Path) -> int | None:
    """Return the last step that a worker told of, or None; a heartbeat caught half-written tells nothing."""
    try:
        return int(read_json(attempt / "heartbeat.json")["step"])
    except (StoreError, KeyError):
        return None


def waits(attempt: Path) -> bool:
    """Say whether the worker of an attempt waits for the GPU that another one has."""
    return (attempt / WAITING).exists()


def _last_line(worker: _Running) -> str:
    lines = (worker.attempt / "stderr.log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def _close(attempt: Path, status: str, error_class: str, message: str) -> None:
    """Write the record of a worker that could not."""
    header = read_json(attempt / "trial.json")
    row: dict[str, Any] = dict(header["identity"])
    seen = attempt / "environment.json"
    row |= {
        name: value for name, value in (read_json(seen) if seen.exists() else {}).items() if name in header["columns"]
    }
    row["stop_step"] = last_step(attempt)
    write_record(attempt, row | {"status": status, "error_class": error_class, "error_message": message})


def _stop(worker: _Running) -> None:
    """End the worker's whole process group: ask, wait, then insist."""
    for signal_number, grace in ((signal.SIGTERM, GRACE_S), (signal.SIGKILL, GRACE_S)):
        try:
            os.killpg(worker.process.pid, signal_number)
        except ProcessLookupError:
            break
        try:
            worker.process.wait(grace)
        except subprocess.TimeoutExpired:
            continue
    worker.process.wait()
