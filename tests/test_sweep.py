"""What a sweep takes for done: records of other code, damaged ones, statuses to retry; and what it plans for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from drivers import Drivers
from support import run_here

from scalebench import store
from scalebench.running.attempts import resources_of
from scalebench.running.planning import load_study, plan
from scalebench.running.sweep import save_study, survey
from scalebench.store.files import CHECKSUM, write_checked_json
from scalebench.study import Study


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished results, to change; they have a trial of 200 parameters and seed 0."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


def record_of(study: Study, results: Path) -> Path:
    """The path of the record of a study's only trial."""
    (trial,) = plan(study)
    (record,) = (results / study.name / "trials" / trial.trial_id).glob("*/record.json")
    return record


def test_retry_takes_up_the_statuses_asked_for(small_study: Path, tmp_path: Path) -> None:
    study = load_study(small_study, ["model.params=200", "train.seed=0", "train.device=cuda"])
    (row,) = run_here(study, tmp_path / "results").values()
    if row["status"] == "ok":
        pytest.skip("this machine has a CUDA device")
    assert not survey(study, tmp_path / "results").missing
    assert not survey(study, tmp_path / "results", ["failed"]).missing
    assert len(survey(study, tmp_path / "results", ["failed", "unsupported"]).missing) == 1


def test_rows_of_other_code_are_announced_and_run_again_when_asked(small_study: Path, copied: Path) -> None:
    study = load_study(small_study, ["model.params=200", "train.seed=0"])
    record = record_of(study, copied)
    content = {name: value for name, value in json.loads(record.read_text()).items() if name != CHECKSUM}
    write_checked_json(record, content | {"code_fingerprint": "0" * 12})
    assert survey(study, copied).other_code == 1
    assert not survey(study, copied).missing
    assert len(survey(study, copied, fresh_code=True).missing) == 1


@pytest.mark.slow
def test_a_damaged_record_counts_as_missing_and_is_made_again(
    small_study: Path, copied: Path, drivers: Drivers
) -> None:
    study = load_study(small_study, ["model.params=200", "train.seed=0"])
    record = record_of(study, copied)
    record.write_bytes(record.read_bytes()[:100])
    sweep = survey(study, copied)
    assert len(sweep.missing) == 1
    assert str(record) in sweep.damaged[0]
    settings = ["--set", "model.params=200", "--set", "train.seed=0"]
    driver = drivers.start(small_study.parent, ["run", small_study, "--results", copied, "--json", *settings])
    assert driver.wait(60) == 0, driver.err
    assert survey(study, copied).statuses() == {"ok": 1}


def test_the_plan_says_what_a_trial_needs(small_study: Path) -> None:
    study = load_study(small_study, ["run.timeout_s=5"])
    small, *_, large = [resources_of(planned, study) for planned in plan(study)]
    assert (small.cpus, small.gpus, small.processes, small.timeout_s, small.share_device) == (1, 0, 1, 5, False)
    assert 0 < small.memory_bytes < large.memory_bytes
    assert 0 < small.expected_s < large.expected_s
    study = load_study(small_study, ["train.device=cuda", "run.share_device=true"])
    on_gpu = resources_of(plan(study)[0], study)
    assert (on_gpu.gpus, on_gpu.timeout_s, on_gpu.share_device) == (1, None, True)


def test_runs_of_one_file_with_other_settings_add_to_the_plan_and_an_edited_file_replaces_it(
    small_study: Path, tmp_path: Path
) -> None:
    def saved(*settings: str) -> dict[str, Any]:
        study = load_study(small_study, settings)
        save_study(survey(study, tmp_path / "results"), study)
        return store.read_json(tmp_path / "results" / study.name / "study.json")

    first = saved("train.seed=0")
    both = saved("train.seed=5")
    assert len(first["planned"]) == 2
    assert len(both["planned"]) == 4
    assert (first["axes"].get("seed"), both["axes"]["seed"]) == (None, [0, 5])
    assert saved("train.seed=0")["planned"] == both["planned"]
    path = tmp_path / "results" / both["name"] / "study.json"
    without = {key: value for key, value in both.items() if key not in ("fields", "sha256")}
    store.write_checked_json(path, without)  # as of an earlier version
    assert saved("train.seed=0")["planned"] == first["planned"]
    small_study.write_text(small_study.read_text() + "\n# another version\n")
    edited = saved("train.seed=7")
    assert len(edited["planned"]) == 2
    assert [trial["trial_id"] for trial in edited["earlier"]] == sorted(trial["trial_id"] for trial in first["planned"])
