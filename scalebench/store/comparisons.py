"""Comparison runs on disk, and the table of their rows. Nothing here imports torch.

A run is a folder of plain files; running again adds a run, and nothing is overwritten::

    RESULTS/compare-<operation>/runs/run-<UTC>-<random>/
        request.json  environment.json
        process-<k>/case-<i>.json   what one process measured of one case, every sample included
        samples.parquet             every sample of the run: case, provider, process, place, time_s, outlier
        rows.json                   one row per provider and case; written last: a run counts once it is there
        running.lock                held by the command as long as it measures
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.store import (
    StoreError,
    check_inside,
    check_name,
    is_name,
    read_json,
    write_atomically,
    write_checked_json,
)
from scalebench.store.comparison_columns import ROW_COLUMNS
from scalebench.store.files import read_checked_json
from scalebench.store.names import following
from scalebench.store.records import check_files, check_schema, plain_row
from scalebench.store.trials import is_folder, names_in

if TYPE_CHECKING:
    import pandas as pd

SCHEMA = 2  # since 2, rows.json has a checksum
PREFIX = "compare-"
RUNNING = "running.lock"
STATUSES = ("ok", "unavailable", "oom", "failed", "killed")


@dataclass(frozen=True)
class Unmeasured:
    """A run that ended before its first measurement, and why: killed, interrupted, deadline or how a process died."""

    operation: str
    run: str
    ended: str

    @classmethod
    def of(cls, run: Path, ended: str) -> Unmeasured:
        """Return the one that the folder of a run names."""
        return cls(run.parents[1].name.removeprefix(PREFIX), run.name, ended)

    def __str__(self) -> str:
        return (
            f"comparison {self.operation}: nothing measured; "
            f"{self.run} ended before its first measurement: {self.ended}"
        )


@dataclass(frozen=True)
class Comparisons:
    """The comparisons in results folders.

    ``frame`` has one row per run, case and provider and every name of ``ROW_COLUMNS``; ``damaged`` one line per
    unreadable run, which does not count; ``runs`` maps a run's name to its request; ``unmeasured`` are the runs without
    rows.
    """

    frame: pd.DataFrame
    damaged: tuple[str, ...]
    runs: Mapping[str, dict[str, Any]]
    unmeasured: tuple[Unmeasured, ...] = ()


def new_run(results: Path, operation: str) -> Path:
    """Make and return a new folder for a run; its name is unique and sorts after those of earlier ones.

    Raises ``StoreError`` for an operation that cannot name a folder, or where a symbolic link leads out of the results.
    """
    check_name("operation", operation)
    runs = results / f"{PREFIX}{operation}" / "runs"
    check_inside(results, runs)
    run = runs / following("run-", names_in(runs) if is_folder(runs) else ())
    run.mkdir(parents=True)
    return run


def write_run(
    run: Path, rows: Sequence[Mapping[str, Any]], samples: pd.DataFrame, ended: str = "", missing: Sequence[str] = ()
) -> None:
    """Close a run: write its samples, and last its rows, with null in every column that was not measured.

    ``ended`` is why it ended early, if it did, and ``missing`` which cases were not measured.

    Raises ``ValueError`` for a status outside ``STATUSES``.
    """
    for row in rows:
        if row["status"] not in STATUSES:
            raise ValueError(f"status {row['status']!r} is not one of {', '.join(STATUSES)}")
    write_atomically(run / "samples.parquet", samples.to_parquet(index=False))
    size = (run / "samples.parquet").stat().st_size
    early = (f"{ended}; not measured: {', '.join(missing)}" if missing else ended) or None
    full = [dict.fromkeys(ROW_COLUMNS) | dict(row) | {"run": run.name, "run_ended": early} for row in rows]
    end = {"ended": ended, "not_measured": list(missing)} if ended else {}
    write_checked_json(run / "rows.json", {"schema": SCHEMA, "files": {"samples.parquet": size}, **end, "rows": full})


def comparison_dirs(path: Path) -> list[Path]:
    """Return the folders of compared operations at ``path``: itself, or those directly below it."""
    names = sorted(names_in(path)) if is_folder(path) else []
    candidates = [path, *(path / name for name in names)]
    return [folder for folder in candidates if folder.name.startswith(PREFIX) and is_folder(folder / "runs")]


def read_run(run: Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a run's rows and its request; ``StoreError`` naming the file that is damaged."""
    path = run / "rows.json"
    content, checked = read_checked_json(path)
    check_schema(path, content.get("schema"), checked=checked)
    check_files(path, content.get("files", {}))
    rows = content.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise StoreError(f"{path}: expected a list of rows")
    try:
        rows = [dict.fromkeys(ROW_COLUMNS) | plain_row(_spelled_shapes(row)) | {"run": run.name} for row in rows]
    except ValueError as error:
        raise StoreError(f"{path}: {error}") from error
    if any(row["status"] not in STATUSES for row in rows):
        raise StoreError(f"{path}: status: missing or unknown")
    return rows, read_json(run / "request.json")


