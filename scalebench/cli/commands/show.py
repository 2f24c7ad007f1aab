"""The command `show`: one trial, its configuration, results, attempts and files."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench import store
from scalebench.cli.counted import counted
from scalebench.cli.output import duration, print_json, say, say_exactly, table
from scalebench.errors import MOST_IDS, InputError, beginning, several, unknown
from scalebench.reporting.quantities import NBSP, present, quantity, significant
from scalebench.store.trials import trial_folders

LISTED = ["params_non_embedding", "validation_loss_nats", "step_time_median_s"]
SIZES = ("params", "size", "requested_params")  # the column of the model has the size
VALUE_DIGITS = 4
LOG_LINES = 8
LOG_BYTES = 8192  # enough for these lines
# Columns that the other lines have, or that only the reader of files needs.
ELSEWHERE = {"files", "schema", "trial_id", "study", "status", "error_class", "error_message", "attempt", "attempt_dir",
             "checked"}  # fmt: skip
PREFIXED = {"B": "B", "s": "s", "FLOP": "FLOP", "FLOP/s": "FLOP/s", "1/s": "/s"}


def show_trial(results: Path, trial: str, *, as_json: bool) -> int:
    """Print one trial; exit code 1 if it did not end ok."""
    folder = find_trial(results, trial)
    attempts = sorted(folder.glob("attempt-*"))
    row, damaged = store.latest_record(folder)
    document = {
        "trial_id": folder.name,
        "study": folder.parents[1].name,
        "record": None if row is None else dict(row),
        "attempts": [str(attempt) for attempt in attempts],
        "damaged": list(damaged),
        "log": _log(attempts),
    }
    if as_json:
        print_json("show", document)
    else:
        _print(document, _units(folder.parents[1]))
    return 0 if row is not None and row["status"] == "ok" else 1


def list_trials(results: Path, *, as_json: bool) -> int:
    """Print every planned trial that has a result: id, status, model, settings that vary, loss and time of a step."""
    stored = store.read_results(results)
    frame = store.with_columns(store.of_plans(stored).frame, [*LISTED, "family"])
    parts = [_in_order(part, stored.studies.get(str(study), {})) for study, part in frame.groupby("study")]
    rows = pd.concat(parts) if parts else frame
    if as_json:
        names = ["study", "trial_id", "status", "family", *LISTED]
        print_json("show", {"trials": rows[names].to_dict("records"), "damaged": list(stored.damaged)})
        return 0
    for study, part in rows.groupby("study", sort=False):
        settings = _settings(part, stored.studies.get(str(study), {}))
        header = ("trial", "status", "model", "settings", "loss (nats)", "step")
        cells = [
            (row["trial_id"], row["status"], f"{row['family']} {_cell(row[LISTED[0]])}", text,
             _cell(row[LISTED[1]], digits=4), _cell(row[LISTED[2]], "s"))
            for row, text in zip(part.to_dict("records"), settings, strict=True)
        ]  # fmt: skip
        table(str(study), header, cells, text_columns=4)
    if rows.empty:
        status = f"scalebench status {shlex.quote(str(results))}"
        say(f"no trial in {results} has ended: {status} counts those that run or are missing")
    say(*(f"damaged, left out: {line}" for line in counted(stored.damaged)))
    return 0


def _in_order(trials: pd.DataFrame, definition: Mapping[str, Any]) -> pd.DataFrame:
    """Return a study's trials by size, then by their settings."""
    names = [LISTED[0], *(name for name in definition.get("axes") or {} if name in trials), "trial_id"]
    rows = trials.reset_index(drop=True)
    return rows.loc[sorted(rows.index, key=lambda i: [_sort_key(rows.at[i, name]) for name in names])]


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Return numbers before text, and what is missing last."""
    if isinstance(value, int | float | np.number) and value == value:  # noqa: PLR0124 - NaN differs from itself
        return (0, float(value), "")
    return (1, 0.0, value) if isinstance(value, str) else (2, 0.0, str(value))


def _cell(value: Any, unit: str = "", digits: int = 3) -> str:
    return quantity(value, unit, digits).replace(NBSP, " ")


def _settings(trials: pd.DataFrame, definition: Mapping[str, Any]) -> list[str]:
    """Return, for each trial, the axes of its study that vary, apart from its size, and the trial it started from."""
    axes = [*(definition.get("axes") or {}), "parent_trial_id"]
    names = [name for name in axes if name in trials and name not in SIZES and trials[name].astype(str).nunique() > 1]
    return [", ".join(_setting(name, row[name]) for name in names) for row in trials.to_dict("records")]


def _setting(name: str, value: Any) -> str:
    if name == "parent_trial_id":
        return f"from {str(value)[:8]}"
    return f"{name.replace('_', ' ')} {value:g}" if isinstance(value, float) else f"{name.replace('_', ' ')} {value}"


def find_trial(results: Path, trial: str) -> Path:
    """Return the folder of the trial whose id starts with ``trial``. Raises ``InputError`` or ``StoreError``."""
    is_folder = bool(trial) and Path(trial).is_dir()
    folders = trial_folders(results, _has_result) if results.exists() or not is_folder else {}
    matching = beginning(trial, folders)
    if len(matching) > 1:
        raise InputError([several(trial, matching)])
    if not matching and is_folder:
        raise InputError([f"{trial} is a folder, not a trial: scalebench show --results {shlex.quote(trial)}"])
    if not matching:
        raise InputError([f"{results}: trial {unknown(trial, folders, MOST_IDS)}; {len(folders)} in all"])
    return folders[matching[0]]


def _has_result(folder: Path) -> bool:
    return store.latest_record(folder)[0] is not None


def _units(study: Path) -> dict[str, str]:
    """Return the unit of each column, as the study recorded it."""
    definition = store.read_study(study, [])
    return {column["name"]: column["unit"] for column in definition.get("columns", [])}


def _log(attempts: list[Path]) -> list[str]:
    """Return the last lines of the newest attempt's log."""
    logs = [path for attempt in attempts[-1:] for path in sorted(attempt.glob("*.log"))]
    lines: list[str] = []
    for path in logs:
        try:
            lines += store.read_tail(path, LOG_BYTES).decode("utf-8", "replace").splitlines()
        except store.StoreError as error:
            lines.append(str(error))
    return lines[-LOG_LINES:]


