"""How a study's models follow from ``model.params``: stored with its results, to count the compute of other sizes.

The families are imported on use: a prediction from results without dials does not wait for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError

if TYPE_CHECKING:
    from scalebench.analysis.counting import Built
    from scalebench.running.planning import PlannedTrial

COUNTED = "training"  # the workload whose steps cost what the family counts, and nothing else
LARGEST = 1e15  # of params; a study file allows no more
LARGEST_FIELD = 1 << 20  # of a stored whole number: counting some families takes time in proportion to the depth


def dials_of(planned: Sequence[PlannedTrial]) -> list[dict[str, Any]]:
    """Return the dials of training trials, each once: family, fixed fields of its Config, data of a step.

    A child has those of its parent's study. Trials of a user's own family have none: its code does not run when results
    are read.
    """
    dials: dict[str, dict[str, Any]] = {}
    requests: set[tuple[Any, ...]] = set()
    for trial in planned:
        if trial.trial.workload != COUNTED or trial.trial.family_sha256 is not None or (key := _key(trial)) in requests:
            continue
        requests.add(key)
        for dial in _inherited(trial) if trial.parent is not None else _own(trial):
            dials.setdefault(json.dumps(dial, sort_keys=True), dial)
    return list(dials.values())


def _key(planned: PlannedTrial) -> tuple[Any, ...]:
    """Return all that a trial's dials depend on."""
    trial, fixed = planned.trial, {name: value for name, value in planned.requested.items() if name != "params"}
    data = (trial.data.source, trial.data.vocab_size, trial.data.validation_fraction)
    parents = None if planned.parent is None else _study_of(planned.parent.attempt)
    step = (trial.spec.sequence_length, trial.spec.batch_size)
    return trial.family, "params" in planned.requested, *fixed.items(), *data, *step, parents


def _own(planned: PlannedTrial) -> Iterator[dict[str, Any]]:
    from scalebench.data import open_data
    from scalebench.families import FAMILIES

    if "params" not in planned.requested:
        return
    trial = planned.trial
    opened = open_data(trial.data.source, trial.data.vocab_size, trial.data.validation_fraction)
    fixed = {name: value for name, value in planned.requested.items() if name != "params"}
    yield _dial(planned, FAMILIES[trial.family].defaults(opened, trial.spec.sequence_length) | fixed)


def _inherited(planned: PlannedTrial) -> Iterator[dict[str, Any]]:
    """Yield the dials of the study that a child's parent belongs to, with the data of the child's steps."""
    from scalebench.store import read_study

    assert planned.parent is not None
    study = _study_of(planned.parent.attempt)
    for dial in (read_study(study, []).get("dials") or []) if study is not None else ():
        if dial["family"] == planned.trial.family:
            yield _dial(planned, dial["fields"])


def _study_of(attempt: Path) -> Path | None:
    """Return the folder of the study that an attempt, or a checkpoint in one, lies in."""
    return next((folder.parent for folder in attempt.parents if folder.name == "trials"), None)


def _dial(planned: PlannedTrial, fields: Mapping[str, Any]) -> dict[str, Any]:
    spec = planned.trial.spec
    step = {"sequence_length": spec.sequence_length, "batch_size": spec.batch_size}
    return {"family": planned.trial.family, "fields": dict(fields), **step}


def count_dial(dial: Mapping[str, Any], setting: float) -> Built | None:
    """Return the model that a stored dial gives for ``params = setting``, counted; None if there is none.

    Imports the families, but neither torch nor a user's own file, and opens no data. The dial is as ``read_study``
    returns it.
    """
    from scalebench.analysis.counting import Built
    from scalebench.families import FAMILIES, check_fields
    from scalebench.workloads.base import step_flops

    name, fields = dial["family"], dial["fields"]
    whole = [value for value in (*fields.values(), dial["batch_size"]) if isinstance(value, int)]
    if name not in FAMILIES or not 0 < setting <= LARGEST or not all(value <= LARGEST_FIELD for value in whole):
        return None
    family = FAMILIES[name]
    try:
        check_fields(family, fields)
        counts = family.count(family.config_for(setting, **fields), dial["sequence_length"])
    except (InputError, ArithmeticError, LookupError, TypeError, ValueError):  # out of reach, or of another version
        return None
    flops_per_step, active = step_flops(counts, dial["batch_size"]), counts.active_non_embedding
    return Built(name, setting, float(counts.non_embedding), float(flops_per_step), float(active))
