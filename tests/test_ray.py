"""The Ray engine on real clusters, embedded and running; what is lost with a worker, a node or the head; refusals."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from drivers import Driver, Drivers
from light_worker import patch
from support import REPOSITORY, SMALL, child_environment, run_here

from scalebench import store
from scalebench.running.engines import Resources, ray
from scalebench.running.planning import load_study

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install '.[ray]'"
)
DEADLINE_S = 120.0
# A node that is gone is noticed after five checks. They are refused at once, and a busy node may take its time.
CHECKS = {"RAY_health_check_period_ms": "200", "RAY_health_check_initial_delay_ms": "0"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A study of two trials that go on until they are stopped, once each, if their workers are light ones."""
    path = tmp_path / "small.toml"
    path.write_text(SMALL.replace("steps = 30", "steps = 1500").replace("seed = [0, 1]", "seed = 0"))
    return path


@pytest.fixture
def start(tmp_path: Path, drivers: Drivers) -> Iterator[Callable[..., Driver]]:
    """Start ``scalebench run --engine ray`` in an empty folder; what runs at the end of the test is interrupted."""
    started: list[Driver] = []

    def run(*arguments: str | Path, light: bool = True, **variables: str) -> Driver:
        words = ["run", *arguments, "--engine", "ray", "--json"]
        started.append(drivers.start(tmp_path, words, before=patch("ray") if light else "", **CHECKS | variables))
        return started[-1]

    yield run
    for driver in started:
        driver.send_signal(signal.SIGINT)
        driver.wait(DEADLINE_S)


