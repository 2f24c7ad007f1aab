"""The contract of an engine: it starts a worker process for each attempt folder and yields the finished ones.

An engine passes files, never Python objects: the attempt folder holds ``trial.json`` (what to run, and the resources
it needs), the worker reads it and writes its results and ``record.json`` there. The folder must therefore be visible
under the same path to the engine and its workers. An engine needs no knowledge of the node: the worker detects
what it has (``running/node.py``). An engine that assigns cores writes them to ``placement.json``.

The local engine forks its workers from one process that has torch imported (``running/forked.py``). Another engine runs
``worker_command`` in ``worker_environment``, and does the same work in a fresh process.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import psutil

from scalebench.measure.device_lock import WAITING
from scalebench.running import processes
from scalebench.running.claims import take
from scalebench.store import StoreError, new_attempt, read_header, read_json, write_header, write_json, write_record


@dataclass(frozen=True)
class Resources:
    """What a trial needs, decided when it is planned.

    ``cpus`` is the least number of cores; an engine that has more may give more. ``memory_bytes`` and ``expected_s``
    are the plan's estimates. ``timeout_s`` limits the run of each trial, the wait for a GPU not counted. A trial that
    may ``share_device`` runs beside others on one GPU, and its times are then not exclusive. ``keep_order`` is whether
    the user chose the order in which trials start.
    """

    cpus: int = 1
    gpus: int = 0
    memory_bytes: int = 0
    processes: int = 1
    timeout_s: float | None = None
    expected_s: float = 0.0
    share_device: bool = False
    keep_order: bool = False


# What a worker's environment consists of; everything else, secrets among it, stays with the driver. HF_TOKEN is for
# private data sets.
ENVIRONMENT_NAMES = (
    *("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LANGUAGE", "TZ", "TMPDIR", "TEMP", "TMP", "VIRTUAL_ENV"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "CC", "CXX", "CPATH", "LIBRARY_PATH", "CONDA_PREFIX"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "SSL_CERT_FILE"),
)
ENVIRONMENT_PREFIXES = (
    *("PYTHON", "LC_", "XDG_", "OMP_", "GOMP_", "KMP_", "MKL_", "OPENBLAS_", "MALLOC_", "CUDA_", "NVIDIA_", "CUBLAS_"),
    *("CUDNN_", "NCCL_", "GLOO_", "TORCH", "PYTORCH_", "TRITON_", "HF_", "SLURM_", "SCALEBENCH_"),
)

Tick = Callable[[Sequence[Path]], None]
Begin = Callable[[Path], bool]


def no_tick(_: Sequence[Path]) -> None:
    """Ignore the running attempts."""


class Engine(Protocol):
    """Where trials run. An engine is a module in this folder with these names, and a line in ``ENGINES``."""

    def check(self, resources: Sequence[Resources]) -> None:
        """Raise ``InputError`` where the engine cannot run here, or has no place for what one of the trials needs."""

    def place(
        self, attempts: Sequence[Path], resources: Sequence[Resources], *, jobs: int | None = None,
        tick: Tick = no_tick, begin: Begin = take,
    ) -> Iterator[Path]:  # fmt: skip
        """Run ``worker_command(attempt)`` for every attempt folder and yield each folder once it has a record.

        ``resources`` has one entry per attempt. The engine decides order and number of simultaneous workers, at most
        ``jobs`` where that is given; it may submit everything at once and yields in the order of completion.
        A worker that ends without a record, is lost or exceeds its time limit still yields its folder, with a record
        by ``close_attempt``. ``tick`` is called at least once a second with the attempts believed to be running.
        Before it starts or submits a worker an engine calls ``begin(attempt)``, which makes the attempt's folder. Where
        that returns False another driver runs the trial: this attempt is neither started nor yielded.
        Closing the iterator stops running workers and withdraws submitted ones; their attempts get no record, so that
        a later run executes those trials.
        """
        ...


def worker_command(attempt: Path) -> list[str]:
    """Return the command that runs one attempt, on any node that sees its folder."""
    return [sys.executable, "-m", "scalebench.running.worker", str(attempt.resolve())]


def worker_environment(variables: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment variables, out of this process' own, that a worker gets."""
    return {
        name: value
        for name, value in variables.items()
        if name in ENVIRONMENT_NAMES or name.startswith(ENVIRONMENT_PREFIXES)
    }


