"""Comparisons end to end on the CPU, with a small operation of their own and real processes."""

from __future__ import annotations

import html
import json
import random
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from comparison_support import forked_processes, real_processes, start_forked  # noqa: F401 - fixtures

import scalebench
from scalebench.comparison import Comparison, runner
from scalebench.comparison.draining import Work
from scalebench.comparison.memory import peak_above_inputs
from scalebench.comparison.operations import (
    decode,
    load_operation,
)
from scalebench.comparison.timing import CpuClock, Timer, sample_interleaved
from scalebench.measure.statistics import StoppingRule, ratio_of_medians, verdict
from scalebench.reporting import render
from scalebench.store import read_json, read_results
from scalebench.store.comparison_columns import ROW_COLUMNS
from scalebench.store.comparisons import latest, read_comparisons

OPERATION = str(Path(__file__).with_name("comparison_operation.py"))
QUICK = {"processes": 2, "seconds": 0.05, "device": "cpu"}
pytestmark = pytest.mark.usefixtures("forked_processes")


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    """Every provider but those that end their process, in two processes."""
    results = tmp_path_factory.mktemp("results")
    names = ("eager", "again", "slow", "wrong", "renamed", "absent", "crashing")
    return scalebench.compare(OPERATION, results=results, providers=names, **QUICK)


def timers(works: dict[str, Work]) -> dict[str, Timer]:
    return {name: CpuClock().timer(work, 1) for name, work in works.items()}


def row(result: Comparison, provider: str, case_index: int = 0) -> dict[str, object]:
    (row,) = (r for r in result.rows if r["provider"] == provider and r["case_index"] == case_index)
    return row


# --- what is measured ------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_there_is_a_row_for_every_provider_and_case_with_every_column(compared: Comparison) -> None:
    assert len(compared.rows) == 7 * 2
    for row in compared.rows:
        assert {name for name in row if not name.startswith("shape_")} == {*ROW_COLUMNS}  # all declared, with a unit
        assert (row["shape_rows"], row["dtype"]) in ((7, "float32"), (65, "bfloat16"))


@pytest.mark.slow
def test_the_summary_is_that_of_the_samples_kept_beside(compared: Comparison) -> None:
    samples = pd.read_parquet(compared.run / "samples.parquet")
    for provider in ("eager", "slow"):
        measured = row(compared, provider)
        own = samples[(samples["provider"] == provider) & (samples["case"] == measured["case"])]
        medians = own.groupby("process")["time_s"].median()
        assert measured["samples"] == len(own)
        assert measured["processes"] == len(medians) == 2
        assert measured["time_median_s"] == pytest.approx(np.exp(np.log(medians).mean()))
        assert measured["time_p20_s"] == pytest.approx(own["time_s"].quantile(0.2))
        assert measured["achieved_bytes_per_s"] == pytest.approx((7 * 33 + 7) * 4 / measured["time_median_s"])
        assert measured["achieved_flops_per_s"] == pytest.approx(2 * 7 * 33 / measured["time_median_s"])


@pytest.mark.slow
def test_a_provider_that_sleeps_is_slower_and_takes_one_call_a_sample(compared: Comparison) -> None:
    slow, eager = row(compared, "slow"), row(compared, "eager")
    samples = pd.read_parquet(compared.run / "samples.parquet").query("case == @slow['case']")
    ours, base = (
        [part["time_s"] for _, part in samples[samples["provider"] == name].groupby("process")]
        for name in ("slow", "eager")
    )
    judged = verdict(ratio_of_medians(ours, base), 0.02)
    assert (slow["verdict"], slow["verdict_reason"]) == (judged.word, judged.reason)
    assert slow["ratio"] == pytest.approx(slow["time_median_s"] / eager["time_median_s"])
    assert slow["ratio"] > 2
    assert slow["time_median_s"] >= 2e-3
    assert slow["calls_per_sample"] == 1
    assert eager["calls_per_sample"] * eager["time_median_s"] > 3e-5
    assert eager["verdict"] is None
    assert {part.split(" ×")[0] for part in slow["stop_reasons"].split(", ")} <= {
        "target noise", "stable noise", "timeout"
    }  # fmt: skip


@pytest.mark.slow
def test_the_same_provider_twice_is_not_called_faster_or_slower(compared: Comparison) -> None:
    for index in (0, 1):
        assert row(compared, "again", index)["verdict"] in ("SAME", "INCONCLUSIVE")
        assert row(compared, "again", index)["error_ratio"] in (1.0, None)