@pytest.fixture(scope="module")
def cluster() -> Iterator[subprocess.Popen[str]]:
    """A running cluster of two nodes; its ``address`` is a variable of the environment, its stdin takes commands."""
    process = subprocess.Popen(
        [sys.executable, REPOSITORY / "tests" / "ray_cluster.py"], env=child_environment(**CHECKS), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout
    process.address = process.stdout.readline().strip()  # type: ignore[attr-defined]
    yield process
    process.communicate(timeout=DEADLINE_S)


def beating(study_dir: Path) -> list[Path]:
    """The attempts whose workers train."""
    return [beat.parent for beat in study_dir.glob("trials/*/*/heartbeat.json")]


def wait_for(condition: Callable[[], Any], driver: Driver) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (value := condition()):
        assert driver.poll() is None, (driver.out, driver.err)
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def ray_process(driver: Driver, name: str) -> psutil.Process:
    """A process of the driver's embedded cluster, whose title or command begins with ``name``."""
    below = psutil.Process(driver.pid).children(recursive=True)
    (process,) = [child for child in below if Path((child.cmdline() or [""])[0].split(" ")[0]).name == name]
    return process


def finish(driver: Driver) -> None:
    assert driver.wait(DEADLINE_S) == 0, (driver.out, driver.err)
    assert "Traceback" not in driver.err


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
def test_a_trial_whose_ray_worker_is_killed_goes_back_to_the_queue(path: Path, tmp_path: Path, start) -> None:
    study_dir = tmp_path / "results" / "small"
    settings = ["--set", "model.params=200", "--set", "run.checkpoint_every_steps=100"]
    driver = start(path, *settings, light=False)
    (lost,) = wait_for(lambda: beating(study_dir), driver)
    worker = psutil.Process(store.read_json(lost / "placement.json")["pid"])
    worker.parent().kill()
    finish(driver)
    assert not psutil.wait_procs([worker], timeout=5)[1]  # it ended with the process of its task
    ((first, second),) = attempts_of(study_dir).values()
    assert (first["status"], first["error_class"], first["attempt_dir"]) == ("killed", "JobLost", str(lost))
    assert (second["status"], second["timing_exclusive"]) == ("ok", False)
    (here,) = run_here(load_study(path, settings[1::2]), tmp_path / "here").values()
    assert second["validation_loss_nats"] == here["validation_loss_nats"]


@needs_ray
@pytest.mark.slow
def test_an_embedded_cluster_that_loses_its_only_node_loses_no_trial(path: Path, tmp_path: Path, start) -> None:
    study_dir = tmp_path / "results" / "small"
    driver = start(path, "--jobs", "1")
    (running,) = wait_for(lambda: beating(study_dir), driver)
    ray_process(driver, "raylet").kill()

    while driver.poll() is None:
        for attempt in beating(study_dir):
            (attempt.parent / "end").touch()
        time.sleep(0.1)
    finish(driver)
    attempts = attempts_of(study_dir)
    assert [row["status"] for row in attempts.pop(running.parent.name)] == ["ok"]  # Ray's worker goes on
    ((*lost, last),) = attempts.values()  # it may be given more, or not
    assert last["status"] == "ok"
    assert {row["error_class"] for row in lost} <= {"JobLost"}


@needs_ray
@pytest.mark.slow
def test_a_lost_head_ends_the_run_which_goes_on_when_typed_again(path: Path, tmp_path: Path, start) -> None:
    study_dir = tmp_path / "results" / "small"
    driver = start(path, "--jobs", "1", RAY_gcs_rpc_server_reconnect_timeout_s="1")
    (first,) = wait_for(lambda: beating(study_dir), driver)
    worker = [p for p in psutil.process_iter(["cmdline"]) if str(first) in (p.info["cmdline"] or [])]
    ray_process(driver, "gcs_server").kill()
    assert driver.wait(DEADLINE_S) != 0
    assert not psutil.wait_procs(worker, timeout=10)[1]
    # Where the worker's end is noticed before the head's, its trial is killed and back in the queue.
    records = [store.read_record(path.parent) for path in first.parent.glob("*/record.json")]
    assert all((row["status"], row["error_class"]) == ("killed", "JobLost") for row in records)
    finish(start(path, "--set", "train.steps=200"))
    rows = store.load_results(tmp_path / "results")
    assert rows.loc[rows["steps"] == 200, "status"].tolist() == ["ok"] * 2


@needs_ray
@pytest.mark.slow
def test_a_trial_of_several_processes_has_a_placement_group(path: Path, tmp_path: Path, cluster, start) -> None:
    variables = {"RAY_ADDRESS": cluster.address}
    driver = start(path, "--set", "model.params=200", "--set", "train.processes=2", **variables)
    wait_for(lambda: beating(tmp_path / "results" / "small"), driver)
    groups = list_groups(cluster)
    assert [(group["state"], group["strategy"]) for group in groups] == [("CREATED", "STRICT_PACK")]
    assert list(groups[0]["bundles"].values()) == [{"CPU": 2.0}]
    driver.send_signal(signal.SIGINT)
    assert driver.wait(DEADLINE_S) == 3
    assert not [group for group in list_groups(cluster) if group["state"] != "REMOVED"]


def list_groups(cluster: Any) -> list[dict[str, Any]]:
    """Return the placement groups of the running cluster."""
    assert cluster.stdin
    assert cluster.stdout
    cluster.stdin.write("groups\n")
    cluster.stdin.flush()
    return json.loads(cluster.stdout.readline())


@needs_ray
@pytest.mark.slow
def test_more_gpus_than_there_are_are_refused_before_any_trial(path: Path, tmp_path: Path, cluster, start) -> None:
    settings = ("--set", "train.device=cuda", "--set", "train.processes=8")
    driver = start(path, *settings, RAY_ADDRESS=cluster.address)
    assert driver.wait(DEADLINE_S) == 2
    assert "8 GPUs" in driver.err
    assert len(driver.err.strip().splitlines()) == 1
    assert not (tmp_path / "results" / "small").exists()


@needs_ray
@pytest.mark.slow
def test_the_trials_of_a_lost_node_go_back_to_the_queue_of_a_running_cluster(
    path: Path, tmp_path: Path, cluster, start
) -> None:
    driver = start(path, RAY_ADDRESS=cluster.address)
    study_dir = tmp_path / "results" / "small"
    wait_for(lambda: len(beating(study_dir)) == 2, driver)
    lost = beating(study_dir)
    cluster.stdin.write("replace\n")
    cluster.stdin.flush()
    finish(driver)
    assert cluster.stdout.readline() == "replaced\n"
    for rows in attempts_of(study_dir).values():
        assert [row["status"] for row in rows] == ["killed", "ok"]
        assert Path(rows[0]["attempt_dir"]) in lost


@pytest.mark.slow
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
    ray.close_ended(attempt, code)
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
