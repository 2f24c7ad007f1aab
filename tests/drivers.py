"""Drivers for tests and faults: processes that run the command line, forked in milliseconds (``driver_server.py``)."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import sys
import tempfile
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import REPOSITORY, child_environment

from scalebench.running import fork_server, forked, processes
from scalebench.running.forked import ForkedWorker, ForkServer

COMMAND = (sys.executable, str(REPOSITORY / "tests" / "driver_server.py"))


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
    """Starts drivers. They end with this process.

    Their server is a process of its own, unless it was forked from this one.
    """

    def __init__(self) -> None:
        self.server: ForkServer | None = None

    def fork_server(self) -> None:
        """Fork the server from this process, which must have imported torch, and used none of its threads.

        What the server imports is imported here, where the tests will want it, too: once for both.
        """
        import driver_server

        for name in (*fork_server.PRELOADED, *driver_server.IMPORTED):
            importlib.import_module(name)
        gc.freeze()  # modules are no garbage: looking for some among them takes half a second, in both processes

        def fork(_: Sequence[str], environment: Mapping[str, str], **streams: Any) -> driver_server.ForkedServer:
            return driver_server.ForkedServer(environment, streams["stderr"], driver_server.run_driver)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(forked, "processes", types.SimpleNamespace(**vars(processes) | {"start": fork}))
            self.server = ForkServer(child_environment(OMP_NUM_THREADS="1"))

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

    def start_server(self, command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> Any:
        """Stand in for ``processes.start`` in ``running.forked``: fork a fork server instead of starting one."""
        if command != forked.COMMAND:
            return processes.start(command, environment, **streams)
        folder = Path(tempfile.mkdtemp())
        for name in ("requests", "replies"):
            os.mkfifo(folder / name)
        serve = f"import driver_server; driver_server.serve_from_fifos({dict(environment)!r})"
        server: Any = self.start(folder, [], before=serve)
        server.stdin, server.stdout = (folder / "requests").open("wb", 0), (folder / "replies").open("rb", 0)
        return server

    def stop(self) -> None:
        """End all drivers, and the fork servers among them."""
        forked.stop_servers()
        if self.server is not None and not self.server.stopped:
            self.server.stop()
