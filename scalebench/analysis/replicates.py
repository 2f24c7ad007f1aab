"""Trials of one size that are more, or less, than seeds of one configuration: settings that vary, and copies."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd

from scalebench.analysis.trials import LOSS, TEACHER, SizeAxis, numeric, present

# What a study may set beside size, seed and series. Data and steps may follow the size; within one size they may not.
SETTINGS = (
    *("learning_rate", "batch_size", "steps", "sequence_length", "weight_decay", "gradient_clip", "accumulation"),
    *("dropout", "warmup_steps", "schedule", "decay_fraction", "momentum", "beta1", "beta2", "source", "data_sha256"),
    "machine_id",
)


def replicate_notes(
    usable: pd.DataFrame, x: SizeAxis, known: Collection[str], *, inherit_seed: bool = False
) -> Iterator[str]:
    """Yield a note on settings that differ within a size and are not in ``known``, on parents, and on exact copies.

    ``inherit_seed`` is whether trials have the seed of their parents, of which two of one seed differ otherwise.
    """
    groups = usable.groupby(x.column)
    several = [
        name for name in SETTINGS if name in usable and name not in known and len(set(present(usable[name]))) > 1
    ]
    varied = [name for name in several if (groups[name].nunique() > 1).any()]
    if varied:
        yield (f"Trials of one size differ in {', '.join(varied)}: they count as replicates, "
               "and what this changes counts as noise")  # fmt: skip
    if numeric(usable, TEACHER).notna().any():
        if _differing_teachers(usable, x, inherit_seed=inherit_seed):
            yield ("Students of one size and seed have several teachers of one size: they count as replicates, and "
                   "what these teachers differ in counts as noise; choose with [distill] teacher.where")  # fmt: skip
    elif inherit_seed and _differing_parents(usable, x):
        yield ("Trials of one size and seed start from several models trained as long: they count as replicates, and "
               "what these models differ in counts as noise; select parents with [from] where")  # fmt: skip
    copies = int(usable[[x.column, "seed", LOSS]].dropna(subset=[LOSS]).duplicated().sum())
    if copies:
        few = "trial repeats" if copies == 1 else "trials repeat"
        yield f"{copies} {few} size, seed and loss of another exactly: a copy counts as an independent run"


def _differing_parents(usable: pd.DataFrame, x: SizeAxis) -> bool:
    """Return whether trials of one size, seed, and cost of what came before have several parents."""
    alike = [x.column, "seed", "parent_flops"]
    if not {*alike, "parent_trial_id"} <= {*usable}:
        return False
    return bool((usable.groupby(alike)["parent_trial_id"].nunique() > 1).any())


def _differing_teachers(usable: pd.DataFrame, x: SizeAxis, *, inherit_seed: bool) -> bool:
    """Return whether students of one size and seed have teachers of one size that differ in more than their seed.

    Where students do not have their teachers' seeds, only teachers that cost as much may be seeds of one another.
    """
    differing = [name for name in ("parent_flops", *["parent_trial_id"] * inherit_seed) if name in usable]
    groups = usable.groupby([x.column, "seed", TEACHER])
    return any((groups[name].nunique() > 1).any() for name in differing)
