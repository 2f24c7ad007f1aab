"""Tasks: batches by seed and step, the loss in nats, and a fixed validation sample in clusters."""

from __future__ import annotations

from scalebench.tasks.base import Batch, LossAlone, MeanLoss, Task
from scalebench.tasks.classification import Classification, classification
from scalebench.tasks.language import BalancedNextToken, NextToken
from scalebench.tasks.masked import MaskedPairs
from scalebench.tasks.regression import Regression, SetRegression, regression
from scalebench.tasks.transduction import Transduce

__all__ = [
    "BalancedNextToken",
    "Batch",
    "Classification",
    "LossAlone",
    "MaskedPairs",
    "MeanLoss",
    "NextToken",
    "Regression",
    "SetRegression",
    "Task",
    "Transduce",
    "classification",
    "regression",
]
