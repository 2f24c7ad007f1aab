"""The loss of a model that ignores its inputs: above it a trained model has lost what it had learned."""

from __future__ import annotations

import math

from scalebench.study import Trial
from scalebench.tasks import GaussianTask, Task
from scalebench.workloads.base import classes_of
from scalebench.workloads.building import configuration


def guess_nats(trial: Trial, task: Task) -> float:
    """Return the loss of outputs of 0 where numbers are predicted, of equal probabilities where classes are."""
    if isinstance(task, GaussianTask):
        return task.zero_nats()
    return math.log(getattr(trial.spec, "head_classes", None) or classes_of(configuration(trial)))
