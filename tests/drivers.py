"""Drivers for tests and faults: processes that run the command line, forked in milliseconds (``driver_server.py``)."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil
from support import REPOSITORY, child_environment

from scalebench.running.forked import ForkedWorker, ForkServer

COMMAND = (sys.executable, str(REPOSITORY / "tests" / "driver_server.py"))
# What a driver runs first where the peak of the CPU does not matter: its measurement takes a second per results folder.
NO_PEAK = """
from scalebench.measure.hardware import Peak
from scalebench.running import node
node.cpu_peak = lambda precision, threads: Peak(1e10, "a test")
"""


class Driver(ForkedWorker):
    """A running command, the leader of its process group; its output is in two files of ``folder``."""

    folder: Path

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it without a chance to stop its workers."""
        self.send_signal(signal.SIGKILL)

    @property
    def out(self) -> str:
        """What it has written to stdout."""
        return (self.folder / "stdout.log").read_text(encoding="utf-8", errors="replace")

    @property
    def err(self) -> str:
        """What it has written to stderr."""
        return (self.folder / "stderr.log").read_text(encoding="utf-8", errors="replace")

    def workers(self) -> list[psutil.Process]:
        """Return the workers that its fork server has forked."""
        try:
            servers = psutil.Process(self.pid).children()
            return [worker for server in servers for worker in server.children()]
        except psutil.NoSuchProcess:
            return []


class Drivers:
    """Starts drivers. They end with this process."""

    def __init__(self) -> None:
        self.server: ForkServer | None = None

    def start(self, cwd: Path, arguments: Sequence[str | Path], before: str = "", **variables: str) -> Driver:
        """Start ``scalebench`` with these arguments and environment variables, in the folder ``cwd``.

        ``before`` is Python code that the process runs first. Output goes to a folder in ``cwd``.
        """
        if self.server is None or self.server.ended:
            self.server = ForkServer(child_environment(OMP_NUM_THREADS="1"), COMMAND)
        folder = cwd / f".driver-{len([*cwd.glob('.driver-*')])}"
        folder.mkdir()
        request = {"cwd": str(cwd), "arguments": [str(word) for word in arguments], "before": before}
        (folder / "driver.json").write_text(json.dumps(request), encoding="utf-8")
        worker = self.server.start(folder, child_environment(**variables))
        driver = Driver(self.server, worker.pid)
        driver.folder = folder
        return driver

    def stop(self) -> None:
        """End all drivers."""
        if self.server is not None and not self.server.stopped:
            self.server.stop()
