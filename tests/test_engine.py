"""Whole trials in processes of their own: every status by a real cause, resumption, interruption."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import SMALL, SOURCE_PATH, run_here

from scalebench import store
from scalebench.measure.device_lock import WAITING
from scalebench.running import processes
from scalebench.running.attempts import resources_of
from scalebench.running.engines import Resources, local
from scalebench.running.planning import load_study, plan
from scalebench.running.sweep import execute, run, save_study, survey
from scalebench.store.files import CHECKSUM, write_checked_json
from scalebench.study import Study


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the packages when they are not installed."""
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)


def one(tmp_path: Path, *settings: str, text: str = SMALL, in_a_worker: bool = False) -> dict[str, object]:
    """Run a study of one trial, in this process unless in a worker of its own, and return its row."""
    path = tmp_path / "one.toml"
    path.write_text(text)
    study = load_study(path, ["model.params=200", "train.seed=0", *settings])
    results = tmp_path / "results"
    (row,) = (run(study, results, jobs=1).rows if in_a_worker else run_here(study, results)).values()
    return row


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished results, to change; their trial of 200 parameters is ``one()``'s."""
    return Path(shutil.copytree(finished, tmp_path / "results"))


def record_of(study: Study, results: Path) -> Path:
    """The path of the record of a study's only trial."""
    (trial,) = plan(study)
    (record,) = (results / study.name / "trials" / trial.trial_id).glob("*/record.json")
    return record


@pytest.mark.slow
def test_a_study_runs_once_and_then_has_nothing_left(small_study: Path, tmp_path: Path) -> None:
    study = load_study(small_study)
    first = run(study, tmp_path / "r", jobs=2)
    assert first.executed == 4
    assert first.statuses() == {"ok": 4}
    again = run(study, tmp_path / "r")
    assert again.executed == 0
    about = store.read_results(tmp_path / "r").studies["small"]
    assert about["axes"] == {"params": [200.0, 800.0], "seed": [0, 1]}
    assert {trial["trial_id"] for trial in about["planned"]} == set(first.rows)
    assert about["study_toml"] == small_study.read_text()
    half = tmp_path / "r" / "small" / "study.json"
    half.write_bytes(half.read_bytes()[:40])
    run(study, tmp_path / "r")
    assert store.read_results(tmp_path / "r").studies["small"]["title"] == "small"
    frame = store.load_results(tmp_path / "r").sort_values(["params", "seed"])
    assert frame["params"].tolist() == [201, 201, 801, 801]
    assert frame["seed"].tolist() == [0, 1, 0, 1]
    assert (frame["validation_loss_nats"] > frame["floor_nats"]).all()
    assert frame["mfu"].between(0, 1).all()
    assert frame["timing_exclusive"].all()
    assert frame["invalid_reason"].isna().all()
    assert (frame["memory_parameters_bytes"] == 4 * frame["params"]).all()
    assert frame["data_time_s"].lt(frame["step_time_median_s"]).all()
    for folder in frame["attempt_dir"]:
        steps = store.read_steps(folder)
        assert len(steps) == 30
        assert steps["train_loss_nats"].notna().all()
        assert sorted(path.name for path in Path(folder).iterdir()) == [
            "environment.json", "heartbeat.json", "placement.json", "record.json",
            "stderr.log", "stdout.log", "steps.parquet", "trial.json",
        ]  # fmt: skip


@pytest.mark.slow
def test_the_record_agrees_with_the_samples(tmp_path: Path) -> None:
    row = one(tmp_path)
    steps = store.read_steps(str(row["attempt_dir"]))
    warm = steps["step_time_s"][steps["warm"]]
    assert row["step_time_median_s"] == pytest.approx(warm.median())
    assert row["first_step_time_s"] == steps["step_time_s"].iloc[0]
    assert row["samples_per_s"] == pytest.approx(32 / warm.median())
    assert row["achieved_flops_per_s"] == pytest.approx(row["flops_per_step"] / warm.median())
    assert row["stop_step"] == 30
    assert row["checkpoint_bytes"] == 3 * 4 * row["params"] + 4 * 4


