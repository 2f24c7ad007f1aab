"""Requests that arrive at a served model, and the loop that answers them."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from scalebench.workloads.continuous import Batch, Job


class Clock(Protocol):
    """Where the loop takes its times from."""

    def now(self) -> float:
        """Return the time in seconds, from any beginning."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class RealClock:
    """The machine's own time."""

    now, sleep = staticmethod(time.perf_counter), staticmethod(time.sleep)


@dataclass(eq=False)
class Request:
    """A job with its times: when it arrived, when its first token was there, and its last. NaN for not yet."""

    job: Job
    arrived_s: float
    first_token_s: float = math.nan
    answered_s: float = math.nan
    number: int = -1  # in the order of arrival


class Step(NamedTuple):
    """One pass that gave each of ``sequences`` a token, with ``cached_tokens`` in the cache before it."""

    ended_s: float
    seconds: float
    sequences: int
    cached_tokens: int


class Load(Protocol):
    """When requests arrive."""

    @property
    def next_s(self) -> float:
        """When the next one arrives; infinite if that depends on an answer."""

    def due(self, now_s: float) -> Iterator[Request]:
        """Yield the requests that have arrived and were not yielded before."""

    def answered(self, now_s: float) -> None:
        """Note that a request was answered."""


class Arrivals:
    """An open loop: requests arrive at random (Poisson), ``per_s`` on average, whether or not others are answered."""

    def __init__(self, jobs: Iterator[Job], per_s: float, seed: int, begin_s: float) -> None:
        self._jobs, self._per_s, self._gaps = jobs, per_s, np.random.default_rng([seed, 1])
        self.next_s = begin_s + self._gap()

    def due(self, now_s: float) -> Iterator[Request]:
        """Yield the requests that have arrived by now."""
        while self.next_s <= now_s:
            arrived_s = self.next_s
            self.next_s += self._gap()
            yield Request(next(self._jobs), arrived_s)

    def answered(self, now_s: float) -> None:
        """An answer changes nothing."""

    def _gap(self) -> float:
        """Draw the seconds to the next request."""
        return float(self._gaps.exponential(1 / self._per_s))


class Users:
    """A closed loop: each of ``users`` sends a request as soon as the last one is answered."""

    def __init__(self, jobs: Iterator[Job], users: int, begin_s: float) -> None:
        self._jobs, self._ready = jobs, deque([begin_s] * users)

    @property
    def next_s(self) -> float:
        """When the next user sends one."""
        return self._ready[0] if self._ready else math.inf

    def due(self, now_s: float) -> Iterator[Request]:
        """Yield the requests of the users who are ready."""
        while self._ready and self._ready[0] <= now_s:
            yield Request(next(self._jobs), self._ready.popleft())

    def answered(self, now_s: float) -> None:
        """Let a user send the next request."""
        self._ready.append(now_s)


class Loop:
    """A batch that answers a load. ``requests`` are in the order of their arrival.

    First come, first served: a waiting request joins the batch as soon as a row is free, and its prompt is read before
    the next token of those in the batch is generated.
    """

    def __init__(self, batch: Batch, load: Load, clock: Clock) -> None:
        self.batch, self.load, self.clock = batch, load, clock
        self.requests: list[Request] = []
        self.steps: list[Step] = []
        self._waiting: deque[Request] = deque()
        self._running: dict[Job, Request] = {}
        self._rows = batch.free
        self._count = self._to_go = 0  # requests to answer

    def run(self, count: int, progress: Callable[[int], None] = lambda _: None) -> None:
        """Go on until the first ``count`` requests are answered; others arrive meanwhile, as always.

        ``progress`` is called with the number of answered ones.
        """
        self._count = self._to_go = count
        while self._to_go:
            before = self._to_go
            self._arrive()
            self._join()
            self._leave()
            if self.batch.jobs:
                self._step()
                self._leave()
            elif not self._waiting:
                self.clock.sleep(max(0.0, self.load.next_s - self.clock.now()))
            if self._to_go != before:
                progress(count - self._to_go)

    def _arrive(self) -> None:
        """Take in what has arrived: after the last request to answer no more than fill the batch once more."""
        if self._have_enough():
            return
        for request in self.load.due(self.clock.now()):
            request.number = len(self.requests)
            self.requests.append(request)
            self._waiting.append(request)
            if self._have_enough():
                return

    def _have_enough(self) -> bool:
        """Whether what has arrived keeps the batch full until the last request to answer is answered."""
        return len(self.requests) >= self._count and len(self._waiting) >= self._rows

    def _join(self) -> None:
        """Read the prompts for which there is room."""
        while self._waiting and self.batch.free:
            request = self._waiting.popleft()
            self._running[request.job] = request
            self.batch.join(request.job)
            request.first_token_s = self.clock.now()

    def _step(self) -> None:
        """Generate a token of each sequence in the batch."""
        sequences, cached, begun_s = len(self.batch.jobs), self.batch.cached_tokens, self.clock.now()
        self.batch.step()
        now_s = self.clock.now()
        self.steps.append(Step(now_s, now_s - begun_s, sequences, cached))

    def _leave(self) -> None:
        """Take the answered requests out of the batch."""
        now_s = self.clock.now()
        for job in self.batch.leave():
            request = self._running.pop(job)
            request.answered_s = now_s
            self._to_go -= request.number < self._count
            self.load.answered(now_s)
