"""Tasks: batches by seed and step, the loss in nats, and a fixed validation sample in clusters."""

from __future__ import annotations

from scalebench.tasks.base import Batch, GivesLogits, LossAlone, MeanLoss, Task
from scalebench.tasks.classification import Classification, classification
from scalebench.tasks.language import COLUMNS as LANGUAGE_COLUMNS
from scalebench.tasks.language import BalancedNextToken, NextToken
from scalebench.tasks.masked import COLUMNS as MASKED_COLUMNS
from scalebench.tasks.masked import MaskedPairs
from scalebench.tasks.regression import GaussianTask, Regression, SetRegression, regression
from scalebench.tasks.scores import COLUMNS as SCORE_COLUMNS
from scalebench.tasks.text_classes import TextClasses
from scalebench.tasks.transduction import COLUMNS as TRANSDUCTION_COLUMNS
from scalebench.tasks.transduction import Transduce

METRIC_COLUMNS = (*SCORE_COLUMNS, *LANGUAGE_COLUMNS, *MASKED_COLUMNS, *TRANSDUCTION_COLUMNS)

__all__ = [
    "METRIC_COLUMNS",
    "BalancedNextToken",
    "Batch",
    "Classification",
    "GaussianTask",
    "GivesLogits",
    "LossAlone",
    "MaskedPairs",
    "MeanLoss",
    "NextToken",
    "Regression",
    "SetRegression",
    "Task",
    "TextClasses",
    "Transduce",
    "classification",
    "regression",
]
