"""Comparisons that end early keep what they measured, and results are checked again after timing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from comparison_support import forked_processes  # noqa: F401 - a fixture

import scalebench
from scalebench.cli.commands.compare import _print
from scalebench.comparison import Comparison, Options, close_run, measure, plan_comparison
from scalebench.comparison.ceilings import measure_ceilings
from scalebench.comparison.failure import failure
from scalebench.comparison.runner import _Progress, _silent_s, run_processes
from scalebench.comparison.timing import CpuClock
from scalebench.store import read_json, write_json
from scalebench.store.comparisons import new_run, read_run

OPERATION = str(Path(__file__).with_name("cheating_operation.py"))
QUICK = {"processes": 1, "seconds": 0.03, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("forked_processes")


@pytest.mark.slow
def test_results_are_checked_again_after_timing_and_broken_captures_are_not_repeated(tmp_path: Path) -> None:
    names = "eager,cached,first3,stepping,waiting"
    result = scalebench.compare(OPERATION, results=tmp_path, providers=names, shapes="length=500", **QUICK)
    rows = {row["provider"]: row for row in result.rows}
    assert [rows[name]["status"] for name in rows] == ["ok"] * 5
    assert {name: row["accepted"] for name, row in rows.items()} == {
        "eager": True, "cached": False, "first3": False, "stepping": True, "waiting": True,
    }  # fmt: skip
    for name in ("cached", "first3"):
        assert rows[name]["error_note"].startswith("wrong after timing: ")
        assert rows[name]["verdict"] is None
    assert rows["waiting"]["timing_method"].endswith("operation not permitted when stream is capturing")
    assert "fresh inputs copied in before, from a pool of 16" in rows["eager"]["timing_method"]
    assert "the same inputs" in rows["stepping"]["timing_method"]
    noted = read_json(result.run / "process-0" / "uncaptured.json")["providers"]
    assert [(entry["case"], entry["provider"]) for entry in noted] == [(0, "waiting")]
    assert not (result.run / "process-0" / "crashed.json").exists()


@pytest.mark.slow
def test_a_provider_that_kills_its_process_while_it_is_sampled_is_blamed_alone(tmp_path: Path) -> None:
    result = scalebench.compare(OPERATION, results=tmp_path, providers="eager,dying", shapes="length=500", **QUICK)
    (eager, dying) = result.rows
    assert (eager["status"], eager["accepted"]) == ("ok", True)
    assert (dying["status"], dying["error_message"]) == ("killed", "SIGKILL during samples")


@pytest.mark.slow
def test_an_interrupted_comparison_keeps_the_cases_that_were_finished(tmp_path: Path) -> None:
    plan = plan_comparison(OPERATION, Options(providers=("eager", "stuck"), **QUICK | {"processes": 2}))

    def tick(share: float) -> None:
        if share >= 0.25:  # the first of two cases in the first of two processes
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    result = measure(plan, tmp_path, "a test", tick)
    assert signal.getsignal(signal.SIGTERM) is before
    assert (result.ended, result.not_measured, result.good) == ("interrupted", ("n10",), False)
    assert [(row["case"], row["provider"], row["processes"]) for row in result.rows] == [
        ("n3000", "eager", 1), ("n3000", "stuck", 1),
    ]  # fmt: skip
    rows, request = read_run(result.run)
    assert rows == result.rows
    assert len(request["cases"]) == 2
    stored = read_json(result.run / "rows.json")
    assert (stored["ended"], stored["not_measured"]) == ("interrupted", ["n10"])


def test_at_the_deadline_nothing_more_is_measured(tmp_path: Path) -> None:
    plan = plan_comparison(OPERATION, Options(providers=("eager",), minutes=1e-9, **QUICK))
    result = measure(plan, tmp_path, "a test")
    assert (result.ended, result.rows, result.not_measured) == ("deadline", [], ("n3000", "n10"))


@pytest.mark.slow
def test_a_run_that_was_killed_can_be_closed_later(tmp_path: Path) -> None:
    plan = plan_comparison(OPERATION, Options(providers=("eager",), shapes=("length=7",), **QUICK))
    run = new_run(tmp_path, plan.operation.name)
    write_json(run / "request.json", plan.request | {"started_at": "2026-01-01T00:00:00+00:00", "command": "a test"})
    assert run_processes(run, deadline=time.monotonic() + 300) == ""
    closed = close_run(run)
    assert (closed.ended, [row["case"] for row in closed.rows]) == ("", ["n7"])


def test_the_command_says_what_was_not_measured(command, tmp_path: Path) -> None:
    quick = ("--processes", "1", "--seconds", "0.03", "--device", "cpu", "--minutes", "1e-9")
    code, _, err = command("compare", OPERATION, "--providers", "eager", "--results", tmp_path, *quick)
    assert code == 1
    assert "deadline; not measured: n3000, n10" in err


@pytest.mark.slow
def test_a_step_that_hangs_is_left_out_after_the_patience(tmp_path: Path) -> None:
    result = scalebench.compare(OPERATION, results=tmp_path, providers="eager,stuck", patience=5, **QUICK)
    stuck = next(row for row in result.rows if (row["case"], row["provider"]) == ("n10", "stuck"))
    assert (stuck["status"], stuck["error_class"]) == ("killed", "Hung")
    assert {row["status"] for row in result.rows if row is not stuck} == {"ok"}


def test_ceilings_are_measured_on_random_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from scalebench.comparison import ceilings

    copied: list[torch.Tensor] = []

    class Clock(CpuClock):
        def timer(self, work, calls, refusal=""):
            copied.append(work()["result"])
            return super().timer(work, calls)

    monkeypatch.setattr(ceilings, "CPU_COPY_BYTES", 1 << 20)
    monkeypatch.setattr(ceilings, "CACHED_COPY_BYTES", (1 << 16,))
    monkeypatch.setattr(ceilings, "CPU_SIDES", (64,))
    result = measure_ceilings(Clock(), torch.device("cpu"), torch.float32, 0.01)
    assert [tensor.numel() for tensor in copied] == [64 * 64, 1, *[1 << 18] * 2, *[1 << 14] * 2]
    assert all(0.9 < float(tensor.std()) < 1.1 for tensor in copied[2:])
    assert result.cached_bytes_per_s >= result.copy_bytes_per_s
    assert result.flops_limit_per_s == result.matmul_flops_per_s
    assert 0 < result.floor_s < 1e-3
    assert result.copy_bytes_per_s > 1e6
    assert result.matmul_flops_per_s > 1e6


def test_the_command_starts_without_what_compiles_models() -> None:
    import subprocess
    import sys

    code = "import sys, scalebench.cli.commands.compare as _; print([name for name in sys.modules if name in %r])"
    slow = ("torch._inductor", "torch._dynamo", "scipy.stats", "pandas", "matplotlib")
    done = subprocess.run([sys.executable, "-c", code % (slow,)], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_provider_that_runs_out_of_memory_is_oom() -> None:
    error = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")
    assert [failure(each)["status"] for each in (error, MemoryError(), ValueError())] == ["oom", "oom", "failed"]


def test_an_interrupt_before_the_first_case_is_done_prints_no_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    comparison = Comparison(Path("r/run-1"), [], "interrupted", ("a case",))
    assert _print(comparison, as_json=False) == 3
    printed = capsys.readouterr()
    assert printed.out == "nothing was measured: r/run-1\n"
    assert printed.err == "ended early: interrupted; not measured: a case\n"


def test_a_clock_that_is_set_does_not_make_a_process_look_hung(tmp_path: Path, monkeypatch) -> None:
    path, seconds = tmp_path / "phase.json", iter([0.0, 1.0, 1.0, 3.0, 4.0, 4.0])
    monkeypatch.setattr("scalebench.comparison.runner.time.monotonic", lambda: next(seconds))
    path.write_text("{}")
    os.utime(path, (0, 1e9))  # a quarter of a century ago by this clock: it was set forward after the file was written
    progress = _Progress(path)
    assert _silent_s(progress) == 0.0
    assert _silent_s(progress) == 2.0
    os.utime(path, (0, 1e8))  # written again, after the clock was set back
    assert _silent_s(progress) == 0.0


@pytest.mark.slow
def test_an_operation_whose_results_raise_fails_with_its_reason(command, tmp_path: Path) -> None:
    text = Path(OPERATION).read_text(encoding="utf-8")
    broken = "def results(case, inputs, backward):\n    raise ValueError('no oracle')\n"
    (tmp_path / "broken.py").write_text(f"{text}\n\n{broken}")
    options = ("--providers", "eager,cached", "--processes", "1", "--seconds", "0.01", "--shapes", "length=500")
    code, out, _ = command("compare", tmp_path / "broken.py", *options, "--results", tmp_path, "--json")
    assert code == 1
    for row in json.loads(out)["rows"]:
        assert (row["status"], row["time_median_s"]) == ("failed", None)
        assert row["error_message"] == "the float64 oracle failed: ValueError: no oracle"
