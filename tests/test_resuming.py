"""Trials that were interrupted go on from their newest snapshot, bit for bit as if nothing had happened."""

from __future__ import annotations

import itertools
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from drivers import Drivers
from parent_support import refused
from resuming_support import PLACEMENT, finish, interrupt
from safetensors.torch import load_file

from scalebench import store
from scalebench.running.engines.base import Resources
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.worker import main
from scalebench.workloads import read_trial
from scalebench.workloads.resuming import INDEX, delete_snapshots, find_snapshot

STUDY = """
schema = 1
name = "long"
[model]
family = "gpt"
params = 1500
[train]
steps = 30
batch_size = 2
sequence_length = 8
learning_rate = 0.01
warmup_steps = 3
[data]
validation_samples = 16
[run]
checkpoint = true
memory = "allocator"
checkpoint_every_steps = 5
"""
BRANCHES = "run.checkpoint_steps=[4, 21]"
NEEDS = {"precisions": ["float32"], "most_processes": 1, "resources": asdict(Resources())}
IMAGES = 'model.family="resnet"'


def prepared(folder: Path, *settings: str) -> tuple[Path, dict[str, Any]]:
    """Make another attempt of the study's one trial and return its folder and header."""
    path = folder / "study.toml"
    # Only sequences have a length.
    path.write_text(STUDY.replace("sequence_length = 8\n", "") if IMAGES in settings else STUDY)
    study = load_study(path, settings)
    (trial,) = plan(study, folder / "results")
    attempt = store.new_attempt(folder / "results" / study.name, trial.trial_id)
    store.write_header(attempt, trial_header(study, trial, "a test") | NEEDS)
    return attempt, store.read_header(attempt)


def same(first: Path, second: Path) -> None:
    """Assert that two attempts have the same losses, weights, state and checkpoints, bit by bit."""
    steps = [store.read_steps(attempt) for attempt in (first, second)]
    pd.testing.assert_series_equal(steps[0]["train_loss_nats"], steps[1]["train_loss_nats"], check_exact=True)
    assert steps[0]["step"].tolist() == steps[1]["step"].tolist()
    names = [
        sorted(str(path.relative_to(attempt)) for path in attempt.rglob("*.safetensors") if "resume-" not in str(path))
        for attempt in (first, second)
    ]
    assert names[0] == names[1]
    for name in names[0]:
        ours, theirs = load_file(first / name), load_file(second / name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours), name
    rows = [store.read_record(attempt) for attempt in (first, second)]
    for column in ("validation_loss_nats", "train_loss_nats", "samples_seen", "stop_step", "trial_id", "first_step"):
        assert rows[0][column] == rows[1][column], column


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The attempt of an undisturbed trial."""
    attempt, header = prepared(tmp_path_factory.mktemp("whole"), BRANCHES, "run.checkpoint_every_steps=1000")
    assert finish(attempt, header)["resumed_from_step"] is None
    return attempt


@pytest.mark.slow
def test_an_interrupted_trial_goes_on_bit_for_bit(whole: Path, tmp_path: Path, monkeypatch) -> None:
    for number, after in enumerate((5, 13, 21)):
        attempt, header = prepared(tmp_path, BRANCHES)
        interrupt(monkeypatch, attempt, header, after)
        assert len([*tmp_path.glob(f"**/{INDEX}")]) == len([*tmp_path.glob("**/resume-*")]) == 1, number
    attempt, header = prepared(tmp_path, BRANCHES)
    row = finish(attempt, header)
    same(whole, attempt)
    assert (row["resumed_from_step"], row["resumed_attempts"]) == (20, 3)
    assert row["wall_time_s"] is None
    assert "resumed" in row["energy_method"]
    steps = store.read_steps(attempt)
    assert steps["step_time_s"].isna().tolist() == 20 * [True] + 10 * [False]
    assert row["step_time_median_s"] == pytest.approx(steps["step_time_s"][steps["warm"]].median())
    assert not steps["warm"][:21].any()


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(['train.optimizer="muon"', "train.accumulation=2"], marks=pytest.mark.slow),
        ['train.optimizer="lion"', 'train.precision="bfloat16"'],
        pytest.param([IMAGES, "model.params=3000"], marks=pytest.mark.slow),
        pytest.param(["model.family='moe'", "model.params=6000", 'train.optimizer="sgd"'], marks=pytest.mark.slow),
    ],
    ids=lambda settings: settings[0],
)
def test_optimizers_buffers_and_routers_go_on_bit_for_bit(settings: list[str], tmp_path: Path, monkeypatch) -> None:
    settings = [*settings, "train.steps=8"]
    (tmp_path / "other").mkdir()
    undisturbed, header = prepared(tmp_path / "other", *settings, "run.checkpoint_every_steps=1000")
    finish(undisturbed, header)
    attempt, header = prepared(tmp_path, *settings)
    interrupt(monkeypatch, attempt, header, 6)
    attempt, header = prepared(tmp_path, *settings)
    assert finish(attempt, header)["resumed_from_step"] == 5
    same(undisturbed, attempt)


@pytest.mark.slow
def test_a_requeued_attempt_goes_on_in_its_own_folder(whole: Path, tmp_path: Path, monkeypatch) -> None:
    attempt, header = prepared(tmp_path, BRANCHES)
    interrupt(monkeypatch, attempt, header, 26)  # after the checkpoint of step 21 and the snapshot of step 25
    assert finish(attempt, header)["resumed_from_step"] == 25
    same(whole, attempt)


def damaged(folder: Path) -> Iterator[str]:
    """Damage the snapshot in a trial's folder in one way after the other; yield what the line about it says."""
    (index,) = folder.glob(f"*/{INDEX}")
    files = [*sorted(index.parent.glob("resume-*/*")), index]
    assert len(files) == 4
    for path in files:
        content = path.read_bytes()
        middle = len(content) // 2
        for damage in (content[:middle], content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :], b""):
            path.write_bytes(damage)
            yield path.name
        path.write_bytes(content)
    about = {key: value for key, value in store.read_json(index).items() if key != "sha256"}
    for changes in ({"trial": "0" * 16}, {"code": "another"}, {"step": "../../x"}, {"step": 4}):
        store.write_checked_json(index, about | changes)
        yield INDEX if changes.get("step") != 4 else "resume-4"
    store.write_checked_json(index, about)


