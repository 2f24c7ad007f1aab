"""What the models that trials start from differ in: models of one size, seed and length with other settings.

Such models are no seeds of one another. Their settings are in their own records, so that they are known where these are
among the same results.
"""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

PREFIX = "parent_"
PARENT, SIZE, DATA = "parent_trial_id", "params_non_embedding", "tokens_seen"
SETTINGS = ("learning_rate", "batch_size", "weight_decay", "gradient_clip", "dropout", "schedule", "warmup_steps",
            "decay_fraction", "momentum", "beta1", "beta2", "optimizer")  # fmt: skip
PARENT_SETTINGS = tuple(PREFIX + name for name in SETTINGS)


def with_parent_settings(trials: pd.DataFrame, others: pd.DataFrame) -> pd.DataFrame:
    """Add a column of ``PARENT_SETTINGS`` for each setting in which parents of one size, seed and length differ.

    ``others`` has the parents among its rows; where it lacks any, nothing is added.
    """
    if PARENT not in trials or not {"trial_id", SIZE, "seed"} <= {*others}:
        return trials
    wanted = trials[PARENT].dropna()
    parents = others[others["trial_id"].isin(wanted)].drop_duplicates("trial_id").set_index("trial_id")
    if wanted.empty or not wanted.isin(parents.index).all():
        return trials
    return trials.assign(**{PREFIX + name: trials[PARENT].map(parents[name]) for name in _differing(parents)})


def _differing(parents: pd.DataFrame) -> Iterator[str]:
    alike = parents.groupby([name for name in (SIZE, "seed", DATA, "samples_seen") if name in parents], dropna=False)
    for name in SETTINGS:
        if name in parents and (alike[name].nunique() > 1).any():
            yield name


def parent_settings(trials: pd.DataFrame) -> list[str]:
    """Return the columns of ``PARENT_SETTINGS`` that trials have."""
    return [name for name in PARENT_SETTINGS if name in trials]
