"""A worker without torch, for tests of where and how workers run: ``python light_worker.py ATTEMPT``.

It sends a heartbeat and at once writes that its trial is ok. A trial of more than ``LONG`` steps does not end at its
first attempt, unless a file ``end`` is in the folder of the trial.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from scalebench.running import processes
from scalebench.store import read_header, write_json, write_record

LONG = 1000
# What a driver runs first (``drivers.py``) so that its workers are such ones.
PATCH = """
from pathlib import Path
from scalebench.running.engines import {engine}
{engine}.worker_command = lambda attempt: [{python!r}, {script!r}, str(attempt.resolve())]
"""


def light_command(attempt: Path) -> list[str]:
    """Return the command that runs an attempt; see ``engines.base.worker_command``."""
    return [sys.executable, __file__, str(attempt.resolve())]


def patch(engine: str) -> str:
    """Return Python code that lets an engine start light workers."""
    return PATCH.format(engine=engine, python=sys.executable, script=__file__)


def work(attempt: Path) -> None:
    """Be the worker of an attempt."""
    header, first = read_header(attempt), attempt.name == min(path.name for path in attempt.parent.glob("attempt-*"))
    write_json(attempt / "heartbeat.json", {"step": 50, "steps": header["identity"]["steps"]})
    while first and header["identity"]["steps"] > LONG and not (attempt.parent / "end").exists():
        time.sleep(0.1)
    write_record(attempt, header["identity"] | {"status": "ok"})


if __name__ == "__main__":
    processes.end_with_parent(os.getppid())
    work(Path(sys.argv[1]))
