"""What tests of comparisons share: processes forked from that of the tests, which saves seconds of imports each.

A forked process runs what ``python -m scalebench.comparison.process`` would, in its own group, with the same
arguments, environment and logs. ``test_compare.py`` starts real ones by the command.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest
import torch
from forking import ForkedProcess

import scalebench.measure.environment  # noqa: F401 - what a process imports late
from scalebench.comparison import ceilings, process, runner
from scalebench.measure.statistics import FEWEST, StoppingRule
from scalebench.running import processes

COPY_BYTES = 32 << 20
START = processes.start


def start_forked(command: Sequence[str], environment: Mapping[str, str], **options: Any) -> processes.Process:
    """Stand in for ``processes.start``: fork where the runner starts ``python -m scalebench.comparison.process``."""
    if list(command[1:3]) != ["-m", "scalebench.comparison.process"]:
        return START(command, environment, **options)

    def run() -> int:
        os.environ.update(environment)
        return process.main(list(command[3:]))

    return ForkedProcess(run, options["stdout"], options["stderr"])


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
