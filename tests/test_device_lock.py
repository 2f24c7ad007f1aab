"""The lock of a GPU: one process at a time has it, whoever dies gives it back, and what waits says so."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comparison_support import forked_processes  # noqa: F401 - a fixture
from support import SOURCE_PATH

from scalebench.comparison import Options, ceilings, measure, plan_comparison, runner
from scalebench.comparison.process import main as compare_process
from scalebench.comparison.timing import CpuClock
from scalebench.measure import device_lock
from scalebench.measure.device_lock import DeviceLock, gpu_uuid
from scalebench.store import read_json, write_json
from scalebench.store.comparisons import new_run

OPERATION = str(Path(__file__).with_name("cheating_operation.py"))
HOLDER = """
import sys, time
from pathlib import Path
from scalebench.measure.device_lock import DeviceLock
lock = DeviceLock("GPU-1", Path(sys.argv[1]))
lock.take(shared="shared" in sys.argv, waiting=lambda: print("waits", flush=True))
print("has it", flush=True)
time.sleep(60)
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    """Start processes that take the lock and keep it until they are killed."""
    started: list[subprocess.Popen[str]] = []

    def begin(*words: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(tmp_path), *words], stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": SOURCE_PATH},
        )  # fmt: skip
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_one_process_has_it_and_the_next_gets_it_when_that_is_killed(start, tmp_path: Path) -> None:
    first = start()
    assert said(first) == "has it"
    second = start()
    assert said(second) == "waits"
    first.kill()
    assert said(second) == "has it"
    assert (tmp_path / "scalebench-GPU-1.lock").exists()  # of nobody now, and in nobody's way


def test_sharers_have_it_together_and_keep_out_who_wants_it_alone(start) -> None:
    sharers = [start("shared"), start("shared")]
    assert [said(process) for process in sharers] == ["has it", "has it"]
    alone = start()
    assert said(alone) == "waits"
    sharers[0].kill()
    sharers[1].kill()
    assert said(alone) == "has it"


def test_another_name_is_another_lock_and_a_cpu_has_none(start, tmp_path: Path) -> None:
    assert said(start()) == "has it"
    with DeviceLock("GPU-2", tmp_path).holding(waiting=pytest.fail):
        pass
    assert gpu_uuid(torch.device("cpu")) == ""
    with DeviceLock("", tmp_path).holding(waiting=pytest.fail):
        assert not (tmp_path / "scalebench-.lock").exists()


def test_its_file_can_be_locked_by_whoever_may_only_read_it(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        with DeviceLock("GPU-1", tmp_path).holding():
            pass
    finally:
        os.umask(before)
    assert (tmp_path / "scalebench-GPU-1.lock").stat().st_mode & 0o777 == 0o444
    with DeviceLock("GPU-1", tmp_path).holding():
        pass


def test_waiting_is_measured_and_released_locks_can_be_taken_again(tmp_path: Path) -> None:
    lock, other, heard = DeviceLock("GPU-1", tmp_path), DeviceLock("GPU-1", tmp_path), []
    lock.take()
    threading.Timer(0.3, lock.release).start()
    other.take(waiting=lambda: heard.append("waits"))
    assert (lock.waited_s < 0.1, 0.2 < other.waited_s < 10, heard) == (True, True, ["waits"])
    other.release()
    lock.take(waiting=pytest.fail)
    lock.release()


@pytest.mark.slow
def test_a_comparison_measures_nothing_while_another_has_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_lock, "FOLDER", tmp_path)
    monkeypatch.setattr("scalebench.comparison.process.gpu_uuid", lambda _: "GPU-1")
    options = Options(providers=("eager",), shapes=("length=7",), device="cpu", processes=1, seconds=0.05)
    plan = plan_comparison(OPERATION, options)
    run = new_run(tmp_path / "results", plan.operation.name)
    write_json(run / "request.json", plan.request)
    folder = run / "process-0"
    folder.mkdir()
    with DeviceLock("GPU-1", tmp_path).holding():
        thread = threading.Thread(target=compare_process, args=([str(run), "0"],))
        thread.start()
        while not (folder / "phase.json").exists():
            time.sleep(0.02)
        time.sleep(0.5)
        assert runner._waits(folder)
        assert sorted(path.name for path in folder.iterdir()) == ["phase.json"]  # not even ceilings
    thread.join(60)
    assert (folder / "case-0.json").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("forked_processes")
def test_waiting_for_the_gpu_is_told_and_is_not_taken_for_hanging(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is silent for longer than the patience of 60 s, and ends only after it was told 15 times that it waits."""
    heard: list[float] = []
    turn = tmp_path / "turn"

    def gpu_of_its_turn(_: object) -> str:
        while not turn.exists():
            time.sleep(0.01)
        return ""

    def waiting() -> None:
        heard.append(0.0)
        if len(heard) == 15:
            turn.touch()

    monkeypatch.setattr("scalebench.comparison.process.gpu_uuid", gpu_of_its_turn)
    monkeypatch.setattr("scalebench.comparison.runner._waits", lambda _: len(heard) < 15)
    monkeypatch.setattr("scalebench.comparison.runner._silent_s", lambda *_: 61.0 if len(heard) < 15 else 0.0)
    options = Options(providers=("eager",), shapes=("length=7",), device="cpu", processes=1, seconds=0.05, patience=60)
    result = measure(plan_comparison(OPERATION, options), tmp_path / "results", "a test", waiting=waiting)
    assert (result.good, len(heard)) == (True, 15)


def test_kept_ceilings_are_used_for_an_hour_on_the_same_gpu_and_say_their_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[float] = []

    def measure_ceilings(*_: object) -> ceilings.Ceilings:
        measured.append(0.0)
        return ceilings.Ceilings(1e12, float(len(measured)), "measured", 5, 1e-6)

    path, device, uuid = tmp_path / "ceilings.json", torch.device("cpu"), ["GPU-1"]
    monkeypatch.setattr(ceilings, "measure_ceilings", measure_ceilings)
    monkeypatch.setattr(ceilings, "gpu_uuid", lambda _: uuid[0])

    def known(dtype: torch.dtype = torch.float32) -> ceilings.Ceilings:
        return ceilings.known_ceilings(CpuClock(), device, dtype)

    assert [known().matmul_flops_per_s, known().matmul_flops_per_s] == [1, 2]  # nothing is kept unless asked
    monkeypatch.setenv("SCALEBENCH_CEILINGS", str(path))
    assert [known().matmul_flops_per_s, known().matmul_flops_per_s] == [3, 3]
    assert (known().source, known().cache_bytes) == ("measured; 0 min before", 5)
    assert known(torch.bfloat16).matmul_flops_per_s == 4
    uuid[0] = "GPU-2"
    assert known().matmul_flops_per_s == 5
    uuid[0] = "GPU-1"
    stored = read_json(path)
    write_json(path, {key: entry | {"at": entry["at"] - 3700} for key, entry in stored.items()})
    assert known().matmul_flops_per_s == 6
    path.write_text("{")
    assert known().matmul_flops_per_s == 7
    uuid[0] = ""  # a CPU: other programs may be running now that were not then
    assert known().matmul_flops_per_s == 8
