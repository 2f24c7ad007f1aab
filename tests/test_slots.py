"""GPUs as slots: which trial gets which, and that a worker sees only its own. No GPU is needed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from scalebench import store
from scalebench.errors import InputError
from scalebench.running import node, processes
from scalebench.running.engines import Resources, find_engine, local
from scalebench.running.slots import Slots, gpu_names

UUIDS = ["GPU-aaaa", "GPU-bbbb", "GPU-cccc", "GPU-dddd"]


def test_slots_go_to_whom_they_fit_in_one_order() -> None:
    slots = Slots(UUIDS)
    assert slots.take(2) == ("GPU-aaaa", "GPU-bbbb")
    assert slots.take(3) is None
    assert slots.take(1) == ("GPU-cccc",)
    slots.give_back(["GPU-aaaa", "GPU-bbbb"])
    assert slots.take(3) == ("GPU-aaaa", "GPU-bbbb", "GPU-dddd")
    shared = Slots(UUIDS[:2], share=True)
    assert [shared.take(1) for _ in range(3)] == [("GPU-aaaa",), ("GPU-bbbb",), ("GPU-aaaa",)]
    # Trials of two processes that take turns lock them in the same order, so that none waits for the other.
    assert shared.take(2) == ("GPU-aaaa", "GPU-bbbb")


class Queue:
    """Workers that run until they are told to end, in place of processes."""

    def __init__(self) -> None:
        self.running: dict[Path, Any] = {}
        self.most = 0

    def start(self, attempt: Path, _: Any) -> Any:
        worker = type("Worker", (), {"pid": 2**22 + 1, "code": None, "poll": lambda self: self.code})()
        self.running[attempt] = worker
        return worker

    def tick(self, attempts: Any) -> None:
        """End the worker that was started first, once no more can be started."""
        self.most = max(self.most, len(attempts))
        held = [name for attempt in attempts for name in store.read_json(attempt / "placement.json")["gpus"]]
        assert len(held) == len({*held})
        self.running[attempts[0]].code = 0


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Iterator[Queue]:
    queued = Queue()
    monkeypatch.setattr(local, "start_worker", queued.start)
    monkeypatch.setattr(processes, "stop", lambda _: 0)
    monkeypatch.setattr(local, "close_ended", lambda *_: None)
    monkeypatch.setattr(local, "usable_cpus", lambda: [*range(8)])
    monkeypatch.setattr(local, "POLL_S", 0.0)
    return queued


def placed(folder: Path, engine: Any, needs: list[Resources], queue: Queue, jobs: int | None = None) -> list[Any]:
    """Place trials and return the GPUs of each, in the order of the trials."""
    attempts = [folder / str(number) for number in range(len(needs))]
    for attempt in attempts:
        attempt.mkdir(exist_ok=True)
        store.write_json(attempt / "trial.json", {})
    done = list(engine.place(attempts, needs, jobs=jobs, tick=lambda a: a and queue.tick(a)))
    assert sorted(done) == sorted(attempts)
    return [store.read_json(attempt / "placement.json")["gpus"] for attempt in attempts]


def test_four_slots_pack_trials_of_one_and_two_gpus_without_a_gpu(tmp_path: Path, queue: Queue) -> None:
    engine = find_engine("local", 4)
    needs = [Resources(gpus=gpus, cpus=gpus) for gpus in (1, 2, 1, 2, 1, 4)]
    engine.check(needs)
    gpus = placed(tmp_path, engine, needs, queue)
    assert [len(names) for names in gpus] == [1, 2, 1, 2, 1, 4]
    assert {name for names in gpus for name in names} == {f"slot-{number}" for number in range(4)}
    assert queue.most >= 3
    assert placed(tmp_path, engine, [Resources()] * 3, queue) == [[], [], []]  # trials on a CPU have none


def test_a_machine_runs_a_trial_on_each_gpu(tmp_path: Path, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "gpu_names", lambda _: UUIDS[:2])
    gpus = placed(tmp_path, local, [Resources(gpus=1)] * 4, queue)
    assert queue.most == 2
    assert sorted(map(tuple, gpus)) == [("GPU-aaaa",), ("GPU-aaaa",), ("GPU-bbbb",), ("GPU-bbbb",)]


def test_names_of_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpu_names() == []
    assert gpu_names(2) == ["slot-0", "slot-1"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr("scalebench.running.slots._uuids", lambda count: UUIDS[:count])
    assert gpu_names() == UUIDS[:2]
    assert gpu_names(1) == UUIDS[:1]
    with pytest.raises(InputError, match=r"--slots: gpu=3, and this machine has 2"):
        gpu_names(3)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-dddd, 1,GPU-none")
    assert gpu_names() == ["GPU-dddd", "1"]


def test_a_worker_sees_only_its_own_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = tmp_path / "study" / "trials" / "one" / "attempt-1"
    attempt.mkdir(parents=True)
    local.write_placement(attempt, "local", gpus=UUIDS[1:3])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3")
    monkeypatch.setattr(node, "limit_threads", lambda _: None)
    monkeypatch.setattr(node, "node_peaks", lambda *_: {})
    resources = {"cpus": 1, "gpus": 2, "processes": 2, "share_device": False}
    header = {"resources": resources, "most_processes": 2, "precisions": [], "trial": {"device_kind": "cuda"}}
    node.settle(attempt, header)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-bbbb,GPU-cccc"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--slots", "gpu=0"], "--slots: expected gpu=N"),
        (["--slots", "cpu=2"], "--slots: expected gpu=N"),
        (["--slots", "gpu=1", "--engine", "ray"], "--slots: the engine ray"),
        (["--slots", "gpu=1", "--set", "train.processes=2"], "a trial asks for 2 GPUs and there are slots for 1"),
        (["--set", "train.processes=2"], "a trial asks for 2 GPUs and this machine has 0"),
        ([], "a trial asks for 1 GPU and this machine has 0"),
    ],
)
def test_more_gpus_than_there_are_is_one_line(
    arguments: list[str], expected: str, small_study: Path, command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    code, _, err = command("run", small_study, "--set", "train.device=cuda", *arguments)
    assert code == 2
    assert expected in err
    assert "Traceback" not in err
    assert not [*small_study.parent.glob("results/*/trials/*/attempt-*")]


def test_slots_for_a_study_on_the_cpu_are_refused(small_study: Path, command) -> None:
    code, _, err = command("run", small_study, "--set", "train.device=cpu", "--slots", "gpu=4")
    assert code == 2
    assert err.strip().startswith("--slots gpu=4: no trial of this study runs on a GPU here")
    assert not [*small_study.parent.glob("results/*/trials/*/attempt-*")]
