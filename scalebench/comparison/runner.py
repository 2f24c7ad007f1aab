"""Runs a comparison's processes one after another, and starts one again without the provider that killed it."""

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

from scalebench.comparison.process import CAPTURE_BROKEN, DEVICE_LOST, WAITING
from scalebench.comparison.turns import last_turn
from scalebench.running import processes
from scalebench.store import StoreError, read_json, write_json

POLL_S = 0.1
AGAIN = "again"  # a process ended in order to be started again: it noted what to do otherwise
Tick = Callable[[float], None]


@dataclass(frozen=True)
class Limits:
    """When to stop (of ``time.monotonic``), how long a step may take, in seconds, and who hears of waiting."""

    deadline: float
    patience_s: float
    waiting: Callable[[], None]


class DeadlineReached(Exception):  # noqa: N818 - a state, not an error
    """The time given to a comparison is over."""


class ProcessLost(RuntimeError):  # noqa: N818 - it says what happened
    """A process that ended although no provider can be blamed; the message says how, and where its log is."""


def run_processes(
    run: Path, tick: Tick = lambda _: None, *, deadline: float = math.inf, patience_s: float = math.inf,
    waiting: Callable[[], None] = lambda: None,
) -> str:  # fmt: skip
    """Measure every case in every process; return why that ended early: "", "deadline" or "interrupted".

    ``tick`` hears the share that is done, many times a second, and ``waiting`` is called just as often while another
    measurement has the GPU; that time counts towards the deadline alone. At ``deadline`` (of ``time.monotonic``), at an
    interrupt and at SIGTERM the process that runs is ended, and what it had finished stays. A step that takes
    ``patience_s`` is taken for hung. Raises ``ProcessLost`` when a process ends without word of a provider to blame.
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
    """Let SIGTERM do what an interrupt from the keyboard does, where this is the main thread."""
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
    """Run one process to its end; None when it measured everything, otherwise how it died."""
    # Threads that spin while waiting would take the cores that the next provider is timed on.
    environment = {"OMP_WAIT_POLICY": "passive"} | os.environ | {"PYTHONPATH": os.pathsep.join(_roots())}
    command = [sys.executable, "-m", "scalebench.comparison.process", str(run), str(index)]
    with (folder / "stdout.log").open("ab") as out, (folder / "stderr.log").open("ab") as err:
        process = processes.start(command, environment, stdout=out, stderr=err)
    begun = time.time()
    try:
        while process.poll() is None:
            tick((index + len(list(folder.glob("case-*.json"))) / len(request["cases"])) / request["processes"])
            if time.monotonic() > limits.deadline:
                raise DeadlineReached
            if _waits(folder):
                limits.waiting()
            elif _silent_s(folder, begun) > limits.patience_s:
                told = f"no progress for {limits.patience_s:.0f} s"
                return {"status": "killed", "error_class": "Hung", "error_message": told}
            time.sleep(POLL_S)
    finally:
        processes.stop(process)
    return None if process.returncode == 0 else _cause(folder, process.returncode)


def _roots() -> list[str]:
    """Return where the child finds the very packages that run here, also where they are not installed."""
    own = (Path(__file__).resolve().parents[2], Path(str(scalekernels.__file__)).resolve().parents[1])
    return [*dict.fromkeys(map(str, own)), *filter(None, [os.environ.get("PYTHONPATH")])]


def _silent_s(folder: Path, begun: float) -> float:
    """Return the seconds since the last word of the process that began at ``begun`` (of ``time.time``)."""
    at = folder / "at.json"
    return time.time() - max(begun, at.stat().st_mtime) if at.exists() else 0.0


def _waits(folder: Path) -> bool:
    """Say whether another measurement has the GPU."""
    try:
        return bool(read_json(folder / "at.json")["phase"] == WAITING)
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
    """Note which provider a process died of, so that it is left out of that case when the process starts again."""
    try:
        at = read_json(folder / "at.json")
    except StoreError:
        at = {"case": -1, "provider": "", "phase": "start"}
    names = [name for name in request["providers"] if name == at["provider"]] or [
        name for name in at["provider"].split(", ") if name in request["providers"]
    ]
    if at["phase"] == "samples" and (turn := last_turn(folder / "turn.txt")) in names:
        names = [turn]
    path = folder / "crashed.json"
    crashed = read_json(path)["providers"] if path.exists() else []
    if not names or any(crash["case"] == at["case"] and crash["provider"] in names for crash in crashed):
        told = f"{cause['error_class']}: {cause['error_message']}"
        raise ProcessLost(f"a process ended during {at['phase']}: {told}; see {folder / 'stderr.log'}")
    during = {"case": at["case"], "error_message": f"{cause['error_message']} during {at['phase']}"}
    crashed += [cause | during | {"provider": name} for name in names]
    (folder / "at.json").unlink(missing_ok=True)
    write_json(path, {"providers": crashed})
