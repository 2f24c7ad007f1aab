"""The content of results folders as one table: a row per trial, from its records or from the index of its study."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.errors import number_of
from scalebench.store import index
from scalebench.store.columns import STORE_NAMES
from scalebench.store.files import plain_text, write_table
from scalebench.store.plans import joined_plans, planned_ids, read_study
from scalebench.store.trials import Reading, is_folder, read_trial_dir, study_dirs, trial_names

if TYPE_CHECKING:
    import pandas as pd

Missing = tuple[str, Mapping[str, int]]  # a row's folder and the sizes of its files, -1 if missing


@dataclass(frozen=True)
class Results:
    """The content of results folders: one row per trial, and what could not be read.

    ``frame`` has one row per trial (its latest attempt with a readable record), the store's own columns first, then
    every column of any record; ``checked`` is whether the record had a checksum.
    ``damaged`` has one line per unreadable attempt; such an attempt does not count. ``incomplete`` has one line per
    name of a file that records list and that is missing; those records count. ``studies`` maps a study's name to
    its ``study.json`` (``{}`` where that is absent); of two folders of one study, the last, with the plans of both.
    A study has the name of its folder, whatever its records say; ``copied`` has a line per study whose trials are all
    copies of another's, which count once. ``recorded`` maps a study's name to the trials with a record in its folder,
    copies included: two studies can plan the same trial, and its record in one is no result of the other.
    """

    frame: pd.DataFrame
    damaged: tuple[str, ...]
    studies: Mapping[str, dict[str, Any]]
    incomplete: tuple[str, ...] = ()
    copied: tuple[str, ...] = ()
    recorded: Mapping[str, Collection[str]] = field(default_factory=dict)


def read_results(*paths: str | Path) -> Results:
    """Read every study under ``paths`` into one table; damaged attempts are listed.

    Raises ``NewerSchemaError`` where a newer version wrote any of it.
    """
    damaged: list[str] = []
    tables: list[pd.DataFrame] = []
    folders: list[str] = []  # of each row
    files: list[Missing] = []
    studies: dict[str, dict[str, Any]] = {}
    recorded: dict[str, set[str]] = defaultdict(set)
    for study_dir in dict.fromkeys(folder for path in paths for folder in study_dirs(Path(path))):
        study, name = read_study(study_dir, damaged), plain_text(study_dir.name)
        studies[name] = joined_plans(studies.get(name, {}), study)
        table, sizes = study_table(study_dir, damaged)
        recorded[name].update(table["trial_id"])
        tables.append(table)
        folders += [name] * len(table)
        files += sizes
    frame, copied = _each_attempt_once(joined(tables or [table_of([])]), folders)
    return Results(frame, tuple(map(plain_text, damaged)), studies, tuple(incomplete_lines(files)), copied, recorded)


def _each_attempt_once(frame: pd.DataFrame, folders: Sequence[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Return the table without copies of attempts, and a line on each study that has none but copies.

    ``folders`` has the name of each row's folder, which becomes its study: records of a renamed folder say another.
    Two folders may hold the same attempt, and each would count as a run. Its name has its time and random digits, so
    that equal names are copies. The one in the folder that it was made in counts, of several the last.
    """
    made_in, frame["study"] = frame["study"], folders
    if frame["attempt"].is_unique:
        return frame, ()
    made_here = frame.assign(made_in=made_in, made_here=made_in == frame["study"])
    made_last = made_here.sort_values("made_here", kind="stable")
    copies = made_last.duplicated(["made_in", "trial_id", "attempt"], keep="last").reindex(frame.index)
    kept, copied = frame[~copies].reset_index(drop=True), made_here[copies]
    lines = [
        f"{folder}: copies of {number_of(len(rows), 'trial')} of {', '.join(map(str, rows['made_in'].unique()))}, "
        "which count there and not here"
        for folder, rows in copied.groupby("study")
        if folder not in set(kept["study"])
    ]
    return kept, tuple(lines)


def study_table(study_dir: Path, damaged: list[str]) -> tuple[pd.DataFrame, list[Missing]]:
    """Return a study's trials as a table, sorted by id, and the files of each; damage adds lines to ``damaged``.

    A large study is read from its index where that is up to date; a new index is written when too much is not.
    """
    names = list(trial_names(study_dir, damaged))
    indexed = index.read_index(study_dir) if len(names) >= index.SMALLEST else None
    known = set() if indexed is None else set(indexed[index.TRIAL].tolist())
    stale = [name for name in names if name not in known]
    rewrite = len(names) >= index.SMALLEST and len(stale) > index.MOST_STALE * len(names)
    now_ns = index.file_system_time_ns(study_dir) if rewrite else None
    readings = [read_trial_dir(study_dir / "trials" / name) for name in stale]
    damaged += [line for reading in readings for line in reading.damaged]
    fresh = table_of(readings)
    files = [(str(reading.row["attempt_dir"]), reading.files) for reading in readings if reading.row is not None]
    if now_ns is not None:
        fresh = index.stamped(study_dir, fresh, {r.row["trial_id"]: r.files for r in readings if r.row and r.settled})
        index.write_index(study_dir, joined([fresh] if indexed is None else [indexed, fresh]), now_ns)
    if indexed is not None:
        indexed = index.located(study_dir, indexed)
        files += index.missing_files(indexed)
        fresh = joined([indexed, fresh]).reset_index(drop=True)
        if not fresh["trial_id"].is_monotonic_increasing:
            fresh = fresh.sort_values("trial_id", kind="stable", ignore_index=True)
    stamps = [name for name in index.STAMPS if name in fresh]
    return fresh.drop(columns=stamps) if stamps else fresh, files  # copies every column