@pytest.mark.slow
def test_the_same_trial_gives_the_same_loss_in_another_process(finished: Path, tmp_path: Path) -> None:
    first = one(tmp_path)
    frame = store.load_results(finished).set_index("trial_id")
    assert frame.loc[first["trial_id"], "validation_loss_nats"] == first["validation_loss_nats"]


@pytest.mark.slow
def test_every_implementation_on_a_cpu_reaches_the_same_loss(tmp_path: Path) -> None:
    text = SMALL.replace("mlp", "gpt").replace("depth = 1", "depth = 2")
    path = tmp_path / "three.toml"
    path.write_text(text)
    settings = ["model.params=1500", "train.seed=0", "train.steps=12", "train.sequence_length=16"]
    study = load_study(path, [*settings, 'train.implementation=["eager", "sdpa", "compile"]'])
    rows = {row["implementation"]: row for row in run(study, tmp_path / "r").rows.values()}
    assert {row["status"] for row in rows.values()} == {"ok"}
    losses = [rows[name]["validation_loss_nats"] for name in ("eager", "sdpa", "compile")]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)
    # Compilation is the first step's, and is kept apart.
    assert rows["compile"]["first_step_time_s"] > 20 * rows["compile"]["step_time_median_s"]
    assert rows["compile"]["memory_parameters_bytes"] == rows["eager"]["memory_parameters_bytes"]


def test_a_loss_that_explodes_is_diverged_and_keeps_its_samples(tmp_path: Path) -> None:
    row = one(
        tmp_path, "train.optimizer=sgd", "train.learning_rate=1e30", "train.gradient_clip=1e30", "train.warmup_steps=0"
    )
    assert (row["status"], row["error_class"]) == ("diverged", "Diverged")
    assert row["validation_loss_nats"] is None
    assert len(store.read_steps(str(row["attempt_dir"]))) == row["stop_step"] == 20


def test_a_model_larger_than_memory_is_oom(tmp_path: Path) -> None:
    row = one(tmp_path, "model.family=linear", "model.params=1e15", text=SMALL.replace("depth = 1", ""))
    assert row["status"] == "oom"
    assert row["peak_rss_bytes"] > 0
    assert "allocate" in str(row["error_message"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.precision=float16", "float16 training needs a GPU"),
        ("train.device=cuda", "none"),
    ],
)
def test_what_the_machine_cannot_do_is_unsupported_with_the_reason(tmp_path: Path, setting: str, reason: str) -> None:
    import torch

    if setting.endswith("cuda") and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    row = one(tmp_path, setting)
    assert row["status"] == "unsupported"
    assert reason in str(row["error_message"])