@pytest.mark.slow
def test_a_wrong_result_is_told_with_its_error_and_gets_no_verdict(compared: Comparison) -> None:
    wrong = row(compared, "wrong")
    assert wrong["status"] == "ok"
    assert wrong["accepted"] is False
    x = load_operation(OPERATION).module.inputs(decode_case(compared, 0))["x"].double()
    assert wrong["max_abs_error"] == pytest.approx(0.1 * float((x * x).sum(-1).max()), rel=1e-5)
    assert wrong["error_ratio"] > 1000
    assert wrong["verdict"] is None
    assert "wrong" in wrong["verdict_reason"]
    assert "returned sum; expected total" in row(compared, "renamed")["error_note"]
    assert row(compared, "eager")["accepted"] is True
    assert not compared.good


def decode_case(result: Comparison, index: int) -> object:
    return decode(load_operation(OPERATION), read_json(result.run / "request.json")["cases"][index])


@pytest.mark.slow
def test_what_cannot_run_is_a_row_with_its_reason(compared: Comparison) -> None:
    absent, crashing = row(compared, "absent"), row(compared, "crashing")
    assert (absent["status"], absent["error_message"]) == ("unavailable", "needs a device that is not here")
    assert (crashing["status"], crashing["error_class"]) == ("failed", "ArithmeticError")
    assert absent["time_median_s"] is crashing["time_median_s"] is None
    assert "unavailable" in absent["verdict_reason"]


@pytest.mark.slow
def test_ceilings_and_environment_stand_in_every_row(compared: Comparison) -> None:
    for row in compared.rows:
        assert row["copy_ceiling_bytes_per_s"] > 1e8
        assert row["matmul_ceiling_flops_per_s"] > 1e8
        assert row["machine_id"]
        assert row["torch_version"] == torch.__version__


@pytest.mark.slow
def test_sampling_goes_on_to_six_samples_unless_that_takes_five_times_as_long() -> None:
    rule = StoppingRule(timeout_s=1e-3)
    works = {"fast": dict, "slow": lambda: time.sleep(1e-3) or {}}
    sampled = sample_interleaved(timers(works), rule, random.Random(0))
    (count,) = {len(samples.times_s) for samples in sampled.values()}
    assert 1 <= count <= 6  # six, unless the machine is so busy that five times the limit pass before
    slower = {"slow": lambda: time.sleep(20e-3) or {}}
    (samples,) = sample_interleaved(timers(slower), rule, random.Random(0)).values()
    assert (len(samples.times_s), samples.stop_reason) == (1, "timeout")


@pytest.mark.slow
def test_a_provider_that_raises_while_timed_leaves_the_others_alone() -> None:
    calls = iter(range(3))
    works = {"steady": dict, "failing": lambda: {"x": next(calls)}}
    sampled = sample_interleaved(timers(works), StoppingRule(), random.Random(0))
    assert isinstance(sampled["failing"].error, StopIteration)
    assert len(sampled["failing"].times_s) == 3
    assert len(sampled["steady"].times_s) >= 10


def test_peak_memory_is_what_the_allocator_gave_out() -> None:
    x = torch.randn(100, 1000)

    def prepare():
        held = x + 1  # stays allocated as long as the function lives: 400 kB
        return lambda: {"y": (held * x).sum(-1)}  # 400 kB of products and 400 bytes of sums

    peak, method = peak_above_inputs(prepare, torch.device("cpu"))
    assert peak == pytest.approx(2 * 400_000 + 400, abs=200)
    assert "allocator" in method


@pytest.mark.slow
def test_eager_memory_is_the_product_and_the_sums(compared: Comparison) -> None:
    assert row(compared, "eager")["peak_memory_bytes"] == pytest.approx(7 * 33 * 4 + 7 * 4, abs=64)


@pytest.mark.slow
def test_gradients_are_compared_against_their_reference(tmp_path: Path) -> None:
    options = {"processes": 1, "seconds": 0.02, "device": "cpu", "shapes": "rows=3,columns=5", "backward": True}
    result = scalebench.compare(OPERATION, results=tmp_path, providers="eager,wrong", **options)
    assert row(result, "eager")["accepted"] is True
    assert "returned total; expected x" in row(result, "wrong")["error_note"]
    assert row(result, "eager")["backward"] is True
    assert row(result, "wrong")["verdict"] is None


