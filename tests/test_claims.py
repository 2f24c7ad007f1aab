"""Drivers on one results folder share the trials: each is run once, and nobody waits for a driver that ended.

The case 14-orphan-worker is a driver that is killed.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
from drivers import Driver, Drivers
from forking import ForkedProcess
from support import SMALL

from scalebench import store
from scalebench.running import claims, sweep
from scalebench.running.attempts import Attempts
from scalebench.running.claims import Observer, driving, last_claim, take
from scalebench.running.engines import ENGINES
from scalebench.running.engines.base import Resources
from scalebench.running.planning import load_study
from scalebench.running.sweep import execute, save_study, survey
from scalebench.store import locks
from scalebench.study import Study


def prepare(study_dir: Path, number: int, driver: str = "d", trial: str = "t") -> Path:
    attempt = store.new_attempt(study_dir, trial)
    store.write_json(attempt / "trial.json", {"attempt": attempt.name, "driver": driver, "claim": number})
    return attempt


@pytest.mark.parametrize("links", [True, False])
def test_of_many_that_claim_one_trial_at_the_same_time_one_has_it(tmp_path: Path, monkeypatch, links: bool) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no hard links here")

    if not links:
        monkeypatch.setattr(os, "link", refuse)
    for number in range(1, 21):
        attempts, barrier = [prepare(tmp_path, number) for _ in range(6)], threading.Barrier(6)
        with ThreadPoolExecutor(6) as pool:
            results = list(pool.map(lambda attempt, barrier=barrier: barrier.wait() >= 0 and take(attempt), attempts))
        assert sorted(results) == [False] * 5 + [True]
        claim = last_claim(tmp_path / "trials" / "t")
        assert claim is not None
        assert (claim.number, claim.attempt, claim.driver) == (number, attempts[results.index(True)], "d")
        assert not claim.settled


def test_an_answer_that_was_lost_on_the_way_still_is_a_claim(tmp_path: Path) -> None:
    attempt = prepare(tmp_path, 1)
    assert [take(attempt), take(attempt)] == [True, True]
    assert not take(prepare(tmp_path, 1))


def test_a_driver_is_alive_while_its_process_is(tmp_path: Path) -> None:
    with driving(tmp_path) as driver:
        assert Observer(tmp_path).alive(driver)
        path = tmp_path / "drivers" / f"{driver}.json"
        state = json.loads(path.read_text())
    assert not Observer(tmp_path).alive(driver)
    for changes in ({"start": 1.0}, {"pid": 2**22 + 1}, {"pid": "x"}):  # another process with that id, none, damaged
        path.write_text(json.dumps(state | changes))
        assert not Observer(tmp_path).alive(driver)
    path.write_text("{")
    assert not Observer(tmp_path).alive(driver)
    assert not Observer(tmp_path).alive("../../etc/passwd")


def test_a_driver_elsewhere_is_alive_while_its_file_changes_whatever_the_clocks_say(
    tmp_path: Path, monkeypatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(claims.time, "time", pytest.fail)
    path = tmp_path / "drivers" / "far.json"
    path.parent.mkdir()

    def beat(number: int) -> None:
        path.write_text(json.dumps({"space": "another machine", "pid": 1, "start": 0.0, "beat": number}))
        os.utime(path, (0, 0))

    observer = Observer(tmp_path)
    for number in range(5):
        beat(number)
        assert observer.alive("far")
        now[0] += claims.STALE_S - 1
    assert observer.alive("far")
    now[0] += 2
    assert not observer.alive("far")
    beat(9)
    assert observer.alive("far")


@pytest.fixture
def study(tmp_path: Path) -> Study:
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    return load_study(path, ["train.steps=5"])


class Instant:
    """An engine whose trials end at once, and where a test can step in before each."""

    def __init__(self, before: Callable[[Path], None] = lambda _: None) -> None:
        self.before, self.ran = before, []

    def check(self, resources: Sequence[Resources]) -> None:
        """It takes every trial."""

    def place(
        self, attempts: Sequence[Path], resources: Sequence[Resources], *, begin: Callable[[Path], bool], **_: Any
    ) -> Iterator[Path]:
        for attempt in attempts:
            self.before(attempt)
            if begin(attempt):
                self.ran.append(attempt.parent.name)
                store.write_record(attempt, store.read_json(attempt / "trial.json")["identity"] | {"status": "ok"})
                yield attempt


def test_two_drivers_that_began_together_run_each_trial_once_and_both_have_all(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sweep, "WAIT_S", 0.01)
    first, second = (survey(study, tmp_path / "r") for _ in range(2))
    theirs = Instant()
    monkeypatch.setitem(ENGINES, "theirs", theirs)
    other = execute(second, study, engine="theirs")
    ours = Instant(lambda _: next(other, None))  # the other driver runs one trial before each of this one's
    monkeypatch.setitem(ENGINES, "ours", ours)
    rows = [row["trial_id"] for row in execute(first, study, engine="ours")]
    rows_there = [row["trial_id"] for row in other]
    assert sorted(ours.ran + theirs.ran) == sorted(rows) == sorted(trial.trial_id for trial in first.planned)
    assert theirs.ran
    assert first.executed + second.executed == 4
    assert len(rows_there) + len(theirs.ran) >= 4
    attempts = list((tmp_path / "r" / "small" / "trials").glob("*/attempt-*"))
    assert len(attempts) == 4  # those that were not begun are removed
    assert not list((tmp_path / "r" / "small" / "drivers").iterdir())


def test_what_another_driver_finished_since_the_survey_is_not_run_again_and_a_retry_is(
    study, tmp_path, monkeypatch
) -> None:
    before = survey(study, tmp_path / "r")
    monkeypatch.setitem(ENGINES, "instant", engine := Instant())
    assert len(list(execute(survey(study, tmp_path / "r"), study, engine="instant"))) == 4
    assert len(list(execute(before, study, engine="instant"))) == 4
    assert (before.executed, len(engine.ran)) == (0, 4)
    again = survey(study, tmp_path / "r", ["ok"])
    assert len(list(execute(again, study, engine="instant"))) == 4
    assert (again.executed, len(engine.ran)) == (4, 8)


def test_a_claim_of_a_driver_that_ended_holds_nobody_up(study, tmp_path, monkeypatch) -> None:
    monkeypatch.setitem(ENGINES, "instant", Instant())
    ((planned, *_),) = [survey(study, tmp_path / "r").planned]
    assert take(prepare(tmp_path / "r" / "small", 1, "gone", planned.trial_id))
    rows = list(execute(survey(study, tmp_path / "r"), study, engine="instant"))
    assert len(rows) == 4
    assert last_claim(tmp_path / "r" / "small" / "trials" / planned.trial_id).number == 2


def test_an_attempt_that_outlives_its_driver_and_ends_meanwhile_counts(study, tmp_path, monkeypatch) -> None:
    ((planned, *_),) = [survey(study, tmp_path / "r").planned]
    orphan = prepare(tmp_path / "r" / "small", 1, "gone", planned.trial_id)
    assert take(orphan)

    def end(attempt: Path) -> None:
        if attempt.parent == orphan.parent:  # after the driver has looked for new records
            identity = {"study": study.name, "trial_id": planned.trial_id}
            store.write_record(orphan, {**identity, "status": "ok", "steps": 7})

    monkeypatch.setitem(ENGINES, "instant", engine := Instant(end))
    rows = {row["trial_id"]: row for row in execute(survey(study, tmp_path / "r"), study, engine="instant")}
    assert len(rows) == 4
    assert rows[planned.trial_id]["attempt_dir"] == str(orphan)
    assert len(engine.ran) == 3
    assert {path.name for path in orphan.parent.glob("attempt-*")} == {orphan.name}


def test_an_attempt_that_ends_between_two_looks_at_its_claim_is_not_run_again(study, tmp_path, monkeypatch) -> None:
    ((planned, *_),) = [survey(study, tmp_path / "r").planned]
    orphan = prepare(tmp_path / "r" / "small", 1, "gone", planned.trial_id)
    assert take(orphan)
    ready, add = survey(study, tmp_path / "r"), Attempts.add

    def end_and_add(attempts: Attempts, *free: Any) -> Path:
        if free[0].trial_id == planned.trial_id:
            identity = {"study": study.name, "trial_id": planned.trial_id}
            store.write_record(orphan, {**identity, "status": "ok", "steps": 7})
        return add(attempts, *free)

    monkeypatch.setattr(Attempts, "add", end_and_add)
    monkeypatch.setitem(ENGINES, "instant", engine := Instant())
    assert len(list(execute(ready, study, engine="instant"))) == 4
    assert len(engine.ran) == 3


def test_drivers_that_begin_in_the_same_instant_keep_each_other_s_plan(study, tmp_path) -> None:
    studies = [load_study(tmp_path / "small.toml", [f"train.seed={seed}"]) for seed in range(6)]
    sweeps = [survey(study, tmp_path / "r") for study in studies]
    begin = time.monotonic() + 0.1

    def save(number: int) -> int:
        time.sleep(max(0.0, begin - time.monotonic()))
        save_study(sweeps[number], studies[number])
        return 0

    with (tmp_path / "log").open("wb") as log:
        processes = [ForkedProcess(partial(save, number), log, log) for number in range(6)]
        assert [process.wait(20) for process in processes] == [0] * 6, (tmp_path / "log").read_text()
    planned = store.planned_ids(store.read_study(tmp_path / "r" / "small", []))
    assert sorted(planned) == sorted(trial.trial_id for sweep in sweeps for trial in sweep.planned)


def test_plans_are_saved_where_the_file_system_has_no_locks(study, tmp_path, monkeypatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    save_study(survey(study, tmp_path / "r"), study)
    assert len(store.planned_ids(store.read_study(tmp_path / "r" / "small", []))) == 4


def test_a_plan_that_cannot_be_locked_is_refused_with_its_path(study, tmp_path) -> None:
    (tmp_path / "r" / "small" / ".study.lock").mkdir(parents=True)
    with pytest.raises(store.StoreError, match=r"study\.json: cannot be written \(Is a directory\)"):
        save_study(survey(study, tmp_path / "r"), study)


RUN = ("run", "small.toml", "--jobs", "1", "--json")


@pytest.mark.slow
def test_two_commands_at_once_share_a_study(study, tmp_path: Path, drivers: Drivers) -> None:
    both = [drivers.start(tmp_path, [*RUN, "--set", "train.steps=5"]) for _ in range(2)]
    assert [driver.wait(120) for driver in both] == [0, 0]
    summaries = [json.loads(driver.out.splitlines()[-1]) for driver in both]
    assert sum(summary["executed"] for summary in summaries) == 4
    assert [summary["statuses"] for summary in summaries] == [{"ok": 4}] * 2
    assert len(list((tmp_path / "results/small/trials").glob("*/*/record.json"))) == 4


@pytest.mark.slow
def test_a_driver_that_is_killed_leaves_no_worker_and_the_command_typed_again_goes_on(
    study, tmp_path: Path, drivers: Drivers
) -> None:
    settings = ["--set", "train.steps=[10000000, 5]", "--set", "model.params=200", "--set", "train.seed=0"]
    driver = drivers.start(tmp_path, [*RUN, *settings])
    worker = worker_in_training(tmp_path, driver)
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    worker.wait(5)
    again = drivers.start(tmp_path, [*RUN, *settings])
    worker_in_training(tmp_path, again).kill()
    assert again.wait(60) == 1
    rows = store.load_results(tmp_path / "results").set_index("steps")["status"]
    assert rows.to_dict() == {10**7: "killed", 5: "ok"}


def worker_in_training(folder: Path, driver: Driver) -> psutil.Process:
    """Wait until a trial has a heartbeat, and return its worker; the heartbeat is removed."""
    while not (beats := list(folder.glob("results/small/trials/*/*/heartbeat.json"))):
        time.sleep(0.05)
        assert driver.poll() is None, driver.err
    beats[0].unlink()
    return psutil.Process(store.read_json(beats[0].with_name("placement.json"))["pid"])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process starts at a time of day")
def test_a_driver_is_alive_when_the_machine_s_clock_is_set(tmp_path: Path, monkeypatch) -> None:
    """psutil adds the time of boot to a start, and that moves with the clock."""
    import psutil._pslinux as linux

    boot = linux.boot_time()
    with driving(tmp_path / "s") as name:
        monkeypatch.setattr(linux, "boot_time", lambda: boot + 5)
        assert Observer(tmp_path / "s").alive(name)
