"""A parent that trains in a moment, children that start from it, and ways to plan, run and refuse such studies.

No two more steps of theirs are taken to split their memory by category, which none of these tests reads.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from support import PLACEMENT

from scalebench import store
from scalebench.errors import StudyError
from scalebench.measure import turns
from scalebench.measure.turns import times_in_turns
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.worker import run_trial

PARENT = """
schema = 1
name = "parent"
[model]
family = "gpt"
params = 3000
[train]
steps = 50
batch_size = 4
sequence_length = 16
learning_rate = 0.01
schedule = "constant"
warmup_steps = 5
[data]
validation_samples = 32
[run]
checkpoint = true
memory = "allocator"
"""
CHILD = """
schema = 1
name = "child"
[train]
steps = 50
[run]
checkpoint = true
memory = "allocator"
[from]
study = "parent"
"""
CONTINUED = CHILD + "optimizer_state = true\n"
FINETUNED = """
schema = 1
name = "child"
workload = "finetune"
[from]
study = "parent"
[finetune]
steps = 20
batch_size = 8
learning_rate = 0.01
[run]
checkpoint = true
"""
STUDENT = """
schema = 1
name = "student"
workload = "distill"
[model]
family = "gpt"
params = 1600
[distill]
teacher = {study = "teacher"}
steps = 5
batch_size = 4
learning_rate = 0.01
[run]
checkpoint = true
"""


def planned(tmp_path: Path, text: str, *settings: str) -> list[Any]:
    path = tmp_path / "study.toml"
    path.write_text(text)
    return plan(load_study(path, settings), tmp_path / "results")


def trained(tmp_path: Path, text: str, *settings: str) -> list[dict[str, Any]]:
    """Run the trials of a study in this process and return their records; latencies are of a few turns."""
    path = tmp_path / "study.toml"
    path.write_text(text)
    study, rows = load_study(path, settings), []
    for trial in plan(study, tmp_path / "results"):
        attempt = store.new_attempt(tmp_path / "results" / study.name, trial.trial_id)
        header = trial_header(study, trial, "a test")
        store.write_json(attempt / "trial.json", header)
        with patch.object(turns, "WARMUPS", 1), patch.dict(times_in_turns.__kwdefaults__, seconds=0.0, most=8):
            assert run_trial(attempt, json.loads((attempt / "trial.json").read_text()), PLACEMENT) == "ok"
        rows.append(store.read_record(attempt))
    return rows


def refused(tmp_path: Path, text: str, *settings: str) -> str:
    """Plan a study that is invalid and return the one line that says so."""
    with pytest.raises(StudyError) as caught:
        planned(tmp_path, text, *settings)
    (line,) = caught.value.lines
    return line
