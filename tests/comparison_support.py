"""What tests of comparisons share: processes forked from that of the tests, which saves seconds of imports each.

A forked process runs what ``python -m scalebench.comparison.process`` would, in its own group, with the same
arguments, environment and logs. ``test_compare.py`` starts real ones by the command.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

import pytest
import torch

import scalebench.measure.environment  # noqa: F401 - what a process imports late
from scalebench.comparison import ceilings, process, runner
from scalebench.measure.statistics import FEWEST, StoppingRule
from scalebench.running import processes

COPY_BYTES = 32 << 20
START = processes.start
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class ForkedProcess:
    """The leader of a new process group, with what the runner uses of a ``subprocess.Popen``."""

    def __init__(self, arguments: list[str], environment: Mapping[str, str], out: IO[bytes], err: IO[bytes]) -> None:
        self.returncode: int | None = None
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until their handlers are those of a new process
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns where other threads run
            self.pid = os.fork()
        if not self.pid:
            _run_and_exit(arguments, environment, out.fileno(), err.fileno())
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
                raise subprocess.TimeoutExpired("a forked comparison", timeout)
            time.sleep(0.005)
        return code


def _run_and_exit(arguments: list[str], environment: Mapping[str, str], out: int, err: int) -> None:
    code = 1
    try:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        os.dup2(out, 1)
        os.dup2(err, 2)
        os.environ.update(environment)
        warnings.simplefilter("ignore")  # those of pytest are errors
        code = process.main(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - as the interpreter would: a traceback and exit status 1
        os.write(2, traceback.format_exc().encode())
    finally:
        os._exit(code)


def start_forked(
    command: Sequence[str], environment: Mapping[str, str], *, stdout: IO[bytes], stderr: IO[bytes]
) -> ForkedProcess:
    """Stand in for ``processes.start`` where the runner starts ``python -m scalebench.comparison.process``."""
    assert command[1:3] == ["-m", "scalebench.comparison.process"]
    return ForkedProcess(list(command[3:]), environment, stdout, stderr)


@pytest.fixture(scope="module")
def forked_processes() -> Iterator[None]:
    """Fork the processes of comparisons, and measure ceilings on less memory."""
    assert torch.get_num_threads() == 1, "a forked process would have no other threads"
    StoppingRule().reason([1.0] * FEWEST, 0.0)  # imports SciPy
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner.processes, "start", start_forked)
        patch.setattr(ceilings, "CPU_COPY_BYTES", COPY_BYTES)
        yield


@pytest.fixture
def real_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start processes as the runner does without these fixtures."""
    monkeypatch.setattr(runner.processes, "start", START)
