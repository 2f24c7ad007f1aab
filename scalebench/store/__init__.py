"""Trial folders and comparison runs on disk: reading and writing, nothing else."""

from scalebench.store.columns import ENVIRONMENT_COLUMNS, RENAMED, STORE_COLUMNS, STORE_NAMES, Column, with_columns
from scalebench.store.files import (
    NewerSchemaError,
    StoreError,
    check_writable,
    json_safe,
    open_regular,
    read_bytes,
    read_json,
    read_tail,
    write_atomically,
    write_checked_json,
    write_json,
    write_table,
)
from scalebench.store.names import check_inside, check_name, expanded, is_name, make_folder
from scalebench.store.outputs import write_output
from scalebench.store.plans import drop, earlier_ids, left_out_line, planned_ids, read_study, write_study
from scalebench.store.records import SCHEMA, STATUSES, read_header, read_record, write_header, write_record
from scalebench.store.results import Results, export, latest_records, load_results, of_plans, read_results
from scalebench.store.trials import latest_record, make_attempt, name_attempt, new_attempt, read_steps, study_dirs

__all__ = [
    "ENVIRONMENT_COLUMNS",
    "RENAMED",
    "SCHEMA",
    "STATUSES",
    "STORE_COLUMNS",
    "STORE_NAMES",
    "Column",
    "NewerSchemaError",
    "Results",
    "StoreError",
    "check_inside",
    "check_name",
    "check_writable",
    "drop",
    "earlier_ids",
    "expanded",
    "export",
    "is_name",
    "json_safe",
    "latest_record",
    "latest_records",
    "left_out_line",
    "load_results",
    "make_attempt",
    "make_folder",
    "name_attempt",
    "new_attempt",
    "of_plans",
    "open_regular",
    "planned_ids",
    "read_bytes",
    "read_header",
    "read_json",
    "read_record",
    "read_results",
    "read_steps",
    "read_study",
    "read_tail",
    "study_dirs",
    "with_columns",
    "write_atomically",
    "write_checked_json",
    "write_header",
    "write_json",
    "write_output",
    "write_record",
    "write_study",
    "write_table",
]
