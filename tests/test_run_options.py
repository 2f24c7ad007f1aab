"""What a user asks of ``run`` and ``status``: order, stopping early, trying again, memory; signals and full disks."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pandas as pd
import psutil
import pytest
from drivers import Drivers
from support import PLACEMENT, SMALL, child_environment

from scalebench import store
from scalebench.cli.commands import watch
from scalebench.cli.commands.watch import StudyProgress, time_left_s
from scalebench.running.claims import driving
from scalebench.running.engines import ENGINES
from scalebench.running.engines.base import Begin, Resources
from scalebench.workloads.recorder import Recorder

Command = Callable[..., tuple[int, str, str]]


class Scripted:
    """An engine whose trials end at once with the statuses given by their sizes."""

    def __init__(self, statuses: dict[float, str], before: Callable[[Path], None] = lambda _: None) -> None:
        self.statuses, self.before, self.ran = statuses, before, []

    def check(self, resources: Sequence[Resources]) -> None:
        """It takes every trial."""

    def place(
        self, attempts: Sequence[Path], resources: Sequence[Resources], *, begin: Begin, **_: Any
    ) -> Iterator[Path]:
        for attempt in attempts:
            assert begin(attempt)
            self.before(attempt)
            identity = store.read_json(attempt / "trial.json")["identity"]
            self.ran.append((identity["requested_params"], identity["seed"]))
            end = {"status": self.statuses[identity["requested_params"]], "error_message": "as scripted"}
            store.write_record(attempt, identity | end)
            yield attempt


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scripted]:
    """Make small.toml and an engine "scripted"; 800 parameters fail."""
    (tmp_path / "small.toml").write_text(SMALL)

    def engine(statuses: dict[float, str] | None = None, **more: Any) -> Scripted:
        script = Scripted(statuses or {200: "ok", 800: "failed"}, **more)
        monkeypatch.setitem(ENGINES, "scripted", script)
        return script

    return engine


RUN = ("run", "small.toml", "--engine", "scripted")


@pytest.mark.parametrize(
    ("order", "sizes"), [("given", [800, 200, 400]), ("cheapest", [200, 400, 800]), ("largest", [800, 400, 200])]
)
def test_trials_start_in_the_order_asked_for(scripted, command: Command, order: str, sizes: list[int]) -> None:
    engine = scripted(dict.fromkeys(sizes, "ok"))
    settings = ["--set", "model.params=[800, 200, 400]", "--set", "train.seed=0"]
    assert command(*RUN, "--order", order, *settings)[0] == 0
    assert [size for size, _ in engine.ran] == sizes


def test_a_run_goes_on_after_a_failure_unless_it_is_told_to_stop(scripted, command: Command, tmp_path: Path) -> None:
    engine = scripted({200: "failed", 800: "ok"})
    code, out, _ = command(*RUN, "--fail-fast")
    assert (code, len(engine.ran)) == (1, 1)
    assert "1 executed" in out
    assert command(*RUN, "--keep-going")[0] == 1
    assert len(engine.ran) == 4


def test_a_run_that_stops_at_a_failure_counts_the_whole_batch(scripted, command: Command, monkeypatch) -> None:
    monkeypatch.setitem(ENGINES, "local", scripted())  # the engine that runs batches
    code, out, _ = command("run", "small.toml", "--fail-fast", "--set", "run.ensemble=2", "--order", "largest")
    assert code == 1
    assert "2 executed" in out
    assert "2 failed, 2 missing" in out


def test_a_plain_run_again_says_which_trials_ended_badly_and_how_to_run_them_again(scripted, command: Command) -> None:
    settings = ["--set", "train.seed=[0, 1]"]
    engine = scripted()
    command(*RUN, *settings)
    code, out, _ = command(*RUN, *settings)
    assert (code, len(engine.ran)) == (1, 4)
    assert out.count("failed: as scripted") == 2
    retry = next(line for line in out.splitlines() if "--retry" in line).split(": ")[1].split(";")[0].split()
    assert retry[0] == "scalebench"
    del retry[retry.index("--set") + 1 :]
    engine = scripted({200: "ok", 800: "ok"})
    assert command(*RUN, *settings, "--retry", "failed,oom,timeout,killed")[0] == 0
    assert {size for size, _ in engine.ran} == {800}


def test_trials_larger_than_the_machine_are_refused_before_any_starts(scripted, command: Command, monkeypatch) -> None:
    engine = scripted()
    monkeypatch.setattr("scalebench.running.memory.memory_bytes", lambda _: 100)
    for line in (("plan", "small.toml"), RUN):
        words = [word for word in line if word not in ("--engine", "scripted")]
        code, _, err = command(*words)
        assert code == 2
        assert len(err.splitlines()) == 2  # one for each size
        assert "--force" in err
        assert "Traceback" not in err
    assert not engine.ran
    assert command("plan", "small.toml", "--force")[0] == 0
    assert command("plan", "small.toml", "--set", "train.precision=bfloat16")[0] == 2


@pytest.mark.slow
def test_status_counts_running_trials_of_living_drivers(scripted, command: Command, tmp_path: Path) -> None:
    seen: list[tuple[dict[str, int], str]] = []

    def look(attempt: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "scalebench.cli.app", "status", "results", "--json"],
            cwd=tmp_path, env=child_environment(), capture_output=True, text=True,
        )  # fmt: skip
        seen.append((json.loads(done.stdout)["studies"]["small"], attempt.name))

    engine = scripted()
    engine.before = lambda attempt: look(attempt) if len(engine.ran) == 1 else None
    command(*RUN)
    assert seen[0][0] == {"ok": 1, "running": 1, "missing": 2}
    shutil.rmtree(next(tmp_path.glob("results/small/trials/*/attempt-*")))
    assert json.loads(command("status", "results", "--json")[1])["studies"]["small"]["missing"] == 1


def test_watching_ends_with_the_last_driver_and_tells_what_is_left(
    scripted, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(watch, "time", SimpleNamespace(sleep=looks.append))
    scripted()
    command(*RUN, "--fail-fast")
    _, out, _ = command("status", "results", "--watch")
    assert "small: 2/4 done, 0 running, 1 failed" in out
    assert not looks
    with driving(tmp_path / "results" / "small"):
        assert "0 running" in command("status", "results", "--watch")[1]  # a driver without a trial
    assert len(looks) == watch.IDLE_LOOKS  # it may be between two


def test_time_left_is_the_fitted_cost_of_the_trials_to_come() -> None:
    done = pd.DataFrame({"wall_time_s": [3.0, 5.0, 9.0], "flops_per_step": [1e6, 2e6, 4e6], "steps": [1000] * 3})
    assert time_left_s(done, [8e9, 1e9]) == pytest.approx(17 + 3)  # 1 s and 2 s per GFLOP
    assert time_left_s(done, [None, 1e9]) == pytest.approx(2 * 17 / 3)
    assert time_left_s(done, []) == 0
    assert time_left_s(done.iloc[:0], [1e9]) is None


def test_a_folder_that_is_removed_midway_stops_the_run_with_one_line(
    scripted, command: Command, tmp_path: Path
) -> None:
    scripted(before=lambda attempt: shutil.rmtree(tmp_path / "results"))
    code, _, err = command(*RUN)
    assert code == 3, err
    (line,) = filter(str.strip, err.splitlines())
    assert "no such file" in line.lower()
    assert "the same command goes on" in line


@contextmanager
def small_files() -> Iterator[None]:
    """Let this process write files of at most 2,000 bytes, as on a disk that is full: what pytest prints, too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_trial_whose_samples_do_not_fit_keeps_its_result(tmp_path: Path, capsys) -> None:
    attempt = tmp_path / "t" / "attempt-1"
    attempt.mkdir(parents=True)
    recorder = Recorder(attempt, {"identity": {"trial_id": "t"}}, PLACEMENT)
    with small_files():
        recorder.save_samples("steps.parquet", pd.DataFrame({"step": range(10_000)}))
        store.write_record(attempt, recorder.columns | {"status": "ok"})
    assert "File too large" in capsys.readouterr().err
    assert store.read_record(attempt)["status"] == "ok"
    assert [path.name for path in attempt.iterdir()] == ["record.json"]


