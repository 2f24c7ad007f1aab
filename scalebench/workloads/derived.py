"""What the workloads built on training share: fine-tuning, distillation and pruning.

They train as training does, in one process, with errors under their own table's name; their runs are never continued.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from scalebench.errors import InputError
from scalebench.workloads import ensemble, training
from scalebench.workloads.base import Decided, Request

# Such a run keeps no state to continue from, and is not trained together with others.
NOT_DERIVED = {"state_sha256", *(column.name for column in ensemble.COLUMNS)}
TRAINING_COLUMNS = tuple(column for column in training.COLUMNS if column.name not in NOT_DERIVED)


def decided_as_training(request: Request, values: Mapping[str, Any], table: str, activity: str) -> Decided:
    """Decide a trial with these values of its table as training does.

    Raises ``InputError`` with the errors of training under the table's name, and for more than one process.
    """
    try:
        decided = training.decide(replace(request, values=values))
    except InputError as error:
        raise InputError([line.replace("train.", f"{table}.", 1) for line in error.lines]) from error
    if (processes := decided.spec.processes) > 1:  # type: ignore[attr-defined]
        raise InputError(f"{table}.processes: {processes}: {activity} runs in one process")
    return decided
