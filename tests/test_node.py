"""What a worker finds out about its node: cores, threads, exclusivity, and a peak that is measured once."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from drivers import Drivers

from scalebench.measure.environment import machine_id
from scalebench.measure.hardware import NOMINAL_FLOPS_PER_S, Peak, usable_cpus
from scalebench.running import node
from scalebench.running.node import node_peaks, peaks_on_file, planning_rate
from scalebench.store import read_json, write_json
from scalebench.store.locks import FileLock

# What a forked worker does: it settles, and prints what it found out.
SETTLE = """
import json
from pathlib import Path
from scalebench.running import node
from scalebench.measure.hardware import Peak
node.cpu_peak = lambda precision, threads: Peak(1e9, "a test")
placement = node.settle(Path({attempt!r}), {header!r})
import torch
print(json.dumps(placement | {{"torch_threads": torch.get_num_threads()}}))
raise SystemExit(0)
"""


Settle = Callable[..., dict[str, Any]]


@pytest.fixture
def settle(drivers: Drivers) -> Settle:
    """Let a forked process settle in an attempt folder, and return what it found out."""
    return partial(settle_forked, drivers)


def settle_forked(
    drivers: Drivers, tmp_path: Path, placement: dict[str, Any] | None, cpus: int = 1, gpus: int = 0
) -> dict[str, Any]:
    attempt = tmp_path / "study" / "trials" / "t" / "attempt-1"
    attempt.mkdir(parents=True)
    if placement is not None:
        write_json(attempt / "placement.json", placement)
    header = {
        "resources": {"cpus": cpus, "gpus": gpus, "processes": 1, "share_device": False},
        "most_processes": 1,
        "trial": {"device_kind": "cuda" if gpus else "cpu"},
        "precisions": ["float32"],
    }
    driver = drivers.start(tmp_path, [], before=SETTLE.format(attempt=str(attempt), header=header))
    assert driver.wait(60) == 0, driver.err
    settled = json.loads(driver.out)
    stored = read_json(attempt / "placement.json")
    assert settled == stored | {"torch_threads": settled["torch_threads"]}
    return settled


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_a_worker_stays_on_its_cores_with_a_thread_each(tmp_path: Path, settle: Settle) -> None:
    core = usable_cpus()[-1]
    placement = settle(tmp_path, {"engine": "local", "cpus": [core], "exclusive": True}, cpus=4)
    assert (placement["cpus"], placement["threads"], placement["torch_threads"]) == ([core], 1, 1)
    assert placement["exclusive"] is True
    assert placement["peaks"] == {"float32": {"flops_per_s": 1e9, "source": "a test"}}
    assert (tmp_path / "study" / "nodes" / f"{machine_id()}.json").exists()


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no affinity")
def test_cores_that_cannot_be_had_are_not_exclusive(tmp_path: Path, settle: Settle) -> None:
    placement = settle(tmp_path, {"cpus": [100_000], "exclusive": True})
    assert placement["exclusive"] is False
    assert placement["cpus"] == usable_cpus()
    assert placement["threads"] == 1


def test_without_a_placement_a_worker_uses_as_many_cores_as_its_trial_needs_and_claims_nothing(
    tmp_path: Path, settle: Settle
) -> None:
    placement = settle(tmp_path, None, cpus=1)
    assert (placement["cpus"], placement["threads"], placement["exclusive"]) == (usable_cpus(), 1, False)
    placement = settle(tmp_path / "wide", None, cpus=1000)
    assert placement["threads"] == placement["torch_threads"] == len(usable_cpus())


def test_a_trial_on_a_gpu_is_exclusive_by_the_gpu_and_measures_no_peak(tmp_path: Path, settle: Settle) -> None:
    placement = settle(tmp_path, {"cpus": [100_000], "exclusive": True}, gpus=1)
    assert placement["exclusive"] is True
    assert placement["peaks"]["float32"]["source"] != "a test"
    assert not (tmp_path / "study" / "nodes").exists()


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was measured, in order: precision and threads."""
    calls: list[tuple[str, int]] = []

    def measure(precision: str, threads: int) -> Peak:
        calls.append((precision, threads))
        time.sleep(0.05)
        return Peak(1e9 * len(calls), f"measurement {len(calls)}")

    monkeypatch.setattr(node, "cpu_peak", measure)
    return calls


def peaks(folder: Path, *precisions: str, threads: int = 1) -> dict[str, float | None]:
    return {name: peak.flops_per_s for name, peak in node_peaks(folder, "cpu", precisions, threads).items()}