def test_triton_on_gpt_is_unsupported_without_a_gpu_and_never_replaced(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    text = SMALL.replace("mlp", "gpt").replace("depth = 1", "depth = 2")
    row = one(tmp_path, "model.params=1500", "train.implementation=triton", "train.sequence_length=8", text=text)
    assert row["status"] == "unsupported"
    assert "no CUDA device: the fused kernels need one" in str(row["error_message"])


@pytest.mark.slow
def test_text_that_changes_under_a_planned_trial_fails_it(tmp_path: Path) -> None:
    story = tmp_path / "story.txt"
    story.write_text("".join(f"line {i} of a story that goes on\n" for i in range(3000)))
    path = tmp_path / "s.toml"
    path.write_text(
        f'schema=1\nname="s"\n[model]\nfamily="gpt"\nparams=1500\n[train]\nsteps=3\n[data]\nsource="text:{story}"\n'
    )
    study = load_study(path)
    sweep = survey(study, tmp_path / "r")
    story.write_text(story.read_text() + "and one line more\n")
    (row,) = execute(sweep, study, jobs=1)
    assert (row["status"], row["error_class"]) == ("failed", "RuntimeError")
    assert "changed since" in row["error_message"]
    assert "Traceback" in (Path(row["attempt_dir"]) / "stderr.log").read_text()


@pytest.mark.slow
def test_a_trial_past_its_time_is_stopped_with_its_last_step(tmp_path: Path) -> None:
    row = one(tmp_path, "train.steps=1e7", "run.timeout_s=4", in_a_worker=True)
    assert row["status"] == "timeout"
    assert row["stop_step"] > 100
    assert row["machine_id"]
    assert not psutil.pid_exists(store.read_json(Path(str(row["attempt_dir"])) / "placement.json")["pid"])


@pytest.mark.slow
def test_a_worker_that_is_killed_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "k.toml"
    path.write_text(SMALL)
    study = load_study(path, ["model.params=200", "train.seed=0", "train.steps=1e7"])

    killed: list[int] = []

    def kill(running: Sequence[Path]) -> None:
        if killed or not (running and _beats(running[0])):
            return
        killed.append(store.read_json(running[0] / "placement.json")["pid"])
        os.kill(killed[0], signal.SIGKILL)

    (row,) = execute(survey(study, tmp_path / "r"), study, jobs=1, tick=kill)
    assert row["status"] == "killed"
    assert "SIGKILL" in row["error_message"]
    assert row["stop_step"] > 0


def _beats(attempt: Path) -> bool:
    return (attempt / "heartbeat.json").exists()


def test_retry_takes_up_the_statuses_asked_for(tmp_path: Path) -> None:
    row = one(tmp_path, "train.device=cuda")
    if row["status"] == "ok":
        pytest.skip("this machine has a CUDA device")
    study = load_study(tmp_path / "one.toml", ["model.params=200", "train.seed=0", "train.device=cuda"])
    assert not survey(study, tmp_path / "results").missing
    assert not survey(study, tmp_path / "results", ["failed"]).missing
    assert len(survey(study, tmp_path / "results", ["failed", "unsupported"]).missing) == 1


@pytest.mark.slow
def test_rows_of_other_code_are_announced_and_run_again_when_asked(small_study: Path, copied: Path) -> None:
    study = load_study(small_study, ["model.params=200", "train.seed=0"])
    record = record_of(study, copied)
    content = {name: value for name, value in json.loads(record.read_text()).items() if name != CHECKSUM}
    write_checked_json(record, content | {"code_fingerprint": "0" * 12})
    assert survey(study, copied).other_code == 1
    assert not survey(study, copied).missing
    assert len(survey(study, copied, fresh_code=True).missing) == 1


@pytest.mark.slow
def test_a_damaged_record_counts_as_missing_and_is_made_again(small_study: Path, copied: Path) -> None:
    study = load_study(small_study, ["model.params=200", "train.seed=0"])
    record = record_of(study, copied)
    record.write_bytes(record.read_bytes()[:100])
    sweep = survey(study, copied)
    assert len(sweep.missing) == 1
    assert str(record) in sweep.damaged[0]
    assert run(study, copied, jobs=1).statuses() == {"ok": 1}


@pytest.mark.slow
def test_an_interrupted_run_loses_nothing_finished_and_goes_on(small_study: Path, tmp_path: Path) -> None:
    settings = ["model.params=[200, 400, 800]", "train.seed=0", "train.steps=200"]
    command = [sys.executable, "-m", "scalebench.cli.app", "run", str(small_study), "--jobs", "1"]
    command += [word for setting in settings for word in ("--set", setting)]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("results/small/trials/*/*/record.json")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 3
    assert "run the same command again" in errors
    assert "Traceback" not in errors
    study = load_study(small_study, settings)
    done = 3 - len(survey(study, tmp_path / "results").missing)
    assert 1 <= done < 3
    assert run(study, tmp_path / "results").executed == 3 - done
    assert set(store.load_results(tmp_path / "results")["status"]) == {"ok"}


def test_cores_are_dealt_without_overlap_and_shared_only_when_there_are_too_few(monkeypatch) -> None:
    monkeypatch.setattr(local, "usable_cpus", lambda: [0, 1, 2, 3, 4])
    assert local.core_sets(1) == [(0, 1, 2, 3, 4)]
    assert local.core_sets(2) == [(0, 1), (2, 3)]
    assert local.core_sets(5) == [(0,), (1,), (2,), (3,), (4,)]
    assert local.core_sets(7) == [(0,), (1,), (2,), (3,), (4,), (0,), (1,)]


def test_there_is_a_worker_per_core_on_a_cpu_and_one_on_a_gpu_unless_jobs_is_given(monkeypatch) -> None:
    monkeypatch.setattr(local, "usable_cpus", lambda: [0, 1, 2, 3, 4])
    cpu, wide, gpu = Resources(), Resources(cpus=2), Resources(gpus=1)
    assert local.worker_count([cpu] * 9, None) == 5
    assert local.worker_count([cpu] * 3, None) == 3
    assert local.worker_count([cpu, wide] * 9, None) == 2
    assert local.worker_count([gpu] * 9, None) == 1
    assert [local.worker_count([needs] * 9, 7) for needs in (cpu, gpu)] == [7, 7]


@pytest.fixture
def placements(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Place workers that do nothing, and return what the engine wrote for each of them, in the order they started."""
    monkeypatch.setattr(local, "usable_cpus", lambda: [0, 1])
    monkeypatch.setattr(local, "start_worker", lambda _, environment: processes.start(["true"], environment))
    monkeypatch.setattr(local, "close_attempt", lambda *_: None)
    started: list[Path] = []
    start = local._start

    def begin(attempt: Path, *rest: Any, **more: Any) -> Any:
        started.append(attempt)
        return start(attempt, *rest, **more)

    monkeypatch.setattr(local, "_start", begin)

    def run(resources: Sequence[Resources], jobs: int | None) -> list[dict[str, Any]]:
        started.clear()
        attempts = [tmp_path / f"{len(list(tmp_path.iterdir()))}-{number}" for number in range(len(resources))]
        for attempt in attempts:
            attempt.mkdir()
            store.write_json(attempt / "trial.json", {})
        assert set(local.place(attempts, resources, jobs=jobs)) == set(attempts)
        return [store.read_json(attempt / "placement.json") | {"at": attempts.index(attempt)} for attempt in started]

    return run


def test_more_workers_than_cores_are_not_exclusive(placements) -> None:
    trials = [Resources()] * 3
    assert [place["exclusive"] for place in placements(trials, 2)] == [True] * 3
    assert [place["exclusive"] for place in placements(trials, 3)] == [False] * 3
    assert {tuple(place["cpus"]) for place in placements(trials, 2)} == {(0,), (1,)}


def test_workers_on_a_gpu_are_exclusive_because_they_take_turns_unless_they_share_it(placements) -> None:
    alone, sharing = Resources(gpus=1), Resources(gpus=1, share_device=True)
    assert [place["exclusive"] for place in placements([alone] * 3, 3)] == [True] * 3
    assert [place["exclusive"] for place in placements([sharing] * 3, 3)] == [False] * 3


def test_trials_that_run_one_after_another_start_in_the_studys_order_and_others_the_longest_first(placements) -> None:
    def order(jobs: int, **more: Any) -> list[int]:
        return [place["at"] for place in placements([Resources(expected_s=s, **more) for s in (1, 9, 4)], jobs)]

    assert order(1) == [0, 1, 2]
    assert order(2) == [1, 2, 0]
    assert order(2, gpus=1) == [0, 1, 2]
    assert order(2, gpus=1, share_device=True) == [1, 2, 0]


def test_the_plan_says_what_a_trial_needs(small_study: Path) -> None:
    study = load_study(small_study, ["run.timeout_s=5"])
    small, *_, large = [resources_of(planned, study) for planned in plan(study)]
    assert (small.cpus, small.gpus, small.processes, small.timeout_s, small.share_device) == (1, 0, 1, 5, False)
    assert 0 < small.memory_bytes < large.memory_bytes
    assert 0 < small.expected_s < large.expected_s
    study = load_study(small_study, ["train.device=cuda", "run.share_device=true"])
    on_gpu = resources_of(plan(study)[0], study)
    assert (on_gpu.gpus, on_gpu.timeout_s, on_gpu.share_device) == (1, None, True)


def test_the_time_limit_of_a_trial_does_not_count_while_it_waits_for_a_gpu(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as process:
        worker = local._Worker(tmp_path, (), process, 5.0, time.monotonic() - 1.0)
        (tmp_path / WAITING).touch()
        assert not local._finished(worker)
        assert worker.deadline is not None
        assert worker.deadline > time.monotonic() + 4.0
        processes.stop(process)


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
