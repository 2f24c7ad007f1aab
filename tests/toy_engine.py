"""An engine of a test's own: one file with ``place``, put into ``ENGINES`` by one entry.

It works as an engine for a cluster does: all attempts go at once to a process of its own, which starts their workers
one after another; this side only watches the files. It assigns no cores and does not know when a worker begins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from scalebench.running import processes
from scalebench.running.claims import take
from scalebench.running.engines.base import Begin, Resources, Tick, close_attempt, has_record, no_tick, worker_command

# Runs commands in turn, and leaves the exit code of each in the attempt's folder.
QUEUE = """
import json, subprocess, sys
for folder, command in json.loads(sys.stdin.read()):
    code = subprocess.run(command, stdin=subprocess.DEVNULL).returncode
    open(folder + "/left", "w").write(str(code))
"""


def check(resources: Sequence[Resources]) -> None:
    """See ``scalebench.running.engines.base.Engine``: it takes every trial."""


def place(
    attempts: Sequence[Path], resources: Sequence[Resources], *, jobs: int | None = None, tick: Tick = no_tick,
    begin: Begin = take,
) -> Iterator[Path]:  # fmt: skip
    """See ``scalebench.running.engines.base.Engine``."""
    assert len(attempts) == len(resources)
    attempts = [attempt for attempt in attempts if begin(attempt)]
    queue = processes.start(
        [sys.executable, "-c", QUEUE], os.environ, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=None
    )
    assert queue.stdin
    queue.stdin.write(json.dumps([(str(attempt), worker_command(attempt)) for attempt in attempts]).encode())
    queue.stdin.close()
    pending = list(attempts)
    try:
        while pending:
            for attempt in [attempt for attempt in pending if (attempt / "left").exists()]:
                if not has_record(attempt):
                    close_attempt(attempt, "killed", "JobLost", f"exit code {(attempt / 'left').read_text()}")
                pending.remove(attempt)
                yield attempt
            tick([attempt for attempt in pending if (attempt / "placement.json").exists()])
            time.sleep(0.05)
    finally:
        processes.stop(queue)