def test_a_damaged_snapshot_is_passed_over_with_a_line(tmp_path: Path, monkeypatch, capfd) -> None:
    attempt, header = prepared(tmp_path)
    interrupt(monkeypatch, attempt, header, 5)
    capfd.readouterr()
    trial, (following, header) = read_trial(header["trial"]), prepared(tmp_path)
    for name in damaged(attempt.parent):
        assert find_snapshot(following, trial).done == 0
        (line,) = capfd.readouterr().err.splitlines()
        assert line.startswith("not resumed from:"), line
        assert name in line
    assert find_snapshot(following, trial).done == 5
    smaller = trial.model_copy(update={"spec": trial.spec.model_copy(update={"accumulation": 2})})  # on_oom
    assert find_snapshot(following, smaller).done == 0


def test_a_trial_goes_on_where_no_snapshot_can_be_written(tmp_path: Path, monkeypatch, capfd) -> None:
    attempt, header = prepared(tmp_path, "train.steps=11")
    for step in (5, 10):
        (attempt / f"resume-{step}").touch()  # where the folder would be
    assert finish(attempt, header)["status"] == "ok"
    assert capfd.readouterr().err.count("not written") == 2


def test_nothing_is_left_once_a_trial_has_its_result(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("scalebench.running.worker.settle", lambda *_: PLACEMENT)
    attempt, header = prepared(tmp_path, "train.steps=12")
    interrupt(monkeypatch, attempt, header, 10)
    assert [*attempt.glob("resume*")]
    attempt, _ = prepared(tmp_path, "train.steps=12")
    assert main(str(attempt)) == 0
    assert not [*tmp_path.glob("**/resume*")]
    assert (attempt / "weights.safetensors").exists()


def test_snapshots_by_time(tmp_path: Path, monkeypatch) -> None:
    clock = itertools.count(step=100.0)
    monkeypatch.setattr("scalebench.workloads.training_run.time.monotonic", lambda: next(clock))
    every = ["run.checkpoint_every_steps=1000", "run.checkpoint_every_s=50"]
    attempt, header = prepared(tmp_path, *every)
    interrupt(monkeypatch, attempt, header, 20)
    assert [path.name for path in attempt.glob("resume-*")] == ["resume-20"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["workload=inference", "train={}"], "run.checkpoint_every_steps: trials of the"),
        (["run.checkpoint_every_steps=0"], "run.checkpoint_every_steps"),
        (["train.processes=2", 'train.parallel="fsdp"'], 'parallel = "fsdp" begin anew'),
    ],
)
def test_what_cannot_be_resumed_is_refused(settings: list[str], expected: str, tmp_path: Path) -> None:
    assert expected in refused(tmp_path, STUDY, *settings)


@pytest.mark.slow
def test_a_worker_killed_at_a_random_step(whole: Path, tmp_path: Path, drivers: Drivers) -> None:
    """The process gets SIGKILL between two steps, within one, or while it writes."""
    attempt, _ = prepared(tmp_path, BRANCHES)
    work = f"from scalebench.running import worker\nraise SystemExit(worker.main({str(attempt)!r}))"
    worker = drivers.start(tmp_path, [], before=work)
    stop_step = random.choice((10, 15, 20))  # so that an earlier one is complete
    while worker.poll() is None and not (attempt / f"resume-{stop_step}").exists():
        time.sleep(0.001)
    time.sleep(random.random() * 0.05)
    worker.kill()
    assert worker.wait() == -signal.SIGKILL
    assert not (attempt / "record.json").exists()
    attempt, header = prepared(tmp_path, BRANCHES)
    row = finish(attempt, header)
    assert row["resumed_attempts"] >= 1
    same(whole, attempt)


def test_a_snapshot_that_cannot_be_deleted_stops_nothing(tmp_path: Path, monkeypatch) -> None:
    """As in the folder of another user's attempt."""
    attempts = [tmp_path / f"attempt-{number}" for number in (1, 2)]
    for attempt in attempts:
        (attempt / "resume-5").mkdir(parents=True)
        (attempt / "resume.json").write_text("{}")
    unlink = Path.unlink

    def refuse(path: Path, missing_ok: bool = False) -> None:
        if path.parent == attempts[0]:
            raise PermissionError(13, "Permission denied")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    delete_snapshots(tmp_path)
    assert not (attempts[1] / "resume.json").exists()
