"""Which trials a study plans: a folder may also hold trials of its earlier settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from scalebench.store.trials import Results


def planned_ids(study: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the ids of the trials that the latest run of a study planned, by its ``study.json``; none if unknown."""
    planned = study.get("planned") or []
    return tuple(str(trial["trial_id"] if isinstance(trial, dict) else trial) for trial in planned)


def joined_plans(earlier: Mapping[str, Any], study: dict[str, Any]) -> dict[str, Any]:
    """Return a study's ``study.json`` with the planned trials and field values of both.

    Two folders may hold parts of one study, and so may two runs with other ``--set`` values.
    """
    if not (planned_ids(earlier) and planned_ids(study)):
        return study
    ids = dict.fromkeys([*planned_ids(earlier), *planned_ids(study)])
    fields = {name: list(values) for name, values in (earlier.get("fields") or {}).items()}
    for name, values in (study.get("fields") or {}).items():
        fields[name] = list(dict.fromkeys([*fields.get(name, []), *values]))
    return study | {"planned": [{"trial_id": trial_id} for trial_id in ids], "fields": fields}


def of_plans(results: Results) -> Results:
    """Return results without the trials that their study did not plan, where its ``study.json`` lists any."""
    frame = results.frame
    keep = np.ones(len(frame), dtype=bool)
    for name, study in results.studies.items():
        if ids := planned_ids(study):
            # A study's folder may have another name than its records: without other studies, all rows are its own.
            own = len(results.studies) == 1 or (frame["study"] == name).to_numpy()
            keep &= frame["trial_id"].isin(ids).to_numpy() | np.logical_not(own)
    return replace(results, frame=frame[keep])


def left_out_line(number: int) -> str:
    """Return a sentence on recorded trials that the latest run did not plan, without a full stop; "" for none."""
    if not number:
        return ""
    trials = "1 more trial of other settings is" if number == 1 else f"{number:,} more trials of other settings are"
    return f"{trials} in this folder and left out: the study file of the latest run does not plan them"
