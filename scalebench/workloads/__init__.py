"""What can be done with a model, one module each.

Adding a workload: a module with the names of ``base.Workload``, and a line in ``WORKLOADS``.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from scalebench.errors import InputError
from scalebench.families import FAMILIES, ForeignCodeError, check_named
from scalebench.store import ENVIRONMENT_COLUMNS, STORE_COLUMNS, Column, StoreError, read_header
from scalebench.study import Trial
from scalebench.workloads import distill, finetune, inference, prune, quantize, recorder, serving, training
from scalebench.workloads.base import TRIAL_COLUMNS, Workload, spec_columns

__all__ = ["TRIAL_COLUMNS", "WORKLOADS", "Workload", "columns_of", "read_trial", "trial_of"]

WORKLOADS: dict[str, Workload] = {
    "training": training,
    "inference": inference,
    "finetune": finetune,
    "distill": distill,
    "quantize": quantize,
    "prune": prune,
    "serving": serving,
}


def columns_of(name: str) -> tuple[Column, ...]:
    """Return every column that a record of a workload has, besides the fields of its model."""
    workload = WORKLOADS[name]
    columns = (
        *STORE_COLUMNS, *TRIAL_COLUMNS, *spec_columns(workload.Spec), *workload.COLUMNS, *recorder.COLUMNS,
        *ENVIRONMENT_COLUMNS,
    )  # fmt: skip
    return tuple({column.name: column for column in columns}.values())


def trial_of(attempt: Path, named: Collection[str] | None = ()) -> Trial:
    """Return the trial of an attempt folder. Raises ``StoreError`` where its ``trial.json`` does not hold one.

    Results may come from anyone: a family that is a Python file, which would run, is refused with ``InputError`` unless
    ``named`` has it. None allows any.
    """
    path = attempt / "trial.json"
    try:
        trial = read_trial(read_header(attempt)["trial"])
        if named is not None:
            check_named(trial.family, trial.family_sha256, named)
        FAMILIES[trial.family].Config(**trial.model)
    except ForeignCodeError:
        raise
    except (KeyError, TypeError, AttributeError, InputError, ValidationError) as error:
        raise StoreError(f"{path}: holds no trial ({type(error).__name__}: {str(error).splitlines()[0]})") from error
    return trial


def read_trial(values: dict[str, Any]) -> Trial:
    """Return a trial from its JSON, with its spec as the workload's ``Spec``.

    Trials of schema 1, which had one field for each workload, are converted.
    """
    if "workload" not in values:
        workload = "training" if values.get("train") else "inference"
        spec = values["train"] or values["inference"]
        rest = {key: value for key, value in values.items() if key not in ("train", "inference")}
        values = {**rest, "workload": workload, "spec": spec}
    trial = Trial.model_validate(values)
    return trial.model_copy(update={"spec": WORKLOADS[trial.workload].Spec.model_validate(trial.spec)})
