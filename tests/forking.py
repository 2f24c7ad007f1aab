"""Processes that tests fork from their own, which saves the seconds of imports that a fresh one takes.

For tests whose code must not change the process of the others: it replaces parts of libraries, or is killed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from typing import IO, Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ForkedProcess:
    """The leader of a new process group that calls a function, with what tests use of a ``subprocess.Popen``.

    Its exit status is what the function returns, or 1 after an exception, whose traceback goes to ``stderr``.
    """

    def __init__(self, function: Callable[[], int], stdout: IO[bytes], stderr: IO[bytes]) -> None:
        self.returncode: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until their handlers are those of a new process
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns where other threads run
            self.pid = os.fork()
        if not self.pid:
            _call_and_exit(function, stdout.fileno(), stderr.fileno())
        os.setpgid(self.pid, self.pid)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; raise ``subprocess.TimeoutExpired`` after ``timeout`` seconds."""
        begun = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - begun > timeout:
                raise subprocess.TimeoutExpired("a forked process", timeout)
            time.sleep(0.005)
        return code


def _call_and_exit(function: Callable[[], int], out: int, err: int) -> None:
    code = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        warnings.simplefilter("ignore")  # those of pytest are errors
        code = function()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would: a traceback and exit status 1
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def value_of_forked(function: Callable[[], Any]) -> tuple[Any, str]:
    """Call a function in a forked process; return what it returned, by way of JSON, and what was written to stderr.

    Raises ``AssertionError`` with the end of that where the process fails.
    """
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err, tempfile.TemporaryFile() as value:

        def write() -> int:
            value.write(json.dumps(function()).encode())
            value.flush()
            return 0

        code = ForkedProcess(write, out, err).wait()
        for file in (err, value):
            file.seek(0)
        errors = err.read().decode(errors="replace")
        assert code == 0, errors[-3000:]
        return json.loads(value.read()), errors
