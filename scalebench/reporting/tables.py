"""Tables of the report: cells, captions, and the environment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from scalebench.reporting.quantities import NOT_MEASURED, percent, present, quantity

MAX_ROWS = 1000
MAX_DATA_ROWS = 300  # of the table behind a figure
MAX_FIRST_ROWS, FIRST_ROWS = 100, 20  # of a folded table, more rows than which appear where scripts run; then these

Cell = tuple[str, float | str | None]  # what is printed, and what the column sorts by
COVERED: Cell = ("", "covered")  # a place that the cell before it takes, too


@dataclass(frozen=True)
class Table:
    """A table of the page. Each cell is a text and a sort key; columns with numeric keys are aligned to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    appendix: bool = False  # a diagnostic, which the page folds
    topic: str = ""  # "projection" or "prediction": what the page has to explain
    units: tuple[str, ...] = ()  # of the columns' sort keys, for a script that draws them; none if empty
    links: tuple[str, ...] = ()  # for each row, where its first cell leads; none if empty
    excerpt: tuple[int, ...] = ()  # the rows that stand for all until a script adds the others; if empty, see ``first``

    @property
    def first(self) -> Table:
        """The rows that are elements of the page before a script adds the others, and where those are.

        They are those of the excerpt, else FIRST_ROWS spread evenly of more than MAX_FIRST_ROWS, else all: the table.
        """
        total = len(self.rows)
        places = self.excerpt or (spread(total, FIRST_ROWS) if total > MAX_FIRST_ROWS else ())
        if not places:
            return self
        note = f" {len(places):,} of {total:,} rows; all {total:,} appear where scripts run."
        return replace(self, caption=self.caption + note, rows=tuple(self.rows[i] for i in places), excerpt=())

    def spans(self, row: Sequence[Cell]) -> tuple[int, ...]:
        """Return how many columns each cell of a row takes, 0 for one that is covered; empty where all take one."""
        if COVERED not in row:
            return ()
        starts = [i for i, cell in enumerate(row) if cell is not COVERED]
        ends = dict(zip(starts, [*starts[1:], len(row)], strict=True))
        return tuple(ends.get(i, i) - i for i in range(len(row)))

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether each column contains numbers."""
        return tuple(any(isinstance(row[i][1], int | float) for row in self.rows) for i in range(len(self.columns)))


def number(value: Any, unit: str = "", digits: int = 3) -> Cell:
    """Return the cell of a measured number."""
    return quantity(value, unit, digits), float(value) if present(value) else None


def word(value: Any) -> Cell:
    """Return the cell of any other value; an em dash if missing, true and false as in a study file."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower(), str(value).lower()
    if isinstance(value, float) and present(value):
        return f"{value:g}", value
    return (str(value), str(value)) if present(value) else (NOT_MEASURED, None)


def share(fraction: Any) -> Cell:
    """Return the cell of a fraction as a percentage."""
    return (percent(fraction, sign=False), float(fraction)) if pd.notna(fraction) else word(None)


class Rows(list[Sequence[Cell]]):
    """Rows of the table behind a figure: of each of ``groups`` groups of trials, MAX_DATA_ROWS in all, spread evenly.

    The others are never made; ``total`` counts them too.
    """

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.total = 0
        self.most = max(5, MAX_DATA_ROWS // max(groups, 1))

    def add(self, trials: pd.DataFrame, cells: Callable[[pd.Series[Any]], Sequence[Cell]]) -> None:
        """Add the rows of a group: the ``cells`` of each trial."""
        self.total += len(trials)
        self.extend(cells(row) for _, row in evenly(trials, self.most).iterrows())


def evenly(trials: pd.DataFrame, most: int) -> pd.DataFrame:
    """Return at most ``most`` rows, spread evenly, the first and the last among them."""
    if len(trials) <= most:
        return trials
    return trials.iloc[list(spread(len(trials), most))]


def spread(total: int, most: int) -> tuple[int, ...]:
    """Return ``most`` places of ``total`` in order, spread evenly, the first and the last among them."""
    return tuple(np.linspace(0, total - 1, most).round().astype(int).tolist())


def table(
    caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], series: int = 0, total: int = 0
) -> Table:
    """Make a table of at most MAX_ROWS rows; with one series, the first column (its name) is left out.

    ``total`` is the number of rows where ``rows`` has the first of them only.
    """
    first = 1 if series == 1 else 0
    cells = [tuple(row[first:]) for row in rows]
    total = max(total, len(cells))
    cut = f" The first {MAX_ROWS:,} of {total:,} rows." if total > MAX_ROWS else ""
    if isinstance(rows, Rows) and rows.total > len(rows):
        cut = f" {len(rows):,} of {rows.total:,} rows, spread evenly; the exported CSV has all."
    return Table(caption + cut, tuple(columns[first:]), tuple(cells[:MAX_ROWS]))


ENVIRONMENT = (
    *("machine_id", "device_kind", "device_name", "cpu_model", "threads", "platform"),
    *("python_version", "torch_version", "triton_version", "ptxas_version"),
    *("git_commit", "git_dirty", "code_fingerprint", "data_sha256"),
    *("timing_method", "energy_method", "memory_split_method", "peak_source"),
)


def environment_table(frame: pd.DataFrame) -> Table:
    """Return machine and software, with the number of trials of each value where trials differ."""
    rows = []
    for name in (name for name in ENVIRONMENT if name in frame):
        values = frame[name].dropna().map(lambda value: word(value)[0]).value_counts().sort_index()
        text = "; ".join(f"{value} ({n} trials)" if len(values) > 1 else str(value) for value, n in values.items())
        rows.append((word(name), word(f"differs between trials: {text}" if len(values) > 1 else text or None)))
    return Table("Environment of the trials.", ("property", "value"), tuple(rows))
