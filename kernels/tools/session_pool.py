"""Long-lived worker processes for the GPU session: jobs in, results out, a new process after a fault.

A worker (``session_worker.py``) reads one job per line as JSON and answers with one line of JSON. Importing torch and
making a CUDA context take seconds, so a worker does many jobs. A job that crashes its worker, hangs or leaves the
device unusable is recorded, and a new worker goes on with the next job.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scalebench.running import processes

WORKER = Path(__file__).with_name("session_worker.py")
START_S = 60.0  # importing torch in many processes at once, from a cold disk
PATIENCE_S = 0.5  # a worker whose pipes are closed ends by itself
Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """Work for a worker: ``what`` is the request that it understands; lower ``priority`` comes first.

    ``memory_bytes`` is the device memory it may take: together, running jobs stay below the pool's budget.
    """

    name: str
    what: Mapping[str, Any]
    priority: int = 1
    memory_bytes: float = 1e9
    timeout_s: float = 90.0


@dataclass
class Pool:
    """Runs jobs on ``workers`` processes until the deadline; ``on_result`` gets each result as it comes."""

    workers: int
    environment: Mapping[str, str]
    deadline: float  # of time.monotonic()
    memory_budget_bytes: float
    log: Path
    on_result: Callable[[Result], None]
    command: Sequence[str] = (sys.executable, str(WORKER))
    _free: float = field(init=False)
    _turn: threading.Condition = field(init=False, default_factory=threading.Condition)

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        """Run the jobs, most urgent first; what did not fit before the deadline has the status "not run"."""
        self._free, waiting, results = self.memory_budget_bytes, sorted(jobs, key=lambda job: job.priority), []

        def serve(index: int) -> None:
            with Worker(self.command, self.environment, self.log.with_name(f"{self.log.stem}-{index}.log")) as worker:
                for job in self._take(waiting):
                    result = {"name": job.name} | worker.do(job, self.deadline)
                    with self._turn:
                        self._free += job.memory_bytes
                        results.append(result)
                        self.on_result(result)
                        self._turn.notify_all()

        threads = [threading.Thread(target=serve, args=(index,)) for index in range(min(self.workers, len(jobs)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        left = [{"name": job.name, "status": "not run", "problem": "no time left"} for job in waiting]
        for result in left:
            self.on_result(result)
        return results + left

    def _take(self, waiting: list[Job]) -> Iterator[Job]:
        """Yield the most urgent job that fits into the free memory, waiting where none does."""
        while True:
            with self._turn:
                while waiting and time.monotonic() < self.deadline:
                    fits = (place for place, job in enumerate(waiting) if job.memory_bytes <= self._free)
                    if (place := next(fits, None)) is not None:
                        break
                    self._turn.wait(1.0)
                else:
                    return
                job = waiting.pop(place)
                self._free -= job.memory_bytes
            yield job


class Worker:
    """One worker process at a time, started when it is needed and again after a fault."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.command, self.environment, self.log = command, environment, log
        self.process: subprocess.Popen[bytes] | None = None
        self.pending = b""

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def do(self, job: Job, deadline: float) -> Result:
        """Return a job's result: the worker's own, or how the worker ended or failed to answer."""
        begun = time.monotonic()
        if self.process is None and not self._start(deadline):
            if time.monotonic() >= deadline:
                return self._ended("stopped at the deadline", begun, "not run")
            return self._ended("the worker did not start", begun)
        assert self.process is not None
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(dict(job.what)).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return self._ended("the worker had ended", begun)
        sent = time.monotonic()
        line = self._line(min(sent + job.timeout_s, deadline))
        if line is None:
            late = time.monotonic() >= deadline
            status = "not run" if late else "timeout"
            return self._ended(
                "stopped at the deadline" if late else f"no answer in {job.timeout_s:g} s", begun, status
            )
        if not line:
            return self._ended("", begun, "crashed")
        result: Result = json.loads(line)
        if result.pop("lost", False):  # the device is unusable in that process
            self.stop()
        return result | {"seconds": round(time.monotonic() - sent, 2)}

    def _start(self, deadline: float) -> bool:
        with self.log.open("ab") as log:
            self.process = processes.start(
                self.command, self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self.pending = b""
        return bool(self._line(min(time.monotonic() + START_S, deadline)))  # it says that it is ready

    def _line(self, until: float) -> bytes | None:
        """Return the next line the worker writes; b"" when it has ended, None when nothing came in time."""
        assert self.process is not None
        assert self.process.stdout is not None
        source = self.process.stdout.fileno()
        while b"\n" not in self.pending:
            ready, _, _ = select.select([source], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            data = os.read(source, 1 << 16)
            if not data:
                return b""
            self.pending += data
        line, _, self.pending = self.pending.partition(b"\n")
        return line

    def _ended(self, problem: str, begun: float, status: str = "crashed") -> Result:
        """Stop the worker and return how the job ended, with the last lines of the worker's log."""
        code = self.stop()
        if status == "crashed":
            problem = f"{problem}: {processes.exit_reason(code)}".removeprefix(": ")
            problem += f"; last log lines: {processes.last_lines(self.log, lines=4, characters=300)}"
        return {"status": status, "problem": problem, "seconds": round(time.monotonic() - begun, 2)}

    def stop(self) -> int:
        """End the worker with everything it started and return its exit status (0 where there was none)."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return processes.stop(process, patience_s=PATIENCE_S)
