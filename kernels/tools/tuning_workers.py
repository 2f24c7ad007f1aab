"""Try the candidates of tunable kernels in parallel processes, before one process times them alone on the device.

A candidate that crashes, hangs or leaves the device unusable ends only its worker; ``tuning`` then does not launch it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from session_pool import Job, Pool, Result

TRYING_S = 900.0  # at most, for all candidates; those that were not tried are launched all the same
FAILED = ("failed", "crashed", "timeout")
CANDIDATE_BYTES = 3e9  # device memory of a candidate, at a goal's shape


def jobs_of(candidates: Iterable[Mapping[str, Any]]) -> list[Job]:
    """Return the jobs that compile and try candidates; see ``tuning.candidate_jobs``."""
    return [Job(f"candidate: {each['tunable']}: {each['candidate']}", each, 2, CANDIDATE_BYTES) for each in candidates]


def try_all(jobs: Sequence[Job], workers: int, memory_bytes: float, log: Path) -> dict[str, str]:
    """Run the jobs of candidates on ``workers`` processes; return the problem of each that failed, by its code.

    ``memory_bytes`` is the device memory that all of them may take together; ``log`` gets what they print.
    """
    results: list[Result] = []
    _pool(workers, memory_bytes, log, results).run(jobs)
    return problems(jobs, {result["name"]: result for result in results})


def _pool(workers: int, memory_bytes: float, log: Path, results: list[Result]) -> Pool:
    deadline = time.monotonic() + TRYING_S
    return Pool(workers, dict(os.environ), deadline, memory_bytes, log, results.append)


def problems(jobs: Iterable[Job], results: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return the problem of each candidate whose job failed, by its code; ``results`` are by the job's name.

    Running out of memory does not count: other processes used the device, too.
    """
    ended = [(job, results[job.name]) for job in jobs if job.name in results]
    return {
        job.what["code"]: f"{result['status']}: {result.get('problem')}"
        for job, result in ended
        if result["status"] in FAILED and "OutOfMemoryError" not in str(result.get("problem"))
    }
