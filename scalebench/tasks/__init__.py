"""What a model is asked to do: batches by seed and step, the loss in nats, a fixed validation sample in clusters."""

from __future__ import annotations

from scalebench.tasks.base import Batch, LossAlone, Task
from scalebench.tasks.classification import Classification, classification
from scalebench.tasks.language import NextToken
from scalebench.tasks.regression import Regression, regression

__all__ = ["Batch", "Classification", "LossAlone", "NextToken", "Regression", "Task", "classification", "regression"]
