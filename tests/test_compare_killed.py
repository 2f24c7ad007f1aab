"""Comparisons that were killed: what they had measured is in the next report, and nothing is run that results name."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pandas as pd
import pytest
from drivers import Drivers

from scalebench.comparison.killed import comparisons_in
from scalebench.store import read_json, write_json
from scalebench.store.comparisons import RUNNING, new_run, write_run
from scalebench.store.comparisons import unfinished_runs as unfinished
from scalebench.store.locks import FileLock

SHAPES = ("kind=rms,rows=16,width=32,residual=false,dtype=float32", "kind=rms,rows=4096,width=2048,residual=false")
WAIT_S = 120


def left_behind(results: Path, origin: str) -> Path:
    """A run that has measured a case and has no rows."""
    run = new_run(results, "norm")
    write_json(run / "request.json", {"origin": origin})
    (run / "process-0").mkdir()
    write_json(run / "process-0" / "case-0.json", {"label": "n7"})
    return run


@pytest.mark.slow
def test_the_cases_that_a_killed_command_finished_are_in_the_report(command, drivers: Drivers, tmp_path: Path) -> None:
    options = ("--providers=eager", "--processes=1", "--seconds=20", "--noise=1e-9", "--device=cpu", "--results=r")
    driver = drivers.start(tmp_path, ["compare", "norm", f"--shapes={SHAPES[0]}", f"--shapes={SHAPES[1]}", *options])
    deadline = time.monotonic() + WAIT_S
    while not (runs := [*unfinished(tmp_path / "r")]):
        assert time.monotonic() < deadline, driver.err
        time.sleep(0.05)
    assert comparisons_in(tmp_path / "r").frame.empty  # it is still measuring
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait(WAIT_S)
    code, out, _ = command("status", "r", "--json")
    assert (code, json.loads(out)["comparisons"]) == (0, {"norm": {"ok": 1}})
    stored = read_json(runs[0] / "rows.json")
    assert (stored["ended"], len(stored["not_measured"]), len(stored["rows"])) == ("killed", 1, 1)
    assert command("report", "r", "-o", "page.html")[0] == 0
    page = (tmp_path / "page.html").read_text()
    assert f"A run ended early: killed; not measured: {stored['not_measured'][0]}." in page
    assert "ended early: killed; not measured: " in " ".join(command("status", "r")[1].split())


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    run = left_behind(tmp_path, "norm")
    with FileLock(run / RUNNING).holding():
        read = comparisons_in(tmp_path)
    assert (read.frame.empty, read.damaged) == (True, ())


def test_an_operation_of_ones_own_is_not_run_because_results_name_it(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    own.write_text(f"open({str(tmp_path / 'trace')!r}, 'w')")
    left_behind(tmp_path, str(own))
    (line,) = comparisons_in(tmp_path).damaged
    assert f"{own} is not run" in line
    assert not (tmp_path / "trace").exists()


def test_what_cannot_be_closed_is_said(command, tmp_path: Path) -> None:
    left_behind(tmp_path / "r", "norm")
    code, out, _ = command("status", "r")
    assert code == 1
    assert "not finished, and cannot be closed" in " ".join(out.split())


def test_a_run_that_ended_while_it_was_looked_at_keeps_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = left_behind(tmp_path, "norm")
    (run / "rows.json").write_text("its own")
    monkeypatch.setattr("scalebench.comparison.killed.unfinished_runs", lambda _: [run])
    monkeypatch.setattr("scalebench.comparison.killed.close_run", pytest.fail)
    comparisons_in(tmp_path)
    assert (run / "rows.json").read_text() == "its own"


def begun(results: Path, operation: str = "norm") -> Path:
    """A run whose command ended before it measured anything."""
    run = new_run(results, operation)
    write_json(run / "request.json", {"origin": operation, "operation": operation})
    (run / RUNNING).touch()
    (run / "process-0").mkdir()
    return run


def test_status_names_a_run_that_was_killed_before_its_first_measurement(command, tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    expected = f"comparison norm: nothing measured; {run.name} ended before its first measurement: killed"
    assert " ".join(command("status", "r")[1].split()) == expected
    code, out, _ = command("status", "r", "--json")
    unmeasured = {"operation": "norm", "run": run.name, "ended": "killed"}
    assert (code, json.loads(out)["comparisons_not_measured"]) == (0, [unmeasured])
    with FileLock(run / RUNNING).holding():  # it has not measured anything yet
        assert command("status", "r")[1] == ""


def test_the_page_names_a_run_that_was_killed_before_its_first_measurement(command, tmp_path: Path) -> None:
    run = begun(tmp_path / "r")
    write_run(begun(tmp_path / "r", "attention"), [], pd.DataFrame({"time_s": []}), "deadline")
    command("report", "r", "-o", "page.html")
    page = (tmp_path / "page.html").read_text()
    assert f"<li>comparison norm: nothing measured; {run.name} ended before its first measurement: killed</li>" in page
    assert "<li>comparison attention: nothing measured" in page


def test_status_names_a_run_that_ended_by_itself_before_its_first_measurement(command, tmp_path: Path) -> None:
    write_run(begun(tmp_path / "r"), [], pd.DataFrame({"time_s": []}), "deadline", ["n7"])
    assert "ended before its first measurement: deadline" in " ".join(command("status", "r")[1].split())


def test_a_run_without_measurements_is_no_news_after_the_next(command, tmp_path: Path) -> None:
    begun(tmp_path / "r")
    row = {"status": "ok", "operation": "norm", "case": "n7", "provider": "eager"}
    write_run(begun(tmp_path / "r"), [row], pd.DataFrame({"time_s": [1.0]}))
    assert command("status", "r")[1].splitlines() == ["comparison norm: 1 ok"]