def write_placement(
    attempt: Path, engine: str, *, cpus: Sequence[int] = (), gpus: Sequence[str] = (), exclusive: bool = False
) -> None:
    """Write what the engine assigns to a worker: cores, GPUs (none: not assigned), whether it has the device alone.

    Without this file the worker uses what it finds on the node, and its times are not marked exclusive.
    """
    write_json(attempt / "placement.json", {"engine": engine, "cpus": [*cpus], "gpus": [*gpus], "exclusive": exclusive})


def has_record(attempt: Path) -> bool:
    """Whether the attempt is finished, successfully or not."""
    return (attempt / "record.json").exists()


def another_attempt(attempt: Path) -> Path:
    """Return a new attempt of the same trial, with the next claim, for an engine that retries a lost one."""
    following, header = new_attempt(attempt.parents[2], attempt.parent.name), read_header(attempt)
    header |= {"attempt": following.name} | ({"claim": header["claim"] + 1} if "claim" in header else {})
    write_header(following, header)
    return following


def close_attempt(attempt: Path, status: str, error_class: str, message: str) -> None:
    """Write the record of an attempt whose worker wrote none; an existing one is kept."""
    if has_record(attempt):
        return
    header, path = read_header(attempt), attempt / "environment.json"
    environment = read_json(path) if path.exists() else {}
    row: dict[str, Any] = dict(header["identity"])
    row |= {name: value for name, value in environment.items() if name in header["columns"]}
    row["stop_step"] = last_step(attempt)
    write_record(attempt, row | {"status": status, "error_class": error_class, "error_message": message})


def close_ended(attempt: Path, code: int | None) -> None:
    """Write the record of an attempt whose worker has ended and wrote none.

    ``code`` is its exit code, negative for a signal; None for a worker that was stopped at its time limit.
    """
    if code is None:
        close_attempt(attempt, "timeout", "Timeout", "stopped at the time limit (timeout_s)")
        return
    reason = processes.exit_reason(code, processes.last_lines(attempt / "stderr.log"))
    if code in (-signal.SIGSEGV, -signal.SIGABRT) and read_header(attempt).get("memory_limit_bytes"):
        reason += "; libraries can crash where an allocation fails: perhaps run.memory_limit_bytes was reached"
    message = f"the worker ended without a record: {reason}"
    close_attempt(attempt, "killed" if code < 0 else "failed", "WorkerEnded", message)


def last_step(attempt: Path) -> int | None:
    """Return the last step in the worker's heartbeat, None before the first or while it is being written."""
    try:
        return int(read_json(attempt / "heartbeat.json")["step"])
    except (StoreError, KeyError):
        return None


def last_beat(attempt: Path) -> dict[str, Any]:
    """Return the worker's heartbeat: step, steps, memory_bytes and loss; empty before the first."""
    try:
        return read_json(attempt / "heartbeat.json")
    except StoreError:
        return {}


def is_waiting(attempt: Path) -> bool:
    """Whether the worker waits for a GPU that another process uses, or for the measured peak of its node."""
    return (attempt / WAITING).exists()


def limit_pauses(attempt: Path, pid: int) -> bool:
    """Whether a worker's time limit does not count now: it waits, and was not stopped by SIGSTOP meanwhile."""
    try:
        return is_waiting(attempt) and psutil.Process(pid).status() != psutil.STATUS_STOPPED
    except psutil.NoSuchProcess:
        return False
