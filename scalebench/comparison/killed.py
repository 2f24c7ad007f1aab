"""Runs whose command was killed: what their processes had measured is put into rows when the results are read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from scalebench.comparison import close_run
from scalebench.comparison.options import OPERATION_MODULES
from scalebench.errors import InputError
from scalebench.store import StoreError, read_json
from scalebench.store.comparisons import (
    RUNNING,
    Comparisons,
    Unmeasured,
    read_comparisons,
    unfinished_runs,
    unmeasured_runs,
)
from scalebench.store.locks import FileLock


def comparisons_in(*paths: Path) -> Comparisons:
    """Close the runs under ``paths`` whose command was killed, and read all runs.

    ``damaged`` has a line for each that cannot be closed: its folder cannot be written, or it compares an operation of
    the user's own, whose code is not run because results name it. A run that was killed before its first measurement
    is left as it is, and is among ``unmeasured``.
    """
    lines = [*_closed(dict.fromkeys(run for path in paths for run in unfinished_runs(path)))]
    unmeasured = dict.fromkeys(run for path in paths for run in unmeasured_runs(path))
    read = read_comparisons(*paths)
    killed = [Unmeasured.of(run, ended) for run in unmeasured if (ended := _end_of(run))]
    return replace(read, damaged=(*read.damaged, *lines), unmeasured=(*read.unmeasured, *killed))


def _end_of(run: Path) -> str:
    """Return how a run without rows ended; "" if it did not: a command holds it, or an import is making it."""
    if not (run / RUNNING).exists():
        return ""
    lock = FileLock(run / RUNNING)
    try:
        return "killed" if lock.try_take() and not (run / "rows.json").exists() else ""
    except OSError as error:
        return f"killed, or still running: {error}"
    finally:
        lock.release()


def _closed(runs: Iterable[Path]) -> Iterator[str]:
    """Close runs that no command holds any more; yield a line for each that cannot be closed."""
    for run in runs:
        lock = FileLock(run / RUNNING)
        try:
            if not lock.try_take():
                continue  # it is still measuring
            if (run / "rows.json").exists():
                continue  # it ended by itself a moment ago, and says how
            if (origin := read_json(run / "request.json")["origin"]) not in OPERATION_MODULES:
                yield f"{run}: not finished, and {origin} is not run to close it; scalebench.comparison.close_run does"
            else:
                close_run(run, "killed")
        except (StoreError, InputError, OSError, KeyError) as error:
            yield f"{run}: not finished, and cannot be closed: {error}"
        finally:
            lock.release()
