"""Runs the processes of a comparison in turn, and starts a killed one again without the provider that killed it."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import scalekernels

from scalebench.comparison.process_state import CAPTURE_BROKEN, DEVICE_LOST, WAITING
from scalebench.comparison.turns import last_turn
from scalebench.running import processes
from scalebench.store import StoreError, read_json, write_json

POLL_S = 0.1
AGAIN = "again"  # the process ended in order to be started again, having written down what to do differently
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Limits:
    """When to stop (in ``time.monotonic``), seconds that a step may take, and a function to call meanwhile."""

    deadline: float
    patience_s: float
    waiting: Callable[[], None]


class DeadlineReached(Exception):  # noqa: N818 - a state, not an error
    """The comparison has used up its time."""


class ProcessLost(RuntimeError):  # noqa: N818 - the name is what happened
    """A process ended, and no provider can be blamed; the message has how it ended and where its log is."""


def run_processes(
    run: Path, tick: Tick = lambda _: None, *, deadline: float = math.inf, patience_s: float = math.inf,
    waiting: Callable[[], None] = lambda: None,
) -> str:  # fmt: skip
    """Measure every case in every process; return why it ended early: "deadline", "interrupted", or "" if it did not.

    ``tick`` is called several times a second with the fraction done; ``waiting`` is called as often while another
    measurement uses the GPU, which counts towards the deadline but not as a hang. At ``deadline`` (in
    ``time.monotonic``), on an interrupt and on SIGTERM, the running process is stopped; the cases it finished are kept.
    A step longer than ``patience_s`` counts as hung. Raises ``ProcessLost`` when a process ends and it is not known
    which provider was running.
    """
    request = read_json(run / "request.json")
    try:
        with _terminated_as_interrupt():
            for index in range(request["processes"]):
                folder = run / f"process-{index}"
                folder.mkdir(exist_ok=True)
                limits = Limits(deadline, patience_s, waiting)
                while (cause := _run_once(run, folder, index, request, tick, limits)) is not None:
                    if cause["status"] != AGAIN:
                        _blame(folder, request, cause)
    except DeadlineReached:
        return "deadline"
    except KeyboardInterrupt:
        return "interrupted"
    return ""


@contextlib.contextmanager
def _terminated_as_interrupt() -> Iterator[None]:
    """Treat SIGTERM like Ctrl-C; without effect outside the main thread, where signals cannot be handled."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(_number: int, _frame: Any) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_once(
    run: Path, folder: Path, index: int, request: dict[str, Any], tick: Tick, limits: Limits
) -> dict[str, Any] | None:
    """Run one process to its end; return None if it measured everything, otherwise how it died."""
    # Threads that spin while waiting would take the cores that the next provider is timed on, and look like work that
    # goes on after a call.
    quiet = {"OMP_WAIT_POLICY": "passive", "KMP_BLOCKTIME": "0"}
    environment = os.environ | quiet | {"PYTHONPATH": os.pathsep.join(_roots())}
    command = [sys.executable, "-m", "scalebench.comparison.process", str(run), str(index)]
    with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
        process = processes.start(command, environment, stdout=out, stderr=err)
    progress = _Progress(folder / "phase.json")
    try:
        while process.poll() is None:
            tick((index + len(list(folder.glob("case-*.json"))) / len(request["cases"])) / request["processes"])
            if time.monotonic() > limits.deadline:
                raise DeadlineReached
            if _waits(folder):
                limits.waiting()
            elif _silent_s(progress) > limits.patience_s:
                message = f"no progress for {limits.patience_s:.0f} s"
                return {"status": "killed", "error_class": "Hung", "error_message": message}
            time.sleep(POLL_S)
    finally:
        processes.stop(process)
    return None if process.returncode == 0 else _cause(folder, process.returncode)


def _roots() -> list[str]:
    """Return the import paths of these packages, so that the child uses the same ones, installed or not."""
    own = (Path(__file__).resolve().parents[2], Path(str(scalekernels.__file__)).resolve().parents[1])
    return [*dict.fromkeys(map(str, own)), *filter(None, [os.environ.get("PYTHONPATH")])]


class _Progress:
    """When a process last wrote its file, by this process's monotonic clock: the time of day may be set meanwhile."""

    def __init__(self, path: Path) -> None:
        self.path, self.since_s, self.written_ns = path, time.monotonic(), 0


def _silent_s(progress: _Progress) -> float:
    """Return the seconds since the last progress of a process, 0 before its first."""
    written_ns = progress.path.stat().st_mtime_ns if progress.path.exists() else None
    if written_ns is None or written_ns != progress.written_ns:
        progress.since_s, progress.written_ns = time.monotonic(), written_ns or 0
    return time.monotonic() - progress.since_s if progress.written_ns else 0.0


def _waits(folder: Path) -> bool:
    """Whether the process waits while another measurement uses the GPU."""
    try:
        return bool(read_json(folder / "phase.json")["phase"] == WAITING)
    except StoreError:
        return False


def _cause(folder: Path, code: int) -> dict[str, Any]:
    if code == CAPTURE_BROKEN:
        return {"status": AGAIN}
    lost = folder / "lost.json"
    if code == DEVICE_LOST and lost.exists():
        cause = read_json(lost)
        lost.unlink()
        return cause
    reason = processes.exit_reason(code, processes.last_lines(folder / "stderr.log"))
    return {"status": "killed" if code < 0 else "failed", "error_class": "ProcessEnded", "error_message": reason}


def _blame(folder: Path, request: dict[str, Any], cause: dict[str, Any]) -> None:
    """Record which provider killed the process, so that the next start leaves it out of that case."""
    try:
        progress = read_json(folder / "phase.json")
    except StoreError:
        progress = {"case": -1, "provider": "", "phase": "start"}
    names = [name for name in request["providers"] if name == progress["provider"]] or [
        name for name in progress["provider"].split(", ") if name in request["providers"]
    ]
    if progress["phase"] == "samples" and (turn := last_turn(folder / "turn.txt")) in names:
        names = [turn]
    path = folder / "crashed.json"
    crashed = read_json(path)["providers"] if path.exists() else []
    if not names or any(crash["case"] == progress["case"] and crash["provider"] in names for crash in crashed):
        reason = f"{cause['error_class']}: {cause['error_message']}"
        raise ProcessLost(f"a process ended during {progress['phase']}: {reason}; see {folder / 'stderr.log'}")
    during = {"case": progress["case"], "error_message": f"{cause['error_message']} during {progress['phase']}"}
    crashed += [cause | during | {"provider": name} for name in names]
    (folder / "phase.json").unlink(missing_ok=True)
    write_json(path, {"providers": crashed})
