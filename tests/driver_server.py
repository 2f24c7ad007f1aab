"""The process that ``drivers.py`` starts: imports torch and the command line once, and forks drivers.

It is the package's own fork server with other work for its forks. A driver forks its fork server from itself in the
place of a fresh one, which is the same server without the seconds of importing. The peak of the CPU is not measured,
which would take a second per results folder; ``test_other_engine.py`` has a trial whose peak is.
"""

from __future__ import annotations

import atexit
import faulthandler
import gc
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import types
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from scalebench.measure.hardware import Peak
from scalebench.running import fork_server, forked, node, processes, worker

IMPORTED = (
    *("scalebench.cli.app", "scalebench.cli.commands.sweeps", "scalebench.cli.commands.stored"),
    *("scalebench.cli.progress", "scalebench.running.chain", "scalebench.running.sweep", "scalebench.analysis.study"),
)
run_worker: Callable[[str], NoReturn] = worker.run_and_exit


class ForkedServer:
    """A fork server that was forked from this process, with what ``forked.ForkServer`` uses of a ``Popen``.

    What its forks do is ``work``: a trial, or a driver's command.
    """

    def __init__(
        self, environment: Mapping[str, str], errors: Any, work: Callable[[str], NoReturn] = run_worker
    ) -> None:
        requests, stdin = os.pipe()
        stdout, replies = os.pipe()
        self.returncode: int | None = None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # that a process with threads is forked
            self.pid = os.fork()
        if self.pid == 0:
            serve(requests, replies, errors.fileno(), environment, work)
        os.close(requests)
        os.close(replies)
        self.stdin, self.stdout = os.fdopen(stdin, "wb", 0), os.fdopen(stdout, "rb", 0)

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.returncode is None and (ended := os.waitpid(self.pid, os.WNOHANG))[0]:
            self.returncode = os.waitstatus_to_exitcode(ended[1])
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; see ``processes.Process``."""
        deadline = time.monotonic() + (float("inf") if timeout is None else timeout)
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("fork server", timeout or 0.0)
            time.sleep(0.005)
        return code


def serve(
    requests: int, replies: int, errors: int, environment: Mapping[str, str],
    work: Callable[[str], NoReturn] = run_worker,
) -> NoReturn:  # fmt: skip
    """Be a fork server, in a process that was forked from a driver or from pytest."""
    code = 1
    try:
        if os.getsid(0) != os.getpid():
            os.setsid()
        for pipe, number in ((requests, 0), (replies, 1), (errors, 2)):
            os.dup2(pipe, number)
        os.closerange(3, 1024)
        _become_fresh()
        os.environ.clear()
        os.environ.update(environment)
        become_server(work)
        code = fork_server.main()
    except BaseException:  # noqa: BLE001 - nothing of the driver may run in this process
        traceback.print_exc()
    finally:
        os._exit(code)


def become_server(work: Callable[[str], NoReturn]) -> None:
    """Change the fork server that this process will be: what its forks do, and what it imports for that."""
    if work is run_driver:
        fork_server.PRELOADED += IMPORTED
    worker.run_and_exit = work  # type: ignore[assignment]
    node.cpu_peak = lambda precision, threads: Peak(1e10, "a test")


def _become_fresh() -> None:
    """Undo what the process that this one was forked from has changed: signals, warnings, streams, logging, imports."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    gc.enable()
    faulthandler.disable()
    warnings.resetwarnings()
    for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", category)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115
    atexit.unregister(os._exit)  # what a worker of pytest-xdist ends with
    for finalizer in [*weakref.finalize._registry]:  # type: ignore[attr-defined]
        alive = finalizer.peek()
        if alive is not None and alive[1].__module__ == "torch.library":
            finalizer.atexit = False  # taking down torch's operators one by one takes each driver a tenth of a second
    sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
    logging.getLogger().handlers.clear()
    sys.meta_path[:] = [finder for finder in sys.meta_path if not type(finder).__module__.startswith("_pytest")]


def serve_from_fifos(environment: Mapping[str, str]) -> NoReturn:
    """Be the fork server of a process that asks through two FIFOs of the current folder, see ``drivers.Drivers``."""
    requests, replies = os.open("requests", os.O_RDONLY), os.open("replies", os.O_WRONLY)
    serve(requests, replies, os.dup(2), environment)


def run_driver(folder: str) -> NoReturn:
    """Do in this forked process what ``driver.json`` says, and end it.

    The interpreter does not take its modules down, as that would copy every page that is shared with the server.
    """
    code: Any = 0
    try:
        run_command(folder)
    except SystemExit as end:
        code = end.code
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def run_command(folder: str) -> None:
    """Run the command of ``driver.json``."""
    request = json.loads((Path(folder) / "driver.json").read_text(encoding="utf-8"))
    fork_servers()
    os.chdir(request["cwd"])
    sys.argv = ["scalebench", *request["arguments"]]
    exec(request["before"], {"__name__": "before"})
    from scalebench.cli.app import main

    main(request["arguments"])


def fork_servers() -> None:
    """Let fork servers be forked from this process instead of started."""
    start: Callable[..., Any] = processes.start

    def start_server(command: Sequence[str], environment: Mapping[str, str], **streams: Any) -> Any:
        if command == forked.COMMAND:
            return ForkedServer(environment, streams["stderr"])
        return start(command, environment, **streams)

    forked.processes = types.SimpleNamespace(**vars(processes) | {"start": start_server})  # type: ignore[assignment]


if __name__ == "__main__":
    sys.modules["driver_server"] = sys.modules["__main__"]  # for code that a driver runs first
    become_server(run_driver)
    sys.exit(fork_server.main())
