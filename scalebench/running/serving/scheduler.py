"""The thread that owns the model: completions wait for a row of its batch, get a token per pass, and leave.

Nothing else touches the model. The event loop calls ``submit`` and ``cancel``; ``deliver`` is called from the thread,
once per pass, with what the pass added to each completion.
"""

from __future__ import annotations

import math
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from scalebench.running.serving.api_errors import ApiError
from scalebench.running.serving.metrics import Metrics
from scalebench.running.serving.text_stream import TextStream
from scalebench.workloads.continuous import Batch, Job

WAITING_PER_ROW = 16  # completions that may wait for each row of the batch
JOIN_S = 10  # how long the end waits for the pass that is running


@dataclass(eq=False)
class Completion:
    """A job under way, with its text so far. ``number`` is its place among the prompts of the request ``owner``."""

    job: Job
    stream: TextStream
    owner: Any = None
    number: int = 0
    submitted_s: float = math.nan
    first_token_s: float = math.nan


class Update(NamedTuple):
    """What a pass added to a completion; at its end, the reason (``finish``: length or stop) or the error."""

    completion: Completion
    text: str = ""
    finish: str | None = None
    error: ApiError | None = None


Deliver = Callable[[Sequence[Update]], object]


class Scheduler:
    """Runs completions in a batch, first come, first served. ``metrics`` counts what it has done."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.metrics = batch, Metrics()
        self.most_waiting = WAITING_PER_ROW * batch.free
        self.stop_at_s = math.inf  # when what still runs is ended; a signal handler sets it, so it takes no lock
        self.alive = False
        self._waiting: deque[Completion] = deque()
        self._running: dict[Job, Completion] = {}
        self._changed = threading.Condition()
        self._closing = False

    @property
    def waiting(self) -> int:
        """How many completions wait for a row."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """How many completions are in the batch."""
        return len(self._running)

    @property
    def accepting(self) -> bool:
        """Whether completions may be submitted: it has started, and is not about to stop."""
        return self.alive and self.stop_at_s == math.inf

    def start(self, deliver: Deliver) -> None:
        """Start the thread."""
        self._deliver, self.alive = deliver, True
        self._thread = threading.Thread(target=self._run, name="scalebench-model", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread once nothing waits or runs; what does is ended at ``stop_at_s``."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(JOIN_S)

    def submit(self, completions: Sequence[Completion]) -> None:
        """Add completions to the queue, all or none. Raises ``ApiError`` where it is full or the server stops."""
        with self._changed:
            if not self.accepting:
                raise stopping() if self.alive else ApiError(503, "the model has stopped; see the server's log")
            if self.waiting + len(completions) > self.most_waiting:
                line = f"{self.waiting} completions are waiting, of at most {self.most_waiting}; try again later"
                raise ApiError(429, line, code="queue_full", retry_after_s=1)
            for completion in completions:
                completion.submitted_s = time.perf_counter()
            self._waiting.extend(completions)
            self._changed.notify()

    def cancel(self, completions: Iterable[Completion]) -> None:
        """End completions that nobody waits for any more; those in the batch free their rows after the pass."""
        with self._changed:
            for completion in completions:
                completion.job.cancelled = True
            self._waiting = deque(each for each in self._waiting if not each.job.cancelled)

    def _run(self) -> None:
        """Go on until ``close``; whatever ends it, nobody is left waiting."""
        try:
            while (joining := self._next()) is not None:
                self._pass(joining)
        finally:
            self.alive = False
            self._end_all(ApiError(500, "the model has stopped; see the server's log"))

    def _next(self) -> list[Completion] | None:
        """Wait for work and return what there is a row for; None at the end."""
        with self._changed:
            while not (self._waiting or self._running or self._closing):
                self._changed.wait()
            if not (self._waiting or self._running):
                return None
            return [self._waiting.popleft() for _ in range(min(self.batch.free, len(self._waiting)))]

    def _pass(self, joining: Sequence[Completion]) -> None:
        """Read the prompts of those that join, then generate a token of each that is not done."""
        for completion in joining:
            self._join(completion)
        self._leave()
        if time.monotonic() > self.stop_at_s:
            self._end_all(stopping())
        elif self.batch.jobs:
            self._step()
        self._leave()

    def _join(self, completion: Completion) -> None:
        job = completion.job
        self._running[job] = completion
        try:
            self.batch.join(job)
        except Exception as error:  # noqa: BLE001 - the server goes on whatever a prompt makes of the model
            self._deliver(self._failed([job], _internal(error)))
        else:
            self.metrics.prompt_tokens += len(job.prompt)
            completion.first_token_s = time.perf_counter()
            self.metrics.first_token_s.add(completion.first_token_s - completion.submitted_s)
            self._advance([job])

    def _step(self) -> None:
        try:
            self.batch.step()
        except Exception as error:  # noqa: BLE001 - as for a prompt; all that are in the batch have lost their place
            self._deliver(self._failed(self.batch.jobs, _internal(error)))
        else:
            self._advance(self.batch.jobs)

    def _advance(self, jobs: Sequence[Job]) -> None:
        """Deliver the text of the newest token of each job."""
        updates = [self._update(self._running[job]) for job in jobs if not job.cancelled]
        if updates := [update for update in updates if update.text or update.finish]:
            self._deliver(updates)

    def _update(self, completion: Completion) -> Update:
        job = completion.job
        self.metrics.generated_tokens += 1
        last = len(job.tokens) >= job.new_tokens
        text = completion.stream.add(job.tokens[-1], last=last)
        if not (completion.stream.stopped or last):
            return Update(completion, text)
        finish = "stop" if completion.stream.stopped else "length"
        job.cancelled = True  # it leaves, after whatever token
        if (later := len(job.tokens) - 1) > 0:
            self.metrics.token_s.add((time.perf_counter() - completion.first_token_s) / later)
        return Update(completion, text, finish)

    def _leave(self) -> None:
        for job in self.batch.leave():
            self._running.pop(job, None)

    def _failed(self, jobs: Iterable[Job], error: ApiError) -> list[Update]:
        """Mark jobs as ended by an error, so that they leave; return the updates that say so."""
        updates = []
        for job in jobs:
            job.cancelled = True
            updates.append(Update(self._running.pop(job), error=error))
        return updates

    def _end_all(self, error: ApiError) -> None:
        """End all that wait or run with an error."""
        with self._changed:
            waiting, self._waiting = list(self._waiting), deque()
        ended = self._failed(list(self._running), error) + [Update(each, error=error) for each in waiting]
        if ended:
            self._deliver(ended)


def stopping() -> ApiError:
    """Return the error for requests to a server that is about to end."""
    return ApiError(503, "the server is stopping", code="stopping", retry_after_s=5)


def _internal(error: Exception) -> ApiError:
    """Print an error of the model with its traceback; return what the client gets, which does not have it."""
    traceback.print_exception(error)
    return ApiError(500, "the model failed on this request; see the server's log", code="model_failed")
