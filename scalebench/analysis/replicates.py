"""Trials of one size that are more, or less, than seeds of one configuration: settings that vary, and copies."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import pandas as pd

from scalebench.analysis.trials import LOSS, SizeAxis

# What a study may set beside size, seed and series. Data and steps may follow the size; within one size they may not.
SETTINGS = (
    *("learning_rate", "batch_size", "steps", "sequence_length", "weight_decay", "gradient_clip", "accumulation"),
    *("dropout", "warmup_steps", "schedule", "decay_fraction", "momentum", "beta1", "beta2", "source", "data_sha256"),
    "machine_id",
)


def replicate_notes(usable: pd.DataFrame, x: SizeAxis, known: Collection[str]) -> Iterator[str]:
    """Yield a note on settings that differ within a size and are not in ``known``, and one on exact copies."""
    groups = usable.groupby(x.column)
    varied = [name for name in SETTINGS if name in usable and name not in known and (groups[name].nunique() > 1).any()]
    if varied:
        yield (f"Trials of one size differ in {', '.join(varied)}: they count as replicates, "
               "and what this changes counts as noise")  # fmt: skip
    copies = int(usable.dropna(subset=[LOSS]).duplicated([x.column, "seed", LOSS]).sum())
    if copies:
        few = "trial repeats" if copies == 1 else "trials repeat"
        yield f"{copies} {few} size, seed and loss of another exactly: a copy counts as an independent run"
