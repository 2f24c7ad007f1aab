"""The fork server, ``python -m scalebench.running.fork_server``: imports torch once and forks the workers of trials.

An import of torch and of what the workloads need takes seconds; a fork of a process that has imported them takes
milliseconds. The server has no CUDA context, no thread beside its own and no parallel region behind it when it forks:
each worker initialises CUDA and starts its threads by itself, as a fresh process does.

It reads requests from stdin and writes replies to stdout, one JSON object per line: ``{"start": ATTEMPT, "cwd": …,
"environment": {…}}`` is answered by ``{"started": PID}``, and ``{"ended": PID, "code": …}`` follows when that worker
has ended; a negative code is the signal that ended it. ``{"ready": THREADS}`` comes first, once everything is imported.
When stdin closes, the driver has ended: the server stops its workers' process groups and ends. A worker whose server
has ended is killed by the kernel, or where there is no parent-death signal ends itself within a second.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

from scalebench.running import processes

# What a worker uses, whatever its trial: torch.optim imports the compiler front end at the first step.
PRELOADED = (
    "scalebench.running.worker",
    "scalebench.workloads",
    "scalebench.workloads.recorder",
    "scalebench.workloads.training_run",
    "scalebench.workloads.inference_run",
    "scalebench.workloads.serving_run",
    "scalebench.workloads.finetune_run",
    "scalebench.workloads.quantize_run",
    "scalebench.workloads.distill_run",
    "scalebench.measure.energy",
    "scalebench.measure.tracker",
    "torch._dynamo",
    "pandas",
    "pyarrow.parquet",
    "scipy.special",
)


def main() -> int:
    """Serve until the driver ends; in each forked worker, run its trial. Returns the exit status."""
    requests, replies = _own_pipes()
    _preload()
    server = Server(requests, replies)
    attempt = server.serve()
    if attempt is None:
        return 0
    from scalebench.running import worker

    return worker.run_and_exit(attempt)


def _own_pipes() -> tuple[int, int]:
    """Move the pipes away from stdin and stdout, so that nothing that is imported can read or write them."""
    requests, replies = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, replies


def _preload() -> None:
    """Import what workers use, and find out what is the same for all of them."""
    for name in PRELOADED:
        importlib.import_module(name)
    from scalebench.measure import environment

    # Of the source that was imported just now, which is what the workers run.
    environment.code_fingerprint(), environment.git_state(), environment.machine_id()
    for name in ("torch", *environment.PACKAGES):
        environment.package_version(name)
    gc.collect()
    gc.freeze()  # a collection in a worker would copy every page that it shares with the server


class Server:
    """Reads requests, forks workers and reports their ends, in one thread."""

    def __init__(self, requests: int, replies: int) -> None:
        self.requests, self.replies = requests, replies
        self.workers: set[int] = set()
        self._received = b""
        self._wake, self._waker = os.pipe()
        os.set_blocking(self._waker, False)

    def serve(self) -> str | None:
        """Serve until the driver has ended, and return None; in a forked worker, return its attempt folder."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._waker, warn_on_full_buffer=False)  # the end of a worker interrupts select
        self._reply({"ready": threads_of_this_process()})
        while True:
            readable, _, _ = select.select([self.requests, self._wake], [], [])
            if self._wake in readable:
                os.read(self._wake, 4096)
            if self.requests in readable:
                received = os.read(self.requests, 65536)
                if not received:
                    processes.stop_groups(self.workers)
                    return None
                for request in self._requests(received):
                    if (attempt := self._fork(request)) is not None:
                        return attempt
            self._report_ended()

    def _requests(self, received: bytes) -> Iterator[dict[str, Any]]:
        *lines, self._received = (self._received + received).split(b"\n")
        for line in lines:
            yield json.loads(line)

    def _fork(self, request: dict[str, Any]) -> str | None:
        """Fork a worker and report its process id once it leads its own process group; return the attempt in it."""
        begun, begin = os.pipe()
        server, pid = os.getpid(), os.fork()
        if pid == 0:
            os.setsid()
            os.close(begin)  # the driver may signal the group from now on
            os.close(begun)
            self._become_worker(request, server)
            return str(request["start"])
        os.close(begin)
        os.read(begun, 1)
        os.close(begun)
        self.workers.add(pid)
        self._reply({"started": pid})
        return None

    def _become_worker(self, request: dict[str, Any], server: int) -> None:
        """Turn this forked process into what a freshly started worker of the request would be."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for pipe in (self.requests, self.replies, self._wake, self._waker):
            os.close(pipe)
        for number, name in ((1, "stdout.log"), (2, "stderr.log")):
            log = os.open(os.path.join(request["start"], name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)  # noqa: PTH118
            os.dup2(log, number)
            os.close(log)
        processes.end_with_parent(server)
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["cwd"])
        if not sys.flags.safe_path:
            sys.path[0] = request["cwd"]  # where ``python -m`` looks first
        sys.argv = [sys.argv[0], request["start"]]
        _fresh_random_state()

    def _report_ended(self) -> None:
        for pid in list(self.workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                self.workers.remove(pid)
                self._reply({"ended": pid, "code": os.waitstatus_to_exitcode(status)})

    def _reply(self, reply: dict[str, Any]) -> None:
        with contextlib.suppress(BrokenPipeError):  # the driver has ended: stdin is at its end, too
            os.write(self.replies, json.dumps(reply).encode() + b"\n")


def threads_of_this_process() -> int:
    """Return the number of threads, those of libraries included where the system lists them."""
    try:
        return len(os.listdir("/proc/self/task"))  # noqa: PTH208
    except OSError:
        return threading.active_count()


def _fresh_random_state() -> None:
    """Seed numpy's global generator anew. ``random`` does so itself after a fork, and torch starts from a constant."""
    import numpy as np

    np.random.seed()  # noqa: NPY002 - the global generator is what would be shared


if __name__ == "__main__":
    sys.exit(main())