def test_a_peak_is_measured_once_for_all_precisions_of_the_study(tmp_path: Path, measured: list[Any]) -> None:
    both = ("float32", "bfloat16")
    answers: list[dict[str, float | None]] = []
    workers = [threading.Thread(target=lambda: answers.append(peaks(tmp_path / "nodes", *both))) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert measured == [("float32", 1), ("bfloat16", 1)]  # by one of the four, while three waited
    assert answers == [{"float32": 1e9, "bfloat16": 2e9}] * 4
    path = tmp_path / "nodes" / f"{machine_id()}.json"
    assert peaks_on_file(path, both, 2) is None  # another number of threads is another peak
    rows = read_json(path)["peaks"]
    write_json(path, {"peaks": [row | {"torch": "0.1"} for row in rows]})
    assert peaks_on_file(path, both, 1) is None  # and so is another torch


def test_a_peak_is_measured_again_after_an_hour_and_the_highest_counts(
    tmp_path: Path, measured: list[Any], monkeypatch
) -> None:
    path = tmp_path / "nodes" / f"{machine_id()}.json"
    begun = time.time()
    assert [peaks(tmp_path / "nodes", "float32"), peaks(tmp_path / "nodes", "float32")] == [{"float32": 1e9}] * 2
    monkeypatch.setattr(node.FileLock, "try_take", lambda *_, **__: True)  # in a worker of its own it would be free
    monkeypatch.setattr(node.time, "time", lambda: begun + 2 * node.FRESH_S)
    assert peaks(tmp_path / "nodes", "float32") == {"float32": 2e9}
    monkeypatch.setattr(node.time, "time", lambda: begun + 4 * node.FRESH_S)
    monkeypatch.setattr(node, "cpu_peak", lambda *_: Peak(5e8, "on a busy machine"))
    assert peaks(tmp_path / "nodes", "float32") == {"float32": 2e9}
    assert len(read_json(path)["peaks"]) == 3


def test_nothing_is_measured_beside_a_trial_that_trains(tmp_path: Path, measured: list[Any]) -> None:
    folder = tmp_path / "nodes"
    folder.mkdir()
    training = FileLock(folder / f"{machine_id()}.lock")
    training.take(shared=True)
    peak = node_peaks(folder, "cpu", ["float32"], 1)["float32"]
    assert peak.flops_per_s is None
    assert "training" in peak.source
    assert measured == []
    training.release()
    assert peaks(folder, "float32", threads=2) == {"float32": None}  # the trial above still trains
    assert peaks(tmp_path / "other", "float32") == {"float32": 1e9}


def test_no_trial_begins_while_a_peak_is_measured(tmp_path: Path, measured: list[Any]) -> None:
    folder = tmp_path / "nodes"
    assert peaks(folder, "float32") == {"float32": 1e9}
    # In another process the lock would be free now; here it is still shared by the trial above.
    alone = FileLock(folder / f"{machine_id()}.lock")
    assert not alone.try_take()
    assert alone.try_take(shared=True)


@pytest.mark.parametrize("content", ["{", "[]", '{"peaks": 3}', '{"peaks": [1, {"precision": "float32"}]}'])
def test_a_damaged_file_of_peaks_is_measured_anew(tmp_path: Path, measured: list[Any], content: str) -> None:
    folder = tmp_path / "nodes"
    folder.mkdir()
    path = folder / f"{machine_id()}.json"
    path.write_text(content)
    assert peaks(folder, "float32") == {"float32": 1e9}
    assert len(read_json(path)["peaks"]) == 1


def test_a_folder_without_locks_costs_the_peak_and_nothing_else(tmp_path: Path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", refuse)
    peak = node_peaks(tmp_path / "nodes", "cpu", ["float32"], 1)["float32"]
    assert peak.flops_per_s is None
    assert "Function not implemented" in peak.source


def test_a_peak_that_cannot_be_written_keeps_no_other_trial_waiting(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(node, "_measure", full)
    folder = tmp_path / "s" / "nodes"
    assert "No space" in node_peaks(folder, "cpu", ["float32"], 1)["float32"].source
    assert FileLock(folder / f"{machine_id()}.lock").try_take(shared=True)


def test_a_plan_assumes_what_was_measured_here_and_a_nominal_rate_before(tmp_path: Path, measured: list[Any]) -> None:
    study = tmp_path / "results" / "study"
    study.mkdir(parents=True)
    before = planning_rate(study, "cpu", "float32")
    assert before.flops_per_s == NOMINAL_FLOPS_PER_S["cpu"]
    assert "nominal" in before.source
    peaks(study / "nodes", "float32", threads=1)
    count = len(measured)
    assert planning_rate(study, "cpu", "float32").flops_per_s == 1e9
    assert planning_rate(study, "cpu", "bfloat16").flops_per_s == NOMINAL_FLOPS_PER_S["cpu"]
    assert len(measured) == count


def test_a_plan_takes_the_rate_that_other_studies_measured_here(tmp_path: Path) -> None:
    def write(study: str, at: float, *rates: float) -> None:
        (tmp_path / study / "nodes").mkdir(parents=True)
        row = {"precision": "float32", "threads": 1, "torch": "2", "measured_at": at, "source": "a product"}
        rows = [row | {"flops_per_s": rate} for rate in rates]
        write_json(tmp_path / study / "nodes" / f"{machine_id()}.json", {"peaks": rows})

    write("older", 1.0, 7e9)
    write("newer", 2.0, 8e9, 9e9)
    rate = planning_rate(tmp_path / "planned", "cpu", "float32")
    assert (rate.flops_per_s, rate.source) == (9e9, "a product, by trials of newer")
    write("planned", 0.0, 5e9)
    assert planning_rate(tmp_path / "planned", "cpu", "float32").flops_per_s == 5e9
