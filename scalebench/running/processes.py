"""Process groups: start a program with everything it may start, stop all of it, and say how it ended.

A program runs in its own session, whose process group it leads: what it starts belongs to the same group and is
stopped with it, and a Ctrl-C at the terminal reaches only the program that started it. Standard library only, as the
GPU tools use this before anything else is installed.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

GRACE_S = 3.0  # between SIGTERM and SIGKILL
Stream = int | IO[Any] | None


def start(
    command: Sequence[str], environment: Mapping[str, str], *,
    stdin: Stream = subprocess.DEVNULL, stdout: Stream = None, stderr: Stream = None, cwd: Path | None = None,
) -> subprocess.Popen[bytes]:  # fmt: skip
    """Start a program as the leader of a new session and process group; pipes carry bytes."""
    return subprocess.Popen(
        command, env=dict(environment), stdin=stdin, stdout=stdout, stderr=stderr, cwd=cwd, start_new_session=True
    )


def stop(process: subprocess.Popen[Any], *, patience_s: float = 0.0, grace_s: float = GRACE_S) -> int:
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


def _wait(process: subprocess.Popen[Any], seconds: float) -> None:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return


def _signal(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # no such group; macOS: only zombies are left in it
        return


def exit_reason(code: int, message: str = "") -> str:
    """Say how a process ended: "SIGKILL", or "exit status 1: ImportError: …" with the ``message`` it left, if any."""
    if code >= 0:
        return f"exit status {code}: {message}".removesuffix(": ")
    names = {number.value: number.name for number in signal.Signals}  # real-time signals have no name
    return names.get(-code, f"signal {-code}")


def last_lines(log: Path, lines: int = 1, characters: int = 2000) -> str:
    """Return the last lines of a log joined by " | ", at most ``characters`` from their end; "" without a log."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return " | ".join(text.strip().splitlines()[-lines:])[-characters:]
