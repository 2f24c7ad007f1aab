"""Continuous batching: sequences join and leave a batch one by one, and all in it get one token at a time.

As in Yu et al. 2022 (Orca): a request does not wait until the longest of the requests before it is answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from scalebench.families import Decoder
from scalebench.families.modules.slots import Slots
from scalebench.workloads.decoding import Choose


@dataclass(eq=False)
class Job:
    """A prompt to continue by ``new_tokens``. ``tokens`` are those generated so far; ``choose`` None is greedy."""

    prompt: Sequence[int]
    new_tokens: int
    choose: Choose | None = None
    tokens: list[int] = field(default_factory=list)
    cancelled: bool = False

    @property
    def done(self) -> bool:
        """Whether it leaves the batch."""
        return self.cancelled or len(self.tokens) >= self.new_tokens


class Batch:
    """The sequences that a model generates together: up to ``rows``, each of up to ``capacity`` tokens.

    The model runs operation by operation (eager or sdpa): fused kernels do not take sequences of different lengths.
    """

    def __init__(self, model: Decoder, rows: int, capacity: int) -> None:
        self.model, self.slots = model, Slots(model.cache(rows, capacity))
        self.device = self.slots.device
        self.jobs: list[Job] = []

    @property
    def free(self) -> int:
        """How many sequences may join."""
        return self.slots.free

    @property
    def cached_tokens(self) -> int:
        """Tokens of all sequences in the cache."""
        return sum(self.slots.lengths)

    @torch.inference_mode()
    def join(self, job: Job) -> None:
        """Read a prompt and generate its first token. Raises ``ValueError`` if no row is free, or none long enough."""
        if not job.prompt or len(job.prompt) + job.new_tokens > self.slots.capacity:
            raise ValueError(
                f"a prompt of {len(job.prompt)} tokens and {job.new_tokens} new ones: a row holds 1 to "
                f"{self.slots.capacity}"
            )
        cache = self.slots.begin(len(job.prompt))
        self.jobs.append(job)
        logits = self.model(torch.tensor([job.prompt], device=self.device), cache)[:, -1]
        self._write([job], logits)

    @torch.inference_mode()
    def step(self) -> None:
        """Generate one token of every sequence; all have one to go (``leave`` first)."""
        last = torch.tensor([job.tokens[-1:] for job in self.jobs], device=self.device)
        self._write(self.jobs, self.model(last, self.slots.grow())[:, -1])

    def leave(self) -> list[Job]:
        """Take the sequences that are done out of the batch and return them."""
        done = [row for row, job in enumerate(self.jobs) if job.done]
        left = [self.jobs[row] for row in done]
        for row in reversed(done):  # the last sequence moves into the row that becomes free
            self.slots.end(row)
            last = self.jobs.pop()
            if row < len(self.jobs):
                self.jobs[row] = last
        return left

    def _write(self, jobs: Sequence[Job], logits: Tensor) -> None:
        """Choose the next token of each job from its row of logits (B, V)."""
        chosen = logits.argmax(-1).tolist()
        for row, job in enumerate(jobs):
            job.tokens.append(chosen[row] if job.choose is None else int(job.choose(logits[row : row + 1])))
