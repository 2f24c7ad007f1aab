"""Results folders of many trials, made up and written without syncing: for benchmarks and tests of the store."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalebench.store import SCHEMA
from scalebench.store.files import checksum

SAMPLES = b"not read"


def record_of(number: int, trial_id: str, columns: int = 100) -> dict[str, Any]:
    """Return a record with about as many columns as a real one; every number depends on the trial's."""
    values = {f"measured_{i}": (number + 0.5) * i if i % 3 else None for i in range(columns)}
    return {
        "study": "many", "workload": "training", "trial_id": trial_id, "status": "ok", "error_class": None,
        "error_message": None, "stop_step": 100, "invalid_reason": None, "params": 1000 + number, "family": "mlp",
        "params_non_embedding": 1000 + number, "validation_loss_nats": 1.5 + 20 * (1000 + number) ** -0.3,
        "step_time_median_s": 1e-3, "timing_exclusive": True, "code_fingerprint": None, "seed": number % 3, **values,
    }  # fmt: skip


def write_trial(study_dir: Path, record: Mapping[str, Any], attempt: str = "") -> Path:
    """Write one trial's attempt, its name by default its own: its record, with a checksum, and a file of samples."""
    attempt = attempt or f"attempt-20260101T000000000000Z-{record['trial_id']}"
    folder = study_dir / "trials" / str(record["trial_id"]) / attempt
    folder.mkdir(parents=True)
    (folder / "steps.parquet").write_bytes(SAMPLES)
    content = {"schema": SCHEMA, "files": {"steps.parquet": len(SAMPLES)}, **record, "attempt": attempt}
    (folder / "record.json").write_text(json.dumps(content | {"sha256": checksum(content)}, indent=1))
    return folder


def many_trials(results: Path, number: int, columns: int = 100) -> Path:
    """Write a study of ``number`` finished trials and return its folder."""
    study_dir = results / "many"
    for i in range(number):
        write_trial(study_dir, record_of(i, f"{i:016x}", columns))
    return study_dir
