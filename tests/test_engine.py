"""Whole trials in processes of their own: every status by a real cause, resumption, interruption."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from drivers import Drivers
from support import SMALL, beats, run_here

from scalebench import store
from scalebench.running.planning import load_study
from scalebench.running.sweep import execute, run, survey

pytestmark = pytest.mark.usefixtures("forked_trials")


def one(tmp_path: Path, *settings: str, text: str = SMALL, in_a_worker: bool = False) -> dict[str, object]:
    """Run a study of one trial, in this process unless in a worker of its own, and return its row."""
    path = tmp_path / "one.toml"
    path.write_text(text)
    study = load_study(path, ["model.params=200", "train.seed=0", *settings])
    results = tmp_path / "results"
    (row,) = (run(study, results, jobs=1).rows if in_a_worker else run_here(study, results)).values()
    return row


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


def test_the_same_trial_gives_the_same_loss_in_another_process(finished: Path, tmp_path: Path) -> None:
    first = one(tmp_path)
    frame = store.load_results(finished).set_index("trial_id")
    assert frame.loc[first["trial_id"], "validation_loss_nats"] == first["validation_loss_nats"]


@pytest.mark.slow
def test_every_implementation_on_a_cpu_reaches_the_same_loss(tmp_path: Path) -> None:
    text = SMALL.replace("mlp", "gpt")
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
        if killed or not (running and beats(running[0])):
            return
        killed.append(store.read_json(running[0] / "placement.json")["pid"])
        os.kill(killed[0], signal.SIGKILL)

    (row,) = execute(survey(study, tmp_path / "r"), study, jobs=1, tick=kill)
    assert row["status"] == "killed"
    assert "SIGKILL" in row["error_message"]
    assert row["stop_step"] > 0


@pytest.mark.slow
def test_an_interrupted_run_loses_nothing_finished_and_goes_on(
    small_study: Path, tmp_path: Path, drivers: Drivers
) -> None:
    settings = ["model.params=[200, 400, 800]", "train.seed=0", "train.steps=200"]
    command = [
        "run",
        small_study,
        "--jobs",
        "1",
        "--json",
        *(word for setting in settings for word in ("--set", setting)),
    ]
    driver = drivers.start(tmp_path, command)
    while not list(tmp_path.glob("results/small/trials/*/*/record.json")):
        time.sleep(0.02)
        assert driver.poll() is None, driver.err
    driver.send_signal(signal.SIGINT)
    assert driver.wait(60) == 3
    assert "run the same command again" in driver.err
    assert "Traceback" not in driver.err
    done = 3 - len(survey(load_study(small_study, settings), tmp_path / "results").missing)
    assert 1 <= done < 3
    again = drivers.start(tmp_path, command)
    assert again.wait(60) == 0
    assert json.loads(again.out.splitlines()[-1])["executed"] == 3 - done
    assert store.load_results(tmp_path / "results")["status"].tolist() == ["ok"] * 3
