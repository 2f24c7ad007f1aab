"""The processes of a trial without what they train: how they are started, stopped and judged."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from drivers import Driver, Drivers
from support import REPOSITORY, ranks_of

from scalebench import store


def light_attempt(folder: Path, *deeds: str) -> tuple[Path, dict[str, Any]]:
    """Return an attempt, and its header, whose processes are those of ``light_rank.py``."""
    attempt = store.new_attempt(folder / "study", "t")
    header = {
        "identity": {"trial_id": "t"}, "resources": {"processes": 2}, "trial": {"device_kind": "cpu"}, "light": deeds,
    }  # fmt: skip
    store.write_json(attempt / "trial.json", header)
    store.write_json(attempt / "placement.json", {"exclusive": True})
    return attempt, header


RUN_LIGHT = """
import os
from pathlib import Path
from scalebench import store
from scalebench.running import ranks
os.environ["PYTHONPATH"] += ":" + {tests!r}
ranks.WORKER = "light_rank"
attempt = Path({attempt!r})
ranks.run_processes(attempt, store.read_json(attempt / "trial.json"), {{"exclusive": True}})
raise SystemExit(0)
"""


def start_light(drivers: Drivers, attempt: Path) -> Driver:
    """Start the worker of an attempt whose processes are light ones."""
    code = RUN_LIGHT.format(tests=str(REPOSITORY / "tests"), attempt=str(attempt))
    return drivers.start(attempt.parents[2], [], before=code)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deed", "expected"),
    [("SIGTERM", ("killed", "process 1 of 2 ended: SIGTERM")), ("diverged", ("diverged", "process 1: as told"))],
)
def test_the_others_are_stopped_and_the_row_is_that_of_the_first_to_end(
    tmp_path: Path, drivers: Drivers, deed: str, expected: tuple[str, str]
) -> None:
    attempt, _ = light_attempt(tmp_path, "sleep", deed)
    assert start_light(drivers, attempt).wait(30) == 0
    row = store.read_json(attempt / "record.json")
    assert (row["status"], row["error_message"]) == expected
    assert not ranks_of(attempt)
    assert not (attempt / "torchrun").exists()


@pytest.mark.slow
def test_processes_end_with_the_worker_that_started_them(tmp_path: Path, drivers: Drivers) -> None:
    attempt, _ = light_attempt(tmp_path, "sleep", "sleep")
    worker = start_light(drivers, attempt)
    while len(pids := [int(path.name[4:]) for path in attempt.rglob("pid-*")]) < 2:
        assert worker.poll() is None, worker.err
        time.sleep(0.05)
    ranks = [psutil.Process(pid) for pid in pids]
    worker.kill()
    assert not psutil.wait_procs(ranks, timeout=5)[1]


def test_each_process_has_its_own_cores_so_that_none_takes_another_for_a_stranger(monkeypatch) -> None:
    from scalebench.running import ranks

    pinned: list[Any] = []
    monkeypatch.setattr(ranks, "pin", pinned.append)
    monkeypatch.setattr(ranks, "limit_threads", pinned.append)
    shares = [ranks.take_share({"cpus": [3, 5, 6, 7, 9], "threads": 2}, number, 2)["cpus"] for number in range(2)]
    assert (shares, pinned) == ([[3, 5], [6, 7]], [[3, 5], 2, [6, 7], 2])
    crowded = [ranks.take_share({"cpus": [0, 1], "threads": 1}, number, 4)["cpus"] for number in range(4)]
    assert crowded == [[]] * 4


def test_times_are_exclusive_where_they_are_for_every_process() -> None:
    from scalebench.running.ranks import joint_row

    def row(share: float | None, *, alone: bool) -> dict[str, Any]:
        return {"status": "ok", "timing_exclusive": alone, "others_cpu_share": share, "loss": share}

    assert joint_row({1: row(0.03, alone=True), 0: row(0.01, alone=True)}) == row(0.03, alone=True) | {"loss": 0.01}
    assert joint_row({0: row(0.01, alone=True), 1: row(0.4, alone=False)}) == row(0.4, alone=False) | {"loss": 0.01}
    unknown = {"status": "ok", "timing_exclusive": False}
    assert joint_row({0: unknown, 1: unknown}) == unknown


def test_the_row_of_a_failed_trial_is_that_of_the_process_that_failed_first(tmp_path: Path) -> None:
    from scalebench.running.ranks import failed_row, ranks_written

    header = {"identity": {"trial_id": "t"}, "resources": {"processes": 3}}
    for rank, row in [
        (2, {"status": "oom", "error_message": "no memory"}),
        (0, {"status": "failed", "error_message": "connection closed by peer"}),
    ]:
        (tmp_path / f"rank-{rank}.json").write_text(json.dumps(row))
        time.sleep(0.01)
    rows = {int(path.stem[5:]): store.read_json(path) for path in ranks_written(tmp_path)}
    failures: Any = {0: type("Failure", (), {"exitcode": 1}), 2: type("Failure", (), {"exitcode": 1})}
    row = failed_row(tmp_path, header, {"exclusive": True}, rows, failures)
    assert (row["status"], row["error_message"]) == ("oom", "process 2: no memory")
    failures[1] = type("Failure", (), {"exitcode": -6})  # lost its peer, or was stopped with the others
    row = failed_row(tmp_path, header, {"exclusive": True}, rows, failures)
    assert (row["status"], row["error_message"]) == ("oom", "process 2: no memory")
    failures[1] = type("Failure", (), {"exitcode": -11})
    row = failed_row(tmp_path, header, {"exclusive": True}, {0: rows[0]}, failures)
    assert (row["status"], row["error_message"]) == ("killed", "process 1 of 3 ended: SIGSEGV")
    row = failed_row(tmp_path, header, {"exclusive": True}, {}, failures)
    assert (row["status"], row["error_message"]) == ("killed", "process 1 of 3 ended: SIGSEGV")
    (tmp_path / "stderr.log").write_text("Traceback\nImportError: no such module\n")
    row = failed_row(tmp_path, header, {"exclusive": True}, {}, {0: failures[0]})
    assert (row["status"], row["trial_id"]) == ("failed", "t")
    assert row["error_message"] == "process 0 of 3 ended: exit status 1: ImportError: no such module"
