"""Declared columns: every name in a record has a unit and a meaning, written beside the code that fills it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Column:
    """One column of a record: its name, its unit ("" for text and flags, "1" for counts and ratios), its meaning."""

    name: str
    unit: str
    meaning: str


# What the store itself needs in every record. Everything else is declared by the module that fills it.
STORE_COLUMNS = (
    Column("study", "", "name of the study"),
    Column("workload", "", "what was done with the model: a name of `scalebench list`"),
    Column("trial_id", "", "first 16 hex digits of the SHA-256 of everything that can change the trial's result"),
    Column("attempt", "", "name of the attempt's folder"),
    Column("status", "", "ok, oom, diverged, timeout, failed, killed or unsupported"),
    Column("error_class", "", "class of the error that ended the trial"),
    Column("error_message", "", "message of the error that ended the trial"),
    Column("stop_step", "1", "steps (or calls) done when the trial ended"),
    Column("invalid_reason", "", "why the numbers cannot be true (such a row stays out of the fits)"),
)
STORE_NAMES = tuple(column.name for column in STORE_COLUMNS)
# Where and with what something was measured: in the records of trials and the rows of comparisons
# (measure/environment.py fills them).
ENVIRONMENT_COLUMNS = (
    Column("machine_id", "", "12 hex digits that tell machines apart"),
    Column("device_kind", "", "cpu or cuda"),
    Column("device_name", "", "name of the GPU, or of the CPU"),
    Column("cpu_model", "", "name of the CPU"),
    Column("threads", "1", "CPU threads that torch uses"),
    Column("started_at", "", "start of the trial or the comparison, UTC"),
    Column("git_commit", "", "commit of the checkout that ran"),
    Column("git_dirty", "", "whether that checkout had uncommitted changes"),
    Column("code_fingerprint", "", "first 12 hex digits of the SHA-256 of the source that decides results"),
    Column("python_version", "", "version of Python"),
    Column("torch_version", "", "version of torch"),
    Column("triton_version", "", "version of triton"),
    Column("ptxas_version", "", "version of the assembler of the GPU's machine code"),
    Column("platform", "", "operating system"),
)
# What older records call a column, and its name now.
RENAMED = {"mode": "workload"}


def with_columns(frame: pd.DataFrame, names: Iterable[str]) -> pd.DataFrame:
    """Return the table with every column in ``names``: null in those that no record has."""
    absent = [name for name in dict.fromkeys(names) if name not in frame]
    return frame.assign(**dict.fromkeys(absent)) if absent else frame
