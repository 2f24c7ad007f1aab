"""The local engine: how it deals cores, what it says of exclusivity, in which order it starts, its time limit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from scalebench import store
from scalebench.measure.device_lock import WAITING
from scalebench.running import processes
from scalebench.running.engines import Resources, base, local


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
    monkeypatch.setattr(local, "close_ended", lambda *_: None)
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


@pytest.mark.slow
def test_more_workers_than_cores_are_not_exclusive(placements) -> None:
    trials = [Resources()] * 3
    assert [place["exclusive"] for place in placements(trials, 2)] == [True] * 3
    assert [place["exclusive"] for place in placements(trials, 3)] == [False] * 3
    assert {tuple(place["cpus"]) for place in placements(trials, 2)} == {(0,), (1,)}


def test_workers_on_a_gpu_are_exclusive_because_they_take_turns_unless_they_share_it(placements) -> None:
    alone, sharing = Resources(gpus=1), Resources(gpus=1, share_device=True)
    assert [place["exclusive"] for place in placements([alone] * 3, 3)] == [True] * 3
    assert [place["exclusive"] for place in placements([sharing] * 3, 3)] == [False] * 3


@pytest.mark.slow
def test_trials_that_run_one_after_another_start_in_the_studys_order_and_others_the_longest_first(placements) -> None:
    def order(jobs: int, **more: Any) -> list[int]:
        return [place["at"] for place in placements([Resources(expected_s=s, **more) for s in (1, 9, 4)], jobs)]

    assert order(1) == [0, 1, 2]
    assert order(2) == [1, 2, 0]
    assert order(2, gpus=1) == [0, 1, 2]
    assert order(2, gpus=1, share_device=True) == [1, 2, 0]


@pytest.mark.parametrize("limit", [None, 1e9])
def test_a_crash_below_a_limit_of_memory_says_that_the_limit_may_be_why(tmp_path: Path, monkeypatch, limit) -> None:
    crash = [sys.executable, "-S", "-c", "import os; os.kill(os.getpid(), 11)"]
    monkeypatch.setattr(local, "start_worker", lambda _, environment: processes.start(crash, environment))
    closed: list[tuple[Any, ...]] = []
    monkeypatch.setattr(base, "close_attempt", lambda *ended: closed.append(ended))
    store.write_json(tmp_path / "trial.json", {"memory_limit_bytes": limit})
    assert list(local.place([tmp_path], [Resources()])) == [tmp_path]
    ((_, status, _, message),) = closed
    assert (status, "SIGSEGV" in message, "memory_limit_bytes" in message) == ("killed", True, limit is not None)


def test_the_time_limit_of_a_trial_does_not_count_while_it_waits_for_a_gpu(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True) as process:
        worker = local._Worker(tmp_path, (), process, 5.0, time.monotonic() - 1.0)
        (tmp_path / WAITING).touch()
        assert not local._finished(worker)
        assert worker.deadline is not None
        assert worker.deadline > time.monotonic() + 4.0
        # Stopped while it waits, it would wait for ever.
        process.send_signal(signal.SIGSTOP)
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        worker.deadline = time.monotonic() - 1.0
        assert local._late(worker)
        processes.stop(process, grace_s=0.1)