class TableRow(Mapping[str, Any]):
    """One row of a table as a mapping, None for null; lighter than a dict per row."""

    def __init__(self, cells: Cells, position: int) -> None:
        self._cells, self._position = cells, position

    def __getitem__(self, name: str) -> Any:
        """Return the value of a column."""
        return self._cells[name][self._position]

    def __iter__(self) -> Iterator[str]:
        """Yield the names of the columns."""
        return map(str, self._cells.frame.columns)

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self._cells.frame.columns)

    def __repr__(self) -> str:
        """Show the row as a dict."""
        return repr(dict(self))


class Cells(dict[str, list[Any]]):
    """The values of a table by column, None for null; a column is converted when it is first read."""

    def __init__(self, frame: pd.DataFrame) -> None:
        super().__init__()
        self.frame = frame

    def __missing__(self, name: str) -> list[Any]:
        """Convert a column; ``KeyError`` if no column has this name."""
        values = self.frame[name]
        cells = values.to_numpy(dtype=object, copy=True)
        cells[values.isna().to_numpy()] = None
        self[name] = list(cells.tolist())
        return self[name]


def latest_records(study_dir: Path, trial_ids: Collection[str], damaged: list[str]) -> dict[str, Mapping[str, Any]]:
    """Return the records of a large study's trials by id, from its index where that is up to date; {} for a small one.

    Damage of these trials adds lines to ``damaged``.
    """
    folder = study_dir / "trials"
    if len(trial_ids) < index.SMALLEST or not is_folder(folder):
        return {}
    lines: list[str] = []
    frame, _ = study_table(study_dir, lines)
    ids, start = set(trial_ids), len(f"{folder}/")
    damaged += [line for line in lines if line[start:].split("/")[0] in ids]
    cells = Cells(frame)
    return {trial_id: TableRow(cells, position) for position, trial_id in enumerate(cells["trial_id"])}


def table_of(readings: Iterable[Reading]) -> pd.DataFrame:
    """Return the rows as a table with the store's own columns first."""
    import pandas as pd

    rows = [reading.row for reading in readings if reading.row is not None]
    names = dict.fromkeys([*STORE_NAMES, *(name for row in rows for name in row)])
    folders = pd.Series([row["attempt_dir"] for row in rows], dtype=object)  # not all paths are Unicode
    table = pd.DataFrame([row | {"attempt_dir": None} for row in rows], columns=list(names))
    if rows:
        table["attempt_dir"] = folders
    return table


def joined(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of all tables, with the types that they would have if they were read as one.

    A column without a value in one of them has the type that it has in the others.
    """
    import pandas as pd

    tables = [table for table in tables if len(table)] or tables[:1]
    if len(tables) < 2:
        return tables[0] if tables else table_of([])
    names = dict.fromkeys(str(name) for table in tables for name in table)
    whole = pd.concat([table.dropna(axis="columns", how="all") for table in tables], ignore_index=True)
    # Where one table lacks a column of flags or texts, pandas fills in NaN.
    nulls: dict[str, Any] = {
        str(name): values.where(values.notna(), None)
        for name, values in whole.items()
        if pd.api.types.is_object_dtype(values)
    }
    absent = pd.DataFrame(
        dict.fromkeys(names.keys() - set(whole), [None] * len(whole)), index=whole.index, dtype=object
    )
    return pd.concat([whole.assign(**nulls), absent], axis="columns").reindex(columns=list(names))


def incomplete_lines(files: Iterable[Missing]) -> Iterator[str]:
    """Yield a line for each name of a file that records list and that is missing."""
    folders = defaultdict(list)
    for folder, sizes in files:
        for name, size in sizes.items():
            if size < 0:
                folders[name].append(folder)
    for name, lacking in folders.items():
        more = f", as in {number_of(len(lacking) - 1, 'more trial')}" if lacking[1:] else ""
        yield plain_text(f"{lacking[0]}/{name}: missing{more}; what is in the records counts")


def load_results(*paths: str | Path) -> pd.DataFrame:
    """Read results folders as a DataFrame, one row per trial; warn of damaged attempts."""
    results = read_results(*paths)
    for line in results.damaged:
        warnings.warn(f"damaged attempt passed over: {line}", stacklevel=2)
    return results.frame


def export(results: Results, path: Path) -> None:
    """Write the table as CSV or Parquet, by the suffix of ``path``; ``StoreError`` for any other suffix."""
    write_table(results.frame, path)


def of_plans(results: Results) -> Results:
    """Return results without the trials that their study did not plan, where its ``study.json`` lists any."""
    import numpy as np

    frame = results.frame
    keep = np.ones(len(frame), dtype=bool)
    for name, study in results.studies.items():
        if ids := planned_ids(study):
            keep &= frame["trial_id"].isin(ids).to_numpy() | (frame["study"] != name).to_numpy()
    return replace(results, frame=frame[keep])
