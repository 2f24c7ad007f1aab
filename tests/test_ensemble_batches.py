"""Batches of trials that one worker runs: which are made, who claims them, and what happens when a worker is lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ensemble_support import prepared, run_alone, run_together, small_study
from support import PLACEMENT

from scalebench import store
from scalebench.analysis.study import StudyAnalysis
from scalebench.cli.app import main
from scalebench.errors import StudyError
from scalebench.running.batches import MEMBERS, members_of
from scalebench.running.claims import Observer, driving
from scalebench.running.engines.base import close_attempt
from scalebench.running.engines.local import time_limit_s
from scalebench.running.ensembles import NO_OTHER, grouped
from scalebench.running.members import run_members
from scalebench.running.planning import plan
from scalebench.running.sweep import execute, survey
from scalebench.running.worker import started, write_end
from scalebench.study.sections import RunSection
from scalebench.workloads import WORKLOADS, columns_of
from scalebench.workloads.ensemble import MOST_PARAMS
from scalebench.workloads.ensemble_run import train_together


def ids_by_batch(study: Any, folder: Path) -> list[list[str]]:
    return grouped(plan(study, folder), study).batches


def test_a_batch_has_one_size_and_a_group_is_divided_evenly(tmp_path: Path) -> None:
    settings = ('model={family="mlp", params=[200, 800], depth=1}', "train.seed=[0,1,2,3,4]", "train.weight_decay=0.1")
    study = small_study(tmp_path, *settings, "run.ensemble=4")  # ten trials of each size
    planned = {trial.trial_id: trial for trial in plan(study, tmp_path)}
    batches = ids_by_batch(study, tmp_path)
    assert sorted(trial_id for ids in batches for trial_id in ids) == sorted(planned)
    assert [len(ids) for ids in batches] == [4, 3, 3, 4, 3, 3]
    assert all(len({planned[trial_id].counts.total for trial_id in ids}) == 1 for ids in batches)


def test_trials_that_differ_in_more_are_not_of_one_batch(tmp_path: Path) -> None:
    fixed = ("train.seed=0", "train.weight_decay=0.1")
    study = small_study(tmp_path, *fixed, "train.batch_size=[8, 9]")
    assert [len(ids) for ids in ids_by_batch(study, tmp_path)] == [2, 2]
    single = small_study(tmp_path, *fixed, "train.beta1=[0.8, 0.9]", "train.learning_rate=0.1")
    grouping = grouped(plan(single, tmp_path), single)
    assert [len(ids) for ids in grouping.batches] == [1, 1]
    assert grouping.alone == {NO_OTHER: 2}


def test_without_run_ensemble_every_trial_has_its_worker_and_ids_stay_the_same(tmp_path: Path) -> None:
    path = tmp_path / "plain.toml"
    study = small_study(tmp_path)
    plain = study.model_copy(update={"run": RunSection(memory="allocator")})
    assert [trial.trial_id for trial in plan(plain, path)] == [trial.trial_id for trial in plan(study, path)]
    assert [len(ids) for ids in ids_by_batch(plain, tmp_path)] == [1] * 8


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        (["train.optimizer=muon", 'model={family="mlp", params=1000}'], "the optimizer muon has no batched form"),
        (["train.implementation=compile"], 'implementation = "compile"'),
        (["train.precision=bfloat16"], 'precision = "bfloat16"'),
        (["train.accumulation=2"], "accumulation = 2"),
        (["train.processes=2"], "processes = 2"),
        (["train.device=cuda"], "GPU"),
        (['model={family="rnn", params=20000}', "train.sequence_length=8"], "rnn has operations"),
        (['model={family="gpt", params=3000}', "train.sequence_length=8", "train.checkpointing=true"], "checkpointing"),
        (['model={family="mlp", params=4e4}'], f"more than {MOST_PARAMS:,} parameters"),
        (["run.memory_limit_bytes=1e9"], "memory_limit_bytes"),
        (["run.on_oom=accumulate"], "on_oom"),
        (["run.checkpoint_steps=[2]"], "checkpoint_steps"),
        (["run.checkpoint_every_steps=2"], "checkpoint_every_steps"),
        (["run.checkpoint_every_s=2"], "checkpoint_every_s"),
    ],
)
def test_what_no_ensemble_takes_is_run_one_by_one_with_the_reason(settings, reason, tmp_path: Path) -> None:
    study = small_study(tmp_path, *settings, "train.weight_decay=0.1", "train.learning_rate=0.01")
    grouping = grouped(plan(study, tmp_path), study)
    assert [len(ids) for ids in grouping.batches] == [1, 1]
    ((why, count),) = grouping.alone.items()
    assert reason in why
    assert count == 2
    assert f"one by one, 2: {why}" in grouping.sentences()


def test_other_engines_start_a_worker_for_each_trial(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    grouping = grouped(plan(study, tmp_path), study, "slurm")
    assert [len(ids) for ids in grouping.batches] == [1] * 8
    assert list(grouping.alone) == ["the engine slurm starts a worker for each trial"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["run.ensemble=1"], "run.ensemble"),
        (["run.ensemble=2.5"], "run.ensemble"),
        (["run.ensemble=[2, 4]"], "run.ensemble"),
        (["run.ensemble=5000"], "run.ensemble"),
        (["workload=inference", "train={}"], "run.ensemble: trials of the workload 'inference' run one by one"),
    ],
)
def test_a_wrong_value_is_refused_with_its_field(settings, message, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=message) as refusal:
        plan(small_study(tmp_path, *settings), tmp_path)
    value = settings[0].partition("=")[2] if settings[0].startswith("run") else "8"
    assert value.strip("[]").split(",")[0] in str(refusal.value)


def test_only_the_workload_that_trains_together_declares_the_columns_of_it() -> None:
    names = {name: {column.name for column in columns_of(name)} for name in WORKLOADS}
    assert [name for name in WORKLOADS if "ensemble_size" in names[name]] == ["training"]


def test_plan_says_what_is_trained_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_study(tmp_path)
    command = ["plan", str(tmp_path / "small.toml"), "--results", str(tmp_path / "r")]
    two = ("--set", 'train.optimizer=["adamw", "muon"]', "--set", "model.params=1000", "--set", "model.depth=2")
    with pytest.raises(SystemExit, match="0"):
        main([*command, *two])
    text = " ".join(capsys.readouterr().out.split())
    assert "8 trials in 1 batch of 8; their times and memory are not measured" in text
    assert "one by one, 8: the optimizer muon has no batched form" in text
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--json"])
    ensembles = json.loads(capsys.readouterr().out)["ensembles"]
    assert [len(ids) for ids in ensembles["batches"]] == [8]
    assert ensembles["alone"] == {}


def test_a_worker_of_a_batch_needs_the_memory_and_the_time_of_all_its_trials(tmp_path: Path) -> None:
    study = small_study(tmp_path, "run.timeout_s=7")
    ours, planned = prepared(study, tmp_path)
    theirs, _ = prepared(study, tmp_path)
    ours.add_batch([(trial, 1) for trial in planned])
    seen: list[Any] = []

    def place(leads, needs, *, begin, **_: Any) -> Iterator[Path]:
        seen.extend(needs)
        for trial in planned[3:]:  # another driver is faster
            assert theirs.begin(theirs.add(trial, 1))
        assert begin(leads[0])
        seen.append(time_limit_s(leads[0], needs[0]))
        return iter(())

    assert list(ours.run(place)) == []
    needs, limit_s = seen
    assert needs.cpus == 1
    assert needs.memory_bytes == sum(trial.memory_bytes for trial in planned)
    assert limit_s == 3 * 7  # of the trials that it has, not of those that it was to have


def test_a_member_that_another_driver_has_is_left_out_and_its_lead_is_nobodys_twice(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    ours, planned = prepared(study, tmp_path)
    theirs, _ = prepared(study, tmp_path)
    ours.add_batch([(trial, 1) for trial in planned])
    (lead, *others) = ours._coming
    assert theirs.begin(theirs.add(planned[3], 1))
    assert ours.begin(lead)
    assert members_of(lead) == [lead, *others[:2], *others[3:]]
    assert not others[2].exists()
    again, _ = prepared(study, tmp_path)  # a third driver claims nothing of it
    again.add_batch([(trial, 1) for trial in planned])
    assert not again.begin(next(iter(again._coming)))
    assert again.begun == []


def test_every_member_is_seen_as_running(tmp_path: Path) -> None:
    study = small_study(tmp_path)
    folder = tmp_path / study.name
    with driving(folder) as driver:
        attempts, planned = prepared(study, tmp_path)
        attempts.driver = driver
        attempts.__post_init__()
        attempts.add_batch([(trial, 1) for trial in planned])
        lead = next(iter(attempts._coming))
        assert attempts.begin(lead)
        observer = Observer(folder)
        running = [observer.running(folder / "trials" / trial.trial_id) for trial in planned]
        assert running == members_of(lead)


def test_a_killed_worker_leaves_its_unfinished_members_killed_and_the_next_run_takes_up_those(tmp_path: Path) -> None:
    study = small_study(tmp_path, "train.weight_decay=0.1")
    undisturbed = run_alone(study, tmp_path / "alone")

    def killed(lead: Path) -> None:
        """End two of four trials, then end as the engine closes a worker that was killed."""
        attempts = members_of(lead)
        members = [started(attempt, store.read_header(attempt), PLACEMENT) for attempt in attempts]

        def ended(index: int, error: Exception | None) -> None:
            if index in (2, 3):
                write_end(*members[index], error)

        train_together(members, ended)
        close_attempt(lead, "killed", "WorkerEnded", "the worker ended without a record: SIGKILL")

    rows = run_together(study, tmp_path / "r", killed)
    assert [row["status"] for row in rows.values()].count("killed") == 2
    lead_id = next(iter(rows))
    for trial_id, row in rows.items():
        if row["status"] == "killed":
            assert "SIGKILL" in row["error_message"]
            assert (lead_id in row["error_message"]) == (trial_id != lead_id)
    assert len(survey(study, tmp_path / "r").missing) == 0
    missing = survey(study, tmp_path / "r", ["killed"]).missing
    assert {trial.trial_id for trial in missing} == {key for key, row in rows.items() if row["status"] == "killed"}
    finished = {key: row["validation_loss_nats"] for key, row in rows.items() if row["status"] == "ok"}
    for trial_id, loss in finished.items():
        assert loss == pytest.approx(undisturbed[trial_id]["validation_loss_nats"], rel=1e-5)


@pytest.mark.parametrize(
    "members", [["../../elsewhere"], ["a/../../b"], ["/etc/passwd"], [3], "a/b", None, ["..", "."]]
)
def test_a_list_of_members_that_leads_elsewhere_is_refused(members: Any, tmp_path: Path) -> None:
    lead = tmp_path / "small" / "trials" / "0123" / "attempt-1"
    lead.mkdir(parents=True)
    store.write_json(lead / MEMBERS, {"members": members})
    with pytest.raises(store.StoreError):
        members_of(lead)


def test_a_member_behind_a_link_out_of_the_results_is_refused(tmp_path: Path) -> None:
    lead = tmp_path / "r" / "small" / "trials" / "0123" / "attempt-1"
    lead.mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (lead.parents[1] / "4567").symlink_to(tmp_path / "outside")
    store.write_json(lead / MEMBERS, {"members": ["4567/attempt-1"]})
    with pytest.raises(store.StoreError):
        members_of(lead)


def test_a_report_says_that_times_of_such_trials_are_not_fitted(tmp_path: Path) -> None:
    run_together(small_study(tmp_path, "train.weight_decay=0.1"), tmp_path / "r")
    results = store.read_results(tmp_path / "r" / "small")
    study = StudyAnalysis("small", {}, results.frame)
    (series, *_) = study.series
    assert series.timed.empty
    assert series.step_time.fit is None
    assert "run.ensemble" in series.step_time.reason


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_a_run_whose_worker_is_killed_is_finished_by_the_same_command(tmp_path: Path) -> None:
    study = small_study(tmp_path, "train.weight_decay=0.1", "train.steps=40")
    undisturbed = run_alone(study, tmp_path / "alone")
    long = small_study(tmp_path, "train.weight_decay=0.1", "train.steps=1000000")
    stopped: list[str] = []

    def kill(running: list[Path]) -> None:
        if running and not stopped and all((attempt / "heartbeat.json").exists() for attempt in running):
            stopped.extend(attempt.parent.name for attempt in running)
            os.kill(store.read_json(running[0] / "placement.json")["pid"], signal.SIGKILL)

    rows = list(execute(survey(long, tmp_path / "r"), long, tick=kill))
    assert [row["status"] for row in rows] == ["killed"] * 4
    assert sorted(stopped) == sorted(row["trial_id"] for row in rows)
    rows = list(execute(survey(study, tmp_path / "r"), study))
    assert len(rows) == len(undisturbed) == 4
    for row in rows:
        assert (row["status"], row["ensemble_size"], row["timing_exclusive"]) == ("ok", 4, False)
        expected = undisturbed[row["trial_id"]]["validation_loss_nats"]
        assert row["validation_loss_nats"] == pytest.approx(expected, rel=1e-5)
    assert survey(study, tmp_path / "r").missing == []


def test_a_member_whose_folder_goes_leaves_the_others_ok(tmp_path: Path) -> None:
    study, folders = small_study(tmp_path, "train.weight_decay=0.1"), []

    def work(lead: Path) -> None:
        attempts = folders[:] = members_of(lead)
        first = iter([True])

        def end(trial, recorder, error):
            if next(first, False):
                shutil.rmtree(attempts[1])
            return write_end(trial, recorder, error)

        run_members(lead, PLACEMENT, started, end)

    with pytest.raises(store.StoreError, match="no such file"):
        run_together(study, tmp_path / "r", work)
    for attempt in (folders[0], *folders[2:]):
        assert store.read_record(attempt)["status"] == "ok"
    assert [trial.trial_id for trial in survey(study, tmp_path / "r").missing] == [folders[1].parent.name]
