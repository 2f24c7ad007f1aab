"""The Ray engine on real clusters, embedded and running; what is lost with a worker, a node or the head; refusals."""

from __future__ import annotations

import importlib.util
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psutil
import pytest
from support import REPOSITORY, SMALL, child_environment, run_here

from scalebench import store
from scalebench.errors import InputError
from scalebench.running.engines import Resources, ray
from scalebench.running.planning import load_study

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)
DEADLINE_S = 120.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study of two trials that take some seconds each."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("steps = 30", "steps = 3000").replace("seed = [0, 1]", "seed = 0"))
    return path


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start ``scalebench run --engine ray`` in an empty folder; what runs at the end of the test is interrupted."""
    started: list[subprocess.Popen[str]] = []

    def run(*arguments: str | Path, **variables: str) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "scalebench.cli.app", "run", *map(str, arguments), "--engine", "ray"]
        started.append(
            subprocess.Popen(
                words, cwd=tmp_path, env=child_environment(**variables), text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
        )  # fmt: skip
        return started[-1]

    yield run
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE_S)


def beating(study_dir: Path) -> list[Path]:
    """The attempts whose workers train."""
    return [beat.parent for beat in study_dir.glob("trials/*/*/heartbeat.json")]


def wait_for(condition: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def ray_process(driver: subprocess.Popen[str], name: str) -> psutil.Process:
    """A process of the driver's embedded cluster, whose title or command begins with ``name``."""
    below = psutil.Process(driver.pid).children(recursive=True)
    (process,) = [child for child in below if Path((child.cmdline() or [""])[0].split(" ")[0]).name == name]
    return process


def finish(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, (process.returncode, out, err)
    assert "Traceback" not in err
    return out


def attempts_of(study_dir: Path) -> dict[str, list[dict[str, Any]]]:
    """The records of every trial's attempts, oldest first."""
    return {
        trial.name: [
            store.read_record(attempt)
            for attempt in sorted(trial.glob("attempt-*"))
            if (attempt / "record.json").exists()
        ]
        for trial in (study_dir / "trials").iterdir()
    }


@needs_ray
@pytest.mark.slow
def test_an_embedded_cluster_runs_a_study_with_one_command(tmp_path: Path, start) -> None:
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("[200, 800]", "200").replace("seed = [0, 1]", "seed = 0\nprocesses = [1, 2]"))
    finish(start(path))
    rows = store.load_results(tmp_path / "results").set_index("processes")
    assert rows["status"].to_dict() == {1: "ok", 2: "ok"}
    (alone,) = run_here(load_study(path, ["train.processes=1"]), tmp_path / "here").values()
    assert rows.loc[1, "validation_loss_nats"] == alone["validation_loss_nats"]
    assert rows.loc[2, "validation_loss_nats"] == pytest.approx(alone["validation_loss_nats"], rel=1e-5)
    assert not rows["timing_exclusive"].any()


@needs_ray
@pytest.mark.slow
def test_a_trial_whose_ray_worker_is_killed_goes_back_to_the_queue(path: Path, tmp_path: Path, start) -> None:
    study_dir = tmp_path / "results" / "small"
    driver = start(path, "--jobs", "1")
    (lost,) = wait_for(lambda: beating(study_dir), driver)
    task = wait_for(
        lambda: [p for p in psutil.process_iter(["cmdline"]) if str(lost) in (p.info["cmdline"] or [])], driver
    )
    psutil.Process(task[0].ppid()).kill()
    finish(driver)
    assert not psutil.wait_procs(task, timeout=5)[1]  # the worker ended with the process of its task
    attempts = attempts_of(study_dir)
    first, *others = attempts.pop(lost.parent.name)
    assert (first["status"], first["error_class"], first["attempt_dir"]) == ("killed", "JobLost", str(lost))
    assert [row["status"] for row in others] == ["ok"]
    assert [[row["status"] for row in rows] for rows in attempts.values()] == [["ok"]]
    here = run_here(load_study(path), tmp_path / "here")
    frame = store.load_results(tmp_path / "results").set_index("trial_id")["validation_loss_nats"]
    assert frame.to_dict() == {name: row["validation_loss_nats"] for name, row in here.items()}


