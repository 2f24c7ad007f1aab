"""Whole trials in processes of their own: every status by a real cause, resumption, interruption."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
from support import SMALL, SOURCE_PATH

from scalebench import store
from scalebench.measure.device_lock import WAITING
from scalebench.running.engines import local
from scalebench.running.planning import load_study, plan
from scalebench.running.sweep import execute, run, survey


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let worker processes find the packages when they are not installed."""
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)


def one(tmp_path: Path, *settings: str, text: str = SMALL) -> dict[str, object]:
    """Run a study of one trial and return its row."""
    path = tmp_path / "one.toml"
    path.write_text(text)
    study = load_study(path, ["model.params=200", "train.seed=0", *settings])
    (row,) = run(study, tmp_path / "results", jobs=1).rows.values()
    return row


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


def test_the_same_trial_gives_the_same_loss_again(tmp_path: Path) -> None:
    first, second = (one(tmp_path / name) for name in ("a", "b") if (tmp_path / name).mkdir() is None)
    assert first["trial_id"] == second["trial_id"]
    assert first["validation_loss_nats"] == second["validation_loss_nats"]


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
    assert "allocate" in str(row["error_message"])


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("train.implementation=triton", "no implementation 'triton'"),
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


def test_a_trial_past_its_time_is_stopped_with_its_last_step(tmp_path: Path) -> None:
    row = one(tmp_path, "train.steps=1e7", "run.timeout_s=8")
    assert row["status"] == "timeout"
    assert row["stop_step"] > 100
    assert row["machine_id"]
    attempt = str(row["attempt_dir"])
    assert not [p for p in psutil.process_iter(["cmdline"]) if attempt in (p.info["cmdline"] or [])]


def test_a_worker_that_is_killed_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "k.toml"
    path.write_text(SMALL)
    study = load_study(path, ["model.params=200", "train.seed=0", "train.steps=1e7"])

    killed: list[int] = []

    def kill(running: Sequence[Path]) -> None:
        if killed or not (running and _beats(running[0])):
            return
        (worker,) = (child for child in psutil.Process().children() if str(running[0]) in child.cmdline())
        worker.kill()
        killed.append(worker.pid)

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


def test_rows_of_other_code_are_announced_and_run_again_when_asked(tmp_path: Path) -> None:
    record = Path(str(one(tmp_path)["attempt_dir"])) / "record.json"
    content = json.loads(record.read_text())
    store.write_json(record, content | {"code_fingerprint": "0" * 12})
    study = load_study(tmp_path / "one.toml", ["model.params=200", "train.seed=0"])
    assert survey(study, tmp_path / "results").other_code == 1
    assert len(survey(study, tmp_path / "results", fresh_code=True).missing) == 1


def test_a_damaged_record_counts_as_missing_and_is_made_again(tmp_path: Path) -> None:
    record = Path(str(one(tmp_path)["attempt_dir"])) / "record.json"
    record.write_bytes(record.read_bytes()[:100])
    study = load_study(tmp_path / "one.toml", ["model.params=200", "train.seed=0"])
    sweep = survey(study, tmp_path / "results")
    assert len(sweep.missing) == 1
    assert str(record) in sweep.damaged[0]
    assert run(study, tmp_path / "results", jobs=1).statuses() == {"ok": 1}


def test_an_interrupted_run_loses_nothing_finished_and_goes_on(small_study: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "scalebench.cli.app",
        "run",
        str(small_study),
        "--jobs",
        "1",
        "--set",
        "train.steps=200",
    ]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not list(tmp_path.glob("results/small/trials/*/*/record.json")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 3
    assert "goes on from there" in errors
    assert "Traceback" not in errors
    study = load_study(small_study, ["train.steps=200"])
    done = 4 - len(survey(study, tmp_path / "results").missing)
    assert 1 <= done < 4
    assert run(study, tmp_path / "results").executed == 4 - done
    assert set(store.load_results(tmp_path / "results")["status"]) == {"ok"}


def test_cores_are_dealt_without_overlap_and_shared_only_when_there_are_too_few(monkeypatch) -> None:
    monkeypatch.setattr(local, "usable_cpus", lambda: [0, 1, 2, 3, 4])
    assert local.core_sets(1) == [(0, 1, 2, 3, 4)]
    assert local.core_sets(2) == [(0, 1), (2, 3)]
    assert local.core_sets(5) == [(0,), (1,), (2,), (3,), (4,)]
    assert local.core_sets(7) == [(0,), (1,), (2,), (3,), (4,), (0,), (1,)]


def test_more_workers_than_cores_are_not_exclusive(small_study: Path) -> None:
    from scalebench.running.sweep import _slots

    trials = plan(load_study(small_study))
    cores = len(local.usable_cpus())
    assert all(slot.exclusive for slot in _slots(trials, cores))
    assert not any(slot.exclusive for slot in _slots(trials, cores + 1))


def test_trials_that_run_one_after_another_begin_in_the_studys_order(small_study: Path) -> None:
    from scalebench.running.sweep import _in_order, _slots

    listed = plan(load_study(small_study))
    small_first = sorted(listed, key=lambda trial: trial.flops)
    assert small_first[0].flops < small_first[-1].flops
    assert _in_order(small_first, _slots(small_first, 1)) == small_first
    assert _in_order(small_first, _slots(small_first, 2))[0].flops == small_first[-1].flops  # the longest first
    on_gpu = sorted(plan(load_study(small_study, ["train.device=cuda"])), key=lambda trial: trial.flops)
    taking_turns, sharing = _slots(on_gpu, 2), _slots(on_gpu, 2, share_device=True)
    assert [slot.exclusive for slot in (*taking_turns, *sharing)] == [True, True, False, False]
    assert _in_order(on_gpu, taking_turns) == on_gpu
    assert _in_order(on_gpu, sharing)[0].flops == on_gpu[-1].flops


def test_the_time_limit_of_a_trial_does_not_count_while_it_waits_for_a_gpu(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as process:
        worker = local._Running(tmp_path, local.Slot((), True, {}), process, 5.0, time.monotonic() - 1.0)
        (tmp_path / WAITING).touch()
        assert not local._finished(worker)
        assert worker.deadline is not None
        assert worker.deadline > time.monotonic() + 4.0
        local._stop(worker)
