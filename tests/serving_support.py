"""A served model without a model: passes that take a given time of a clock that stands still in between."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from scalebench.workloads.continuous import Job
from scalebench.workloads.load import Arrivals, Loop, Users
from scalebench.workloads.serving_spec import ServingSpec

SPEC = {
    "load": None, "requests_per_s": None, "concurrency": None, "max_batch": 4, "prompt_length": 8, "new_tokens": 4,
    "spread": 0.5, "sequence_length": 12, "requests": 200, "first_token_within_s": None, "token_within_s": None,
    "weight_dtype": "float32", "implementation": "sdpa", "seed": 0,
}  # fmt: skip


def serving_spec(**changes: object) -> ServingSpec:
    """The values of a trial."""
    return ServingSpec.model_validate(SPEC | changes)


@dataclass
class StandingClock:
    """Time that passes only when it is told to."""

    time_s: float = 0.0

    def now(self) -> float:
        return self.time_s

    def sleep(self, seconds: float) -> None:
        self.time_s += seconds


@dataclass
class TimedBatch:
    """A batch whose prompts take ``join_s`` and whose passes take ``step_s``, whatever is in it."""

    clock: StandingClock
    rows: int
    join_s: float
    step_s: float
    jobs: list[Job] = field(default_factory=list)
    cached_tokens: int = 0

    @property
    def free(self) -> int:
        return self.rows - len(self.jobs)

    def join(self, job: Job) -> None:
        assert self.free
        self.clock.sleep(self.join_s)
        self.jobs.append(job)
        job.tokens.append(0)

    def step(self) -> None:
        assert not any(job.done for job in self.jobs)
        self.clock.sleep(self.step_s)
        for job in self.jobs:
            job.tokens.append(0)

    def leave(self) -> Sequence[Job]:
        left = [job for job in self.jobs if job.done]
        self.jobs = [job for job in self.jobs if not job.done]
        return left


def same_jobs(new_tokens: int) -> Iterator[Job]:
    """Jobs of one length, without end."""
    while True:
        yield Job([1], new_tokens)


def simulated(
    count: int,
    *,
    rows: int,
    new_tokens: int,
    join_s: float,
    step_s: float,
    per_s: float = 0.0,
    users: int = 0,
    seed: int = 0,
) -> Loop:
    """Serve ``count`` requests of one length, which arrive at random, or from users."""
    clock = StandingClock()
    batch = TimedBatch(clock, rows, join_s, step_s)
    jobs = same_jobs(new_tokens)
    load = Users(jobs, users, 0.0) if users else Arrivals(jobs, per_s, seed, 0.0)
    loop = Loop(batch, load, clock)  # type: ignore[arg-type]
    loop.run(count)
    return loop
