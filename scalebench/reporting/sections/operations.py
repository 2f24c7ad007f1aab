"""The measured rows of one compared operation."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd

from scalebench.store.comparisons import Comparisons, latest


@dataclass(frozen=True, eq=False)
class Operation:
    """One operation and the newest rows of every case, provider and source."""

    name: str
    rows: pd.DataFrame = field(repr=False)


def operations_of(compared: Comparisons) -> tuple[Operation, ...]:
    """Return every operation of results folders, in the order in which they were recorded."""
    rows = latest(compared.frame)
    names = rows["operation"].drop_duplicates()
    return tuple(Operation(str(name), rows[rows["operation"] == name]) for name in names)