@pytest.mark.slow
def test_a_provider_that_kills_its_process_is_a_row_and_the_others_go_on(tmp_path: Path) -> None:
    options = QUICK | {"processes": 1, "shapes": "rows=2,columns=2"}
    result = scalebench.compare(OPERATION, results=tmp_path, providers=("dying", "eager"), **options)
    assert row(result, "dying")["status"] == "killed"
    assert row(result, "dying")["error_message"] == "SIGKILL during prepare"
    assert row(result, "eager")["status"] == "ok"
    assert not result.good


@pytest.mark.slow
def test_running_again_adds_a_run_and_the_newest_counts(compared: Comparison) -> None:
    results = compared.run.parent.parent.parent
    before = {path: path.read_bytes() for path in compared.run.rglob("*") if path.is_file()}
    again = scalebench.compare(
        OPERATION, results=results, providers="eager", shapes="rows=7,columns=33", **QUICK | {"processes": 1}
    )
    assert again.run != compared.run
    assert {path: path.read_bytes() for path in before} == before
    both = read_comparisons(results)
    assert len(both.frame) == 15
    newest = latest(both.frame)
    assert set(newest.loc[newest["case_index"] == 0, "run"]) == {again.run.name}
    assert set(newest.loc[newest["case_index"] == 1, "run"]) == {compared.run.name}


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("real_processes")
def test_the_command_prints_the_table_and_its_exit_code_tells_of_wrong_results(
    command, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick = ("--processes", "1", "--seconds", "0.02", "--shapes", "rows=5,columns=7", "--device", "cpu")
    code, out, _ = command("compare", OPERATION, "--providers", "eager,absent", *quick)
    assert code == 0
    assert "baseline" in out
    assert "absent unavailable in 1 case: needs a device that is not here" in out
    monkeypatch.setattr(runner.processes, "start", start_forked)  # one real process is enough
    code, out, _ = command("compare", OPERATION, "--providers", "eager,wrong", *quick, "--json")
    assert code == 1
    rows = json.loads(out)["rows"]
    assert [row["accepted"] for row in rows] == [True, False]
    code, _, err = command("compare", OPERATION, "--providers", "wrogn")
    assert code == 2
    assert "did you mean 'wrong'?" in err
    assert command("compare")[0] == 2


@pytest.mark.slow
def test_status_and_export_take_a_folder_of_comparisons(compared: Comparison, command, tmp_path: Path) -> None:
    results = compared.run.parent.parent.parent
    code, out, _ = command("status", results)
    assert code == 1  # a provider crashed and one is wrong
    assert "comparison comparison-operation:" in out
    assert "ArithmeticError" in out or "boom" in out
    assert command("export", results, "-o", tmp_path / "rows.csv")[0] == 0
    assert len(pd.read_csv(tmp_path / "rows.csv")) == len(read_comparisons(results).frame)
    assert json.loads(command("status", results, "--json")[1])["comparisons"]["comparison-operation"]["ok"]


# --- the report ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page(compared: Comparison) -> str:
    results = compared.run.parent.parent.parent
    return render(read_results(results), read_comparisons(results))


@pytest.mark.slow
def test_the_page_shows_verdicts_errors_reasons_and_figures(page: str) -> None:
    text = html.unescape(page)
    for words in ("comparison-operation: providers compared", "SLOWER", "needs a device that is not here", "Roofline",
                  "returned sum; expected total", "timeout ×", "by median time"):  # fmt: skip
        assert words in text
    assert page.count("<svg ") == 3


@pytest.mark.slow
def test_the_page_escapes_and_loads_nothing(page: str) -> None:
    assert "<b>boom</b>" not in page
    assert "&lt;b&gt;boom&lt;/b&gt;" in page
    assert "<i>eager</i>" not in page
    assert "http://" not in page.replace("http://www.w3.org/", "")
    assert "https://" not in page


@pytest.mark.slow
def test_the_same_rows_give_the_same_bytes(compared: Comparison, page: str) -> None:
    results = compared.run.parent.parent.parent
    assert render(read_results(results), read_comparisons(results)) == page


@pytest.mark.slow
def test_a_damaged_run_is_told_and_left_out(compared: Comparison, tmp_path: Path) -> None:
    run = tmp_path / "compare-x" / "runs" / "run-1"
    run.mkdir(parents=True)
    (run / "rows.json").write_bytes((compared.run / "rows.json").read_bytes()[:-20])
    result = read_comparisons(tmp_path)
    assert result.frame.empty
    assert "rows.json" in result.damaged[0]
    text = render(read_results(tmp_path), result)
    assert "Damaged files" in text
