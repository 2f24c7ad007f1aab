"""The Slurm engine, on a real Slurm of one node where that can start: what happens to tasks, and what is refused."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from drivers import Drivers
from light_worker import light_command, patch
from slurm_node import CannotStartError, slurm_node
from support import SMALL, SOURCE_PATH, beats, run_here

from scalebench import store
from scalebench.cli.commands.stored import show_status
from scalebench.errors import InputError
from scalebench.running.engines import Resources, slurm, slurm_queue
from scalebench.running.planning import load_study
from scalebench.running.sweep import execute, run, survey


@pytest.fixture(scope="module")
def node() -> Iterator[dict[str, str]]:
    """The environment variables of a real Slurm, or a skip that says why there is none."""
    try:
        with slurm_node() as variables:
            yield variables
    except CannotStartError as error:
        pytest.skip(f"no Slurm here: {error}")


@pytest.fixture
def cluster(node: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this test's processes use the real Slurm, and its tasks import from source."""
    for name, value in node.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)
    monkeypatch.setattr(slurm, "POLL_S", 0.1)
    monkeypatch.setattr(slurm, "QUEUE_EVERY_S", 0.2)
    monkeypatch.setattr(slurm, "SETTLE_S", 1.0)


@pytest.fixture
def light(cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let its tasks be workers without torch, whose long trials go on until they are stopped."""
    monkeypatch.setattr(slurm, "worker_command", light_command)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study of two trials: one of 30 steps, and one that would take hours."""
    path = tmp_path / "two.toml"
    text = SMALL.replace("steps = 30", "steps = [30, 10_000_000]").replace("seed = [0, 1]", "seed = 0")
    path.write_text(text.replace("[200, 800]", "200"))
    return path


def command(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_trial_has_the_loss_that_it_has_here(path: Path, tmp_path: Path) -> None:
    study = load_study(path, ["train.steps=30"])
    (row,) = run(study, tmp_path / "r", engine="slurm").rows.values()
    (here,) = run_here(study, tmp_path / "here").values()
    assert row["status"] == "ok"
    assert row["validation_loss_nats"] == here["validation_loss_nats"]
    assert not row["timing_exclusive"]  # Slurm gave a core, but this engine did not say which
    assert not list((tmp_path / "r" / "small" / "slurm").iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_a_task_past_its_time_is_a_row_and_hides_no_other(path: Path, tmp_path: Path) -> None:
    study = load_study(path, ["run.timeout_s=3", "train.steps=[30, 10_000_000, 40]"])
    rows = {row["steps"]: row for row in run(study, tmp_path / "r", engine="slurm").rows.values()}
    assert {steps: row["status"] for steps, row in rows.items()} == {30: "ok", 40: "ok", 10_000_000: "timeout"}
    assert rows[10_000_000]["stop_step"] == 50
    assert "Slurm job" in rows[10_000_000]["error_message"]


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_a_cancelled_task_is_killed_and_a_requeued_one_runs_again_in_its_folder(path: Path, tmp_path: Path) -> None:
    study = load_study(path, ["train.steps=[2_000_000, 10_000_000]"])
    sweep = survey(study, tmp_path / "r")
    done: dict[str, float] = {}

    def interfere(running: Sequence[Path]) -> None:
        for task, attempt in slurm_queue.unfinished(sweep.study_dir).items():
            steps = store.read_json(attempt / "trial.json")["trial"]["spec"]["steps"]
            if attempt in running and beats(attempt):
                if steps == 10_000_000 and "cancelled" not in done:
                    done["cancelled"] = 1
                    command("scancel", str(task))
                elif steps == 2_000_000 and "requeued" not in done:
                    done["requeued"] = time.monotonic()
                    (attempt / "heartbeat.json").unlink()
                    command("scontrol", "requeue", str(task))
                elif steps == 2_000_000 and "Restarts=1" in command("scontrol", "show", "job", str(task)):
                    done["again"] = 1
                    command("scancel", str(task))

        # Slurm would wait two minutes before it runs a requeued task again; within the same second its node refuses it.
        late = time.monotonic() - done.get("requeued", float("inf")) > 1.5 and "again" not in done
        for task in slurm_queue.unfinished(sweep.study_dir) if late else ():
            subprocess.run(["scontrol", "update", f"JobId={task}", "StartTime=now"], capture_output=True)

    rows = list(execute(sweep, study, engine="slurm", tick=interfere))
    assert set(done) == {"cancelled", "requeued", "again"}, [row["error_message"] for row in rows]
    assert [(row["status"], row["error_class"]) for row in rows] == [("killed", "JobEnded")] * 2
    assert all("CANCELLED" in row["error_message"] for row in rows)
    assert {len(list(trial.glob("attempt-*"))) for trial in (sweep.study_dir / "trials").iterdir()} == {1}


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_a_run_whose_driver_was_killed_finds_its_tasks_in_the_queue(
    path: Path, tmp_path: Path, drivers: Drivers, capsys
) -> None:
    words = ["run", path, "--engine", "slurm", "--results", "r", "--json"]
    driver = drivers.start(tmp_path, words, before=patch("slurm"))
    study_dir = tmp_path / "r" / "small"
    while len(slurm_queue.submitted(study_dir)) < 2:
        assert driver.poll() is None, driver.err
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    submitted = set(slurm_queue.submitted(study_dir).values())
    assert sum(slurm_queue.waiting(study_dir).values()) >= 1
    assert show_status(tmp_path / "r", as_json=False) == 1
    assert "small in Slurm's queue: " in capsys.readouterr().out

    def cancel(running: Sequence[Path]) -> None:
        for task, attempt in slurm_queue.unfinished(study_dir).items():
            if attempt in running and store.read_json(attempt / "trial.json")["trial"]["spec"]["steps"] > 30:
                command("scancel", str(task))

    study = load_study(path)
    for _ in execute(survey(study, tmp_path / "r"), study, engine="slurm", tick=cancel):
        pass
    rows = store.read_results(study_dir).frame  # the short trial may have ended before the second driver looked
    assert sorted(zip(rows["steps"], rows["status"], strict=True)) == [(30, "ok"), (10_000_000, "killed")]
    assert set(map(Path, rows["attempt_dir"])) == submitted
    assert not slurm_queue.waiting(study_dir)


@pytest.mark.slow
@pytest.mark.usefixtures("light")
def test_an_interrupted_run_withdraws_its_tasks_and_is_resumable(path: Path, tmp_path: Path) -> None:
    study, study_dir = load_study(path, ["train.steps=10_000_000"]), tmp_path / "r" / "small"
    tasks: list[slurm_queue.Task] = []

    def interrupt(running: Sequence[Path]) -> None:
        if any(beats(attempt) for attempt in running):
            tasks.extend(slurm_queue.unfinished(study_dir))
            raise KeyboardInterrupt  # as the command line does on a signal

    with pytest.raises(KeyboardInterrupt):
        list(execute(survey(study, tmp_path / "r"), study, engine="slurm", tick=interrupt))
    assert not slurm_queue.unfinished(study_dir)  # the next run would wait for such a task, and close it as killed
    assert not slurm_queue.waiting(study_dir)
    assert len(survey(study, tmp_path / "r").missing) == 1
    assert len(tasks) == 1
    deadline = time.monotonic() + 20
    while (workers(tmp_path / "r") or active(tasks)) and time.monotonic() < deadline:
        time.sleep(0.1)  # a cancelled task is COMPLETING until its processes have ended
    assert not workers(tmp_path / "r")
    assert not active(tasks)


def active(tasks: Sequence[slurm_queue.Task]) -> list[slurm_queue.Task]:
    """The tasks that are in Slurm's queue."""
    states = slurm_queue.queue()
    assert states is not None
    return [task for task in tasks if task in states and states[task].name in slurm_queue.ACTIVE]


def workers(study_dir: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline", "status"])
        if any(str(study_dir) in word for word in process.info["cmdline"] or [])
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("needs", "words"),
    [
        (Resources(gpus=1), "1 GPU,"),
        (Resources(cpus=1000), "1000 cores"),
        (Resources(memory_bytes=10**13), "MiB"),
    ],
)
def test_what_no_node_has_is_refused(needs: Resources, words: str) -> None:
    slurm.check([Resources()])
    with pytest.raises(InputError, match=words) as refused:
        slurm.check([Resources(), needs])
    assert len(refused.value.lines) == 1


def test_without_slurm_the_run_is_refused_before_anything_is_made(
    small_study: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _, errors = command("run", small_study, "--engine", "slurm")
    assert code == 2
    assert "sbatch was not found" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "small").exists()


def test_what_is_asked_for_follows_the_plan() -> None:
    needs = Resources(cpus=2, processes=2, memory_bytes=2**30, timeout_s=600.0)
    assert slurm.requested(needs)[2:] == ["--cpus-per-task=2", "--mem=3584M", "--time=13"]
    assert slurm.minutes(Resources(expected_s=60.0)) == 13
    gpus = slurm.requested(Resources(cpus=2, gpus=2, processes=2, memory_bytes=2**36, timeout_s=60.0))
    assert gpus[3:] == ["--mem=8192M", "--gres=gpu:2", "--time=4"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("0", 0), ("768", 3), ("9", -9), ("15", -15), ("31744", 124), ("35584", -11), ("0:9", -9), ("3:0", 3)],
)
def test_exit_codes_are_read_as_wait_statuses_or_pairs(text: str, code: int) -> None:
    assert slurm_queue.exit_code(text) == code


@pytest.mark.parametrize(
    ("state", "status"),
    [
        (slurm_queue.State("TIMEOUT"), "timeout"), (slurm_queue.State("FAILED", 124), "timeout"),
        (slurm_queue.State("OUT_OF_MEMORY"), "oom"), (slurm_queue.State("FAILED", -9), "killed"),
        (slurm_queue.State("FAILED", 1), "failed"), (slurm_queue.State("COMPLETED"), "failed"),
        (slurm_queue.State("CANCELLED"), "killed"), (slurm_queue.State("NODE_FAIL"), "killed"),
        (slurm_queue.State("PREEMPTED"), "killed"), (None, "killed"),
    ],
)  # fmt: skip
def test_every_end_of_a_task_is_a_status(tmp_path: Path, state: slurm_queue.State | None, status: str) -> None:
    attempt = store.new_attempt(tmp_path / "study", "t")
    store.write_header(attempt, {"identity": {"trial_id": "t"}, "columns": ["trial_id"]})
    slurm.close_task(slurm_queue.Task("7", 3), attempt, state)
    row = store.read_record(attempt)
    assert row["status"] == status
    assert "7_3" in row["error_message"]


def test_a_controller_that_does_not_answer_says_nothing_about_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "squeue"
    fake.write_text("#!/bin/sh\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert slurm_queue.queue() is None
    fake.write_text("#!/bin/sh\necho '12 3 FAILED 256 NonZeroExitCode'\necho '13 N/A PENDING 0 Priority'\n")
    assert slurm_queue.queue() == {slurm_queue.Task("12", 3): slurm_queue.State("FAILED", 1, "NonZeroExitCode")}


def test_a_results_folder_may_have_a_sign_that_ends_a_line_elsewhere(tmp_path: Path) -> None:
    study = tmp_path / "old\rresults\u2028" / "s"
    attempt = study / "trials" / "a" / "attempt-1"
    attempt.mkdir(parents=True)
    (study / "slurm").mkdir()
    (study / "slurm" / "x.job").write_text("7")
    (study / "slurm" / "x.tasks").write_text(f"{attempt}\n", newline="")
    assert slurm_queue.submitted(study) == {slurm_queue.Task("7", 0): attempt}