def _print(document: dict[str, Any], units: dict[str, str]) -> None:
    row = document["record"]
    if row is None:
        say(f"{document['study']}/{document['trial_id']}: no result yet", *document["damaged"])
    else:
        say(f"{document['study']}/{document['trial_id']}: {row['status']}", _summary(row), "")
        if row["status"] != "ok":
            say(f"{row.get('error_class') or ''}: {row.get('error_message') or ''}", "")
        cells = [(name, _value(value, units.get(name, ""))) for name, value in row.items() if _is_shown(name, value)]
        table("", ("column", "value"), cells, text_columns=2)
    if document["log"]:
        say("", "end of its log:")
        say_exactly(*(f"  {line}" for line in document["log"]))
    number = len(document["attempts"])
    say("", "1 attempt:" if number == 1 else f"{number} attempts, the newest last:")
    say_exactly(*(f"  {attempt}" for attempt in document["attempts"]))


def _summary(row: Mapping[str, Any]) -> str:
    """Return the main numbers of a record in one line, those that it has."""
    parts = [
        ("params_non_embedding", "", "{} non-embedding parameters"), ("seed", "", "seed {}"),
        ("validation_loss_nats", "", "validation loss {} nats"), ("step_time_median_s", "s", "{} per step"),
        ("latency_median_s", "s", "{} per call"), ("peak_memory_allocated_bytes", "B", "{} of GPU memory"),
        ("memory_tracked_peak_bytes", "B", "{} of memory in tensors"),
    ]  # fmt: skip
    known = [text.format(_cell(row[name], unit, 4)) for name, unit, text in parts if present(row.get(name))]
    return ", ".join([str(row.get("family") or ""), *known])


def _is_shown(name: str, value: Any) -> bool:
    known = not (value is None or (isinstance(value, float) and pd.isna(value)))
    return known and name not in ELSEWHERE


def _value(value: Any, unit: str) -> str:
    """Write a value with its unit."""
    if isinstance(value, bool | str) or not isinstance(value, int | float):
        return str(value)
    if unit == "s" and value >= 60:
        return duration(value)
    if unit in PREFIXED:
        return quantity(value, PREFIXED[unit]).replace(NBSP, " ")
    text = f"{value:,}" if isinstance(value, int) else significant(value, VALUE_DIGITS)
    return text if unit in ("", "1") else f"{text} {unit}"
