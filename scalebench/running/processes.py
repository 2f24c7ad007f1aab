"""Process groups: start a program with everything it may start, stop all of it, and report how it ended.

A program runs in its own session, whose process group it leads: what it starts belongs to the same group and is
stopped with it, and a Ctrl-C at the terminal reaches only the program that started it. Standard library only, as the
GPU tools use this before anything else is installed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

GRACE_S = 3.0  # between SIGTERM and SIGKILL
PARENT_EVERY_S = 1.0  # how often a process looks for its parent where the kernel does not tell it
PR_SET_PDEATHSIG = 1  # from linux/prctl.h
Stream = int | IO[Any] | None


class Process(Protocol):
    """The leader of a process group: a ``subprocess.Popen``, or a worker of the fork server."""

    @property
    def pid(self) -> int:
        """Its process id, which is also the id of its group."""

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return its exit code; raise ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""


def start(
    command: Sequence[str], environment: Mapping[str, str], *,
    stdin: Stream = subprocess.DEVNULL, stdout: Stream = None, stderr: Stream = None, cwd: Path | None = None,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a program as the leader of a new session and process group; pipes carry bytes."""
    return subprocess.Popen(
        command, env=dict(environment), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, start_new_session=True
    )


def stop(process: Process, *, patience_s: float = 0.0, grace_s: float = GRACE_S) -> int:
    """End a process group and return the exit code of its leader, negative for a signal.

    The leader has ``patience_s`` to end by itself; then the group gets SIGTERM, and ``grace_s`` after it SIGKILL.
    What the leader left running is killed as well, also when the leader had ended before.
    """
    if patience_s > 0:
        _wait(process, patience_s)
    if process.poll() is None:
        _signal(process.pid, signal.SIGTERM)
        _wait(process, grace_s)
    _signal(process.pid, signal.SIGKILL)
    return process.wait()


def stop_groups(leaders: Iterable[int], *, grace_s: float = GRACE_S) -> None:
    """End the process groups that these children of this process lead: SIGTERM, and ``grace_s`` later SIGKILL."""
    leaders = set(leaders)
    for pid in leaders:
        _signal(pid, signal.SIGTERM)
    running, deadline = set(leaders), time.monotonic() + grace_s
    while running and time.monotonic() < deadline:
        running -= {pid for pid in running if os.waitpid(pid, os.WNOHANG) != (0, 0)}
        time.sleep(0.01)
    for pid in leaders:
        _signal(pid, signal.SIGKILL)


def end_with_parent(parent: int) -> None:
    """Have this process killed when the process ``parent``, which forked it, has ended.

    The kernel does that on Linux. Elsewhere a thread looks for the parent every ``PARENT_EVERY_S`` and then kills the
    process group, which this process must lead.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before the call
            os.kill(os.getpid(), signal.SIGKILL)
    else:
        threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_EVERY_S)
    os.killpg(0, signal.SIGKILL)


def _wait(process: Process, seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # no such group; macOS: only zombies are left in it
        return


def exit_reason(code: int, message: str = "") -> str:
    """Return how a process ended: "SIGKILL", or "exit status 1: ImportError: …" with its ``message``, if any."""
    if code >= 0:
        return f"exit status {code}: {message}".removesuffix(": ")
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have no name
    return names.get(-code, f"signal {-code}")


def last_lines(log: Path, lines: int = 1, characters: int = 2000) -> str:
    """Return the last lines of a log joined by " | ", at most ``characters`` from their end; "" without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 8 * characters))  # a worker may have written gigabytes
            text = file.read().decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
    return " | ".join(text.strip().splitlines()[-lines:])[-characters:]
