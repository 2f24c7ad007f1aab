"""Learning-rate schedules: linear warm-up, then the named shape, down to zero.

Each maps progress, 0 at the start of the decay and 1 after the last step, to a factor of the peak learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch.optim import Optimizer


class ScheduleSpec(Protocol):
    """What a schedule reads of a trial's spec."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""

    @property
    def schedule(self) -> str:
        """A name of ``SCHEDULES``."""

    @property
    def steps(self) -> int:
        """Steps of the trial."""

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""

    @property
    def decay_fraction(self) -> float:
        """Share of all steps in which ``wsd`` decays."""


# ``wsd`` (warm-up, stable, decay; Hu et al. 2024) falls linearly over the last ``decay_fraction`` of the steps, linear
# and cosine over all that follows the warm-up.
SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "constant": lambda _: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "wsd": lambda progress: 1 - progress,
}


def schedule_factor(spec: ScheduleSpec, step: int, first_step: int = 0) -> float:
    """Return what the learning rate is multiplied by at ``step``.

    A continued run starts at ``first_step``; its schedule covers the parent's steps and its own.
    """
    warm = min(1.0, (step + 1) / (spec.warmup_steps + 1))
    total = first_step + spec.steps
    start = spec.warmup_steps
    if spec.schedule == "wsd":
        start = max(start, round(total * (1 - spec.decay_fraction)))
    progress = min(1.0, max(0.0, (step - start) / max(1, total - start)))
    return warm * SCHEDULES[spec.schedule](progress)


def set_learning_rate(optimizer: Optimizer, spec: ScheduleSpec, step: int, first_step: int = 0) -> None:
    """Give every parameter group the learning rate of a step; a rate held in a tensor is filled, without waiting."""
    from torch import Tensor

    rate = spec.learning_rate * schedule_factor(spec, step, first_step)
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