def _spelled_shapes(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with the shapes of a case as the command line spells them: 768x768+768 for [[768, 768], [768]]."""
    return {
        name: _spelled(value) if name.startswith("shape_") and isinstance(value, list) else value
        for name, value in row.items()
    }


def _spelled(value: Any) -> str:
    if not isinstance(value, list):
        return str(value)
    return ("+" if any(isinstance(part, list) for part in value) else "x").join(map(_spelled, value))


def _runs(path: Path) -> Iterator[Path]:
    for folder in comparison_dirs(path):
        names = sorted(name for name in names_in(folder / "runs") if name.startswith("run-") and is_name(name))
        yield from (folder / "runs" / name for name in names)


def unfinished_runs(path: Path) -> Iterator[Path]:
    """Yield the runs under a path that have measured something and have no rows: running, or killed."""
    yield from (run for run in _without_rows(path) if _has_measured(run))


def unmeasured_runs(path: Path) -> Iterator[Path]:
    """Yield the runs under a path that have neither measured anything nor rows: running, or killed."""
    yield from (run for run in _without_rows(path) if not _has_measured(run))


def _without_rows(path: Path) -> Iterator[Path]:
    yield from (run for run in _runs(path) if not (run / "rows.json").exists())


def _has_measured(run: Path) -> bool:
    return any(run.glob("process-*/case-*.json"))


def read_comparisons(*paths: str | Path) -> Comparisons:
    """Read every finished run under ``paths`` into one table, oldest run first; an empty one if there is none."""
    import pandas as pd

    damaged: list[str] = []
    rows: list[dict[str, Any]] = []
    requests: dict[str, dict[str, Any]] = {}
    unmeasured: list[Unmeasured] = []
    for run in dict.fromkeys(folder for path in paths for folder in _runs(Path(path))):
        if not (run / "rows.json").exists():
            continue
        try:
            run_rows, requests[run.name] = read_run(run)
        except StoreError as error:
            damaged.append(str(error))
            continue
        rows.extend(run_rows)
        if not run_rows:
            unmeasured.append(Unmeasured.of(run, str(read_json(run / "rows.json").get("ended", ""))))
    extra = dict.fromkeys(name for row in rows for name in row if name not in ROW_COLUMNS)
    return Comparisons(pd.DataFrame(rows, columns=[*ROW_COLUMNS, *extra]), tuple(damaged), requests, tuple(unmeasured))


def latest(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the newest run's rows of each case, direction and machine; names of runs sort by time."""
    if frame.empty:
        return frame
    keys = ["operation", "source", "backward", "case", "dtype", "machine_id"]
    newest = frame.groupby(keys, dropna=False)["run"].transform("max")
    return frame[frame["run"] == newest].reset_index(drop=True)


def latest_unmeasured(compared: Comparisons) -> list[Unmeasured]:
    """Return each operation's newest run if it ended before its first measurement."""
    measured = compared.frame.groupby("operation")["run"].max().to_dict()
    newest = {run.operation: run for run in sorted(compared.unmeasured, key=lambda run: run.run)}
    return [run for run in newest.values() if run.run > measured.get(run.operation, "")]


def went_wrong(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of providers that crashed or whose result is wrong (not: unavailable, out of memory)."""
    return frame[frame["status"].isin(["failed", "killed"]) | frame["accepted"].eq(False)]
