"""Trial folders and comparison runs on disk: reading and writing, nothing else."""

from scalebench.store.columns import RENAMED, STORE_COLUMNS, STORE_NAMES, Column, with_columns
from scalebench.store.files import (
    StoreError,
    check_writable,
    read_json,
    write_atomically,
    write_json,
    write_table,
)
from scalebench.store.plans import left_out_line, of_plans, planned_ids
from scalebench.store.trials import (
    SCHEMA,
    STATUSES,
    Results,
    export,
    latest_record,
    load_results,
    new_attempt,
    read_record,
    read_results,
    read_steps,
    read_study,
    study_dirs,
    write_record,
)

__all__ = [
    "RENAMED",
    "SCHEMA",
    "STATUSES",
    "STORE_COLUMNS",
    "STORE_NAMES",
    "Column",
    "Results",
    "StoreError",
    "check_writable",
    "export",
    "latest_record",
    "left_out_line",
    "load_results",
    "new_attempt",
    "of_plans",
    "planned_ids",
    "read_json",
    "read_record",
    "read_results",
    "read_steps",
    "read_study",
    "study_dirs",
    "with_columns",
    "write_atomically",
    "write_json",
    "write_record",
    "write_table",
]
