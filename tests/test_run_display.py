"""What `run` and `plan` show: a line per running trial, the verdict, the page, the axes, and earlier results."""

from __future__ import annotations

import json
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from scalebench.cli import progress
from scalebench.cli.live_page import LivePage

STUDY = """
schema = 1
name = "tiny"
[model]
family = "mlp"
params = [1000, 4000]
[train]
steps = 20
seed = [0, 1]
[[exclude]]
model.params = 4000
train.seed = 1
"""


def beat(attempt: Path, **values: float) -> None:
    attempt.mkdir(parents=True, exist_ok=True)
    (attempt / "heartbeat.json").write_text(json.dumps({"steps": 100} | values))


@pytest.fixture
def sweep(monkeypatch) -> tuple[progress.SweepProgress, StringIO]:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(progress, "UPDATE_EVERY_S", 0.0)
    text = StringIO()
    display = progress.Progress(console=Console(file=text, width=200))
    labels = {name: progress.TrialLabel(f"gpt 10 k {name}", 1000, "tokens") for name in ("t1", "t2", "t3")}
    return progress.SweepProgress(dict.fromkeys(labels, (10.0, 100)), display, labels), text


def test_each_running_trial_has_a_line(sweep, tmp_path: Path) -> None:
    shown, text = sweep
    first, second = tmp_path / "t1" / "a", tmp_path / "t2" / "a"
    second.mkdir(parents=True)
    beat(first, step=10, loss=3.25, memory_bytes=3 * 2**20)
    shown.tick([first, second])
    time.sleep(0.05)
    beat(first, step=20, loss=3.125, memory_bytes=4 * 2**20)
    shown.tick([first])
    lines = text.getvalue().splitlines()
    assert lines[1] == "  gpt 10 k t1: step 10/100, loss 3.25, 3.00 MiB"
    assert lines[2] == "  gpt 10 k t2: starting"
    assert lines[4].startswith("  gpt 10 k t1: step 20/100, loss 3.125, ")
    rate = lines[4].split(", ")[2]
    assert rate.endswith(" k tokens/s")
    assert 50 < float(rate.split()[0]) <= 200  # 10 steps of 1,000 tokens in 0.05 s or a little more


def test_equal_reasons_are_printed_once_and_counted(sweep) -> None:
    shown, text = sweep
    for name in ("t1", "t2", "t3"):
        row = {"trial_id": name, "status": "failed", "error_message": "no room", "error_class": "E"}
        shown.finish(row, as_json=False)
    assert text.getvalue().splitlines() == ["t1 failed: no room"]
    assert shown.repeated() == ["3 trials failed: no room"]


def test_a_reason_of_several_lines_is_printed_in_one(sweep) -> None:
    shown, text = sweep
    row = {"trial_id": "t1", "status": "failed", "error_message": f"no room:\n  {'x' * 600}\n", "error_class": "E"}
    shown.finish(row, as_json=False)
    (line,) = text.getvalue().splitlines()
    assert line == f"t1 failed: no room: {'x' * 491}… (609 characters)"


def test_plan_names_the_axes_that_multiply_and_what_is_excluded(command, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(STUDY)
    _, out, _ = command("plan", "tiny.toml")
    assert "axes: model.params (2) × train.seed (2) = 4, 1 of them excluded" in out
    assert "measured so far" not in out


@pytest.mark.slow
@pytest.mark.usefixtures("forked_trials")
def test_a_run_ends_with_its_page_and_verdict_and_plan_compares(command, tmp_path: Path) -> None:
    (tmp_path / "tiny.toml").write_text(STUDY)
    code, out, _ = command("run", "tiny.toml", "--report", "--jobs", "2")
    assert code == 0
    assert "report: results/tiny/report.html" in out
    assert "<html" in (tmp_path / "results" / "tiny" / "report.html").read_text(encoding="utf-8")
    assert "Validation loss went from" in out
    assert "All 3 recorded trials ended ok." in out
    _, out, _ = command("plan", "tiny.toml")
    assert "measured so far, 3 trials of this plan: time ×" in out
    assert ", memory ×" in out


def test_the_page_is_written_at_most_a_twentieth_of_the_time(tmp_path: Path, monkeypatch) -> None:
    written = []
    page = LivePage(tmp_path)
    monkeypatch.setattr("scalebench.reporting.write", lambda *_, live: written.append(live))
    monkeypatch.setattr("scalebench.analysis.study.analyse_all", lambda *_: [])
    monkeypatch.setattr("scalebench.store.read_results", lambda *_: None)
    monkeypatch.setattr("scalebench.analysis.study.damaged_elsewhere", lambda _: ())
    page.refresh()
    assert not written  # nothing has finished
    for _ in range(5):
        page.finished()
        page.refresh()
    assert len(written) == 1
    page._next_s = 0.0  # later, while no other trial finishes
    page.refresh()
    page.refresh()
    assert len(written) == 2
    page.write()  # the end of the run
    assert written == [True, True, False]