def test_a_heartbeat_that_does_not_fit_ends_no_trial_but_one_without_a_folder_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path, {"identity": {}}, PLACEMENT)
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", Mock(side_effect=full))
        recorder.progress(7, 7)
    assert not (tmp_path / "heartbeat.json").exists()
    recorder.progress(7, 7)
    assert store.read_json(tmp_path / "heartbeat.json")["step"] == 7
    recorder.attempt = tmp_path / "removed"
    with pytest.raises(FileNotFoundError):
        recorder.progress(7, 7)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_the_run_at_once_and_its_workers_too(
    tmp_path: Path, drivers: Drivers, number: int
) -> None:
    (tmp_path / "small.toml").write_text(SMALL)
    driver = drivers.start(tmp_path, ["run", "small.toml", "--jobs", "1", "--set", "train.steps=10000000"])
    while not (beats := list(tmp_path.glob("results/small/trials/*/*/heartbeat.json"))):
        time.sleep(0.05)
        assert driver.poll() is None, driver.err
    worker = psutil.Process(store.read_json(beats[0].with_name("placement.json"))["pid"])
    worker.suspend()  # it does not end by SIGTERM, so that the run takes its time
    begun = time.monotonic()
    for _ in range(3):
        driver.send_signal(number)
        time.sleep(0.2)
    assert driver.wait(5) == 3
    assert time.monotonic() - begun < 3
    worker.wait(10)
    assert "Traceback" not in driver.err
    assert not list(tmp_path.glob("results/small/trials/*/*/.*tmp"))


EARLY = """
import os, runpy, sys
class Interrupting:
    def find_spec(self, name, *_):
        if name == "cyclopts":
            os.kill(os.getpid(), {number})
sys.meta_path.insert(0, Interrupting())
sys.argv = ["scalebench", "status"]
runpy.run_module("scalebench", run_name="__main__")
"""


@pytest.mark.parametrize("number", [int(signal.SIGINT), int(signal.SIGTERM)])
def test_a_signal_while_modules_are_imported_ends_the_command_as_a_later_one(tmp_path: Path, number: int) -> None:
    code = [sys.executable, "-c", EARLY.format(number=number)]
    done = subprocess.run(code, cwd=tmp_path, env=child_environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout, len(done.stderr.splitlines())) == (3, "", 1)
    assert done.stderr.startswith("interrupted")


def test_no_time_is_left_where_every_trial_has_ended() -> None:
    ended = StudyProgress(done=18, running=0, failed=6, planned=24, per_hour=None, left_s=0.0)
    assert ended.line("s") == "s: 18/24 done, 0 running, 6 failed"
    assert replace(ended, done=17, left_s=30.0).line("s").endswith("6 failed, about 30 s left")