@needs_ray
@pytest.mark.slow
def test_the_trials_of_a_lost_node_go_back_to_the_queue_of_a_running_cluster(path: Path, tmp_path: Path, start) -> None:
    script = REPOSITORY / "tests" / "ray_cluster.py"
    cluster = subprocess.Popen(
        [sys.executable, script], env=child_environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert cluster.stdin
    assert cluster.stdout
    try:
        address = cluster.stdout.readline().strip()
        driver = start(path, RAY_ADDRESS=address)
        study_dir = tmp_path / "results" / "small"
        wait_for(lambda: len(beating(study_dir)) == 2, driver)
        lost = beating(study_dir)
        cluster.stdin.write("kill\n")
        cluster.stdin.flush()
        finish(driver)
    finally:
        cluster.communicate(timeout=DEADLINE_S)
    for rows in attempts_of(study_dir).values():
        assert [row["status"] for row in rows] == ["killed", "ok"]
        assert Path(rows[0]["attempt_dir"]) in lost


@needs_ray
@pytest.mark.slow
def test_an_embedded_cluster_that_loses_its_only_node_loses_no_trial(path: Path, tmp_path: Path, start) -> None:
    study_dir = tmp_path / "results" / "small"
    driver = start(path, "--jobs", "1")
    wait_for(lambda: beating(study_dir), driver)
    ray_process(driver, "raylet").kill()
    finish(driver)
    statuses = [[row["status"] for row in rows] for rows in attempts_of(study_dir).values()]
    # Ray may finish what its workers have begun, and give them more, or lose it: either way no trial is.
    assert len(statuses) == 2
    assert all(before == ["killed"] * len(before) and last == "ok" for *before, last in statuses)


@needs_ray
@pytest.mark.slow
def test_a_lost_head_ends_the_run_which_goes_on_when_typed_again(path: Path, tmp_path: Path, start) -> None:
    study_dir = tmp_path / "results" / "small"
    driver = start(path, "--jobs", "1", "--set", "train.steps=20000", RAY_gcs_rpc_server_reconnect_timeout_s="3")
    (first,) = wait_for(lambda: beating(study_dir), driver)
    workers = [p for p in psutil.process_iter(["cmdline"]) if str(first) in (p.info["cmdline"] or [])]
    ray_process(driver, "gcs_server").kill()
    driver.communicate(timeout=DEADLINE_S)
    assert driver.returncode != 0
    assert not psutil.wait_procs(workers, timeout=10)[1]
    assert not list(first.parent.glob("*/record.json"))
    finish(start(path, "--set", "train.steps=200"))
    frame = store.load_results(tmp_path / "results")
    assert frame["status"].tolist() == ["ok"] * 2


@needs_ray
@pytest.mark.slow
def test_more_gpus_than_there_are_are_refused_before_any_trial(path: Path, tmp_path: Path, start) -> None:
    process = start(path, "--set", "train.device=cuda", "--set", "train.processes=8")
    _, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 2, errors
    assert "8 GPUs" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "small").exists()


@needs_ray
def test_an_address_that_does_not_answer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free.getsockname()[1]}")
        begun = time.monotonic()
        with pytest.raises(InputError, match=r"nothing answers at RAY_ADDRESS=127\.0\.0\.1"):
            ray.check([Resources()])
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("address", ["head", "ray://head:10001", "head:port", ":6379"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(InputError, match="HOST:PORT"):
        ray.check_answers(address)


def test_without_ray_the_run_is_refused_with_what_installs_it(
    small_study: Path, tmp_path: Path, command: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, errors = command("run", small_study, "--engine", "ray")
    assert code == 2
    assert "pip install '.[ray]'" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "small").exists()


def test_a_worker_past_its_limit_is_stopped_and_has_no_exit_code(tmp_path: Path) -> None:
    begun = time.monotonic()
    assert ray.run_worker(str(tmp_path), [sys.executable, "-c", "import time; time.sleep(60)"], 0.5) is None
    assert time.monotonic() - begun < 10
    assert ray.run_worker(str(tmp_path), [sys.executable, "-c", "raise SystemExit(7)"], 30.0) == 7
    assert ray.run_worker(str(tmp_path), [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], None) == -9


@pytest.mark.parametrize(("code", "status"), [(None, "timeout"), (-9, "killed"), (1, "failed")])
def test_every_end_of_a_worker_is_a_status(tmp_path: Path, code: int | None, status: str) -> None:
    attempt = store.new_attempt(tmp_path / "study", "t")
    store.write_header(attempt, {"identity": {"trial_id": "t"}, "columns": ["trial_id"]})
    ray._close(ray._Placed(attempt, Resources(), 1), code)
    assert store.read_record(attempt)["status"] == status


def test_a_trial_that_is_lost_again_and_again_stays_killed(tmp_path: Path) -> None:
    attempt = store.new_attempt(tmp_path / "study", "t")
    store.write_header(attempt, {"identity": {"trial_id": "t"}, "columns": ["trial_id"]})
    placed: ray._Placed | None = ray._Placed(attempt, Resources(), 1)
    lost = 0
    while placed is not None:
        lost += 1
        placed = ray._lost(placed, "the node is gone")
    assert lost == ray.TRIES == len(list(attempt.parent.iterdir()))
    row, _ = store.latest_record(attempt.parent)
    assert row is not None
    assert row["status"] == "killed"
