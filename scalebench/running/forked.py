"""Workers forked by a fork server, from the driver's side: start one, and wait for its end.

One server serves all runs of this process that have the same environment variables. It ends with the process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scalebench.errors import InputError
from scalebench.running import processes

# Libraries read these when they are loaded, which is before the fork. A thread of the server would not exist in its
# workers, and two workers that spin while waiting cost each other a factor of three on two cores.
BEFORE_IMPORT = {
    "OMP_WAIT_POLICY": "passive",
    "OPENBLAS_NUM_THREADS": "1",
    "JE_ARROW_MALLOC_CONF": "background_thread:false",
}
COMMAND = (sys.executable, "-m", "scalebench.running.fork_server")
SERVER_ENDED = -9  # what a worker without a server ends by


class ForkServerError(InputError):
    """The fork server did not start, or has ended; the message has the reason and the last line that it wrote."""


class ForkedWorker:
    """A worker, the leader of its own process group; a ``processes.Process``."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.server, self.pid = server, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while the worker runs."""
        if self.returncode is None:
            self.returncode = self.server.exit_code(self.pid)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code; raise ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise subprocess.TimeoutExpired(f"worker {self.pid}", timeout or 0.0)
            self.server.listen(left)
        return code


class ForkServer:
    """A process of ``fork_server.py``, or of another ``command`` with the same protocol, and the pipes to it."""

    def __init__(self, environment: Mapping[str, str], command: Sequence[str] = ()) -> None:
        self.environment = dict(environment)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        self.process = processes.start(
            command or COMMAND, self.environment | BEFORE_IMPORT,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._lock = threading.Lock()
        self._received = b""
        self._replies: list[dict[str, Any]] = []
        self._codes: dict[int, int] = {}
        self._started: set[int] = set()
        self.ended = False
        self.threads = self._request(None, "ready")

    def start(self, attempt: Path, environment: Mapping[str, str]) -> ForkedWorker:
        """Fork the worker of an attempt, with these environment variables; raises ``ForkServerError``."""
        request = {"start": str(attempt.resolve()), "cwd": os.getcwd(), "environment": dict(environment)}  # noqa: PTH109
        with self._lock:
            pid = self._request(request, "started")
        self._started.add(pid)
        return ForkedWorker(self, pid)

    @property
    def stopped(self) -> bool:
        """Whether ``stop`` was called."""
        return self._errors.closed

    @property
    def running(self) -> bool:
        """Whether a worker has not ended, as far as the server has reported."""
        self.listen(0.0)
        return not self.ended and not self._started <= set(self._codes)

    def exit_code(self, pid: int) -> int | None:
        """Return how a worker ended, None while it runs; workers of a server that has ended are killed."""
        self.listen(0.0)
        return self._codes.get(pid, SERVER_ENDED if self.ended else None)

    def listen(self, timeout: float | None) -> None:
        """Wait up to ``timeout`` seconds for a reply; None waits for one."""
        with self._lock:
            self._listen(timeout)

    def stop(self) -> None:
        """End the server, and with it every worker that still runs."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.ended = True
        self.process.stdin.close()
        processes.stop(self.process, patience_s=2 * processes.GRACE_S)
        self.process.stdout.close()
        self._errors.close()

    def _request(self, request: Mapping[str, Any] | None, reply: str) -> int:
        """Send a request and return the value of its reply; a server whose reply is not waited for is stopped."""
        assert self.process.stdin is not None
        with contextlib.ExitStack() as interrupted:
            interrupted.callback(self.stop)
            if request is not None:
                with contextlib.suppress(BrokenPipeError):  # it has ended, as the missing answer tells
                    os.write(self.process.stdin.fileno(), json.dumps(request).encode() + b"\n")
            value = self._answer(reply)
            interrupted.pop_all()
        return value

    def _answer(self, key: str) -> int:
        """Wait for the reply that has this key and return its value."""
        while True:
            for reply in self._replies:
                if key in reply:
                    self._replies.remove(reply)
                    return int(reply[key])
            if self.ended:
                code = processes.stop(self.process)
                self._errors.seek(0)
                words = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
                raise ForkServerError(f"the fork server ended: {processes.exit_reason(code, ''.join(words))}")
            self._listen(None)

    def _listen(self, timeout: float | None) -> None:
        assert self.process.stdout is not None
        pipe = self.process.stdout.fileno()
        if self.ended or not select.select([pipe], [], [], timeout)[0]:
            return
        received = os.read(pipe, 65536)
        self.ended = not received
        *lines, self._received = (self._received + received).split(b"\n")
        for reply in map(json.loads, lines):
            if "ended" in reply:
                self._codes[reply["ended"]] = reply["code"]
            else:
                self._codes.pop(reply.get("started", 0), None)  # of an earlier worker with the same id
                self._replies.append(reply)


_SERVERS: list[ForkServer] = []  # started by this process and not stopped


def start_worker(attempt: Path, environment: Mapping[str, str]) -> ForkedWorker:
    """Fork the worker of an attempt, starting the server first if none runs with these variables.

    Raises ``ForkServerError`` when a new server does not start.
    """
    for server in _SERVERS:
        if server.environment != environment and not server.running:
            server.stop()
    for server in [server for server in _SERVERS if server.environment == environment and not server.stopped]:
        try:
            return server.start(attempt, environment)
        except ForkServerError as error:  # killed from outside
            print(f"{error}; starting another", file=sys.stderr)
    _SERVERS[:] = [server for server in _SERVERS if not server.stopped]
    if not _SERVERS:
        atexit.register(stop_servers)
    _SERVERS.append(ForkServer(environment))
    return _SERVERS[-1].start(attempt, environment)


def stop_servers() -> None:
    """Stop every server that this process has started, and their workers."""
    while _SERVERS:
        _SERVERS.pop().stop()
    atexit.unregister(stop_servers)
