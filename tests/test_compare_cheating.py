"""Comparisons that cannot be fooled: cheating providers, each caught for its reason, beside honest ones.

The case 04-cheating-providers has providers of the same kinds as ``cheating_operation``.
"""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import scalekernels
import torch
from comparison_support import forked_processes  # noqa: F401 - a fixture

import scalebench
from scalebench.analysis.suite import summarize_suite
from scalebench.comparison import draining
from scalebench.comparison.checks import Originals
from scalebench.comparison.draining import joining, work_left_behind
from scalebench.comparison.operations import load_operation
from scalebench.comparison.pool import Pool, draw, draw_pool, live_names, set_count
from scalebench.comparison.rows import verdict_columns
from scalebench.comparison.timing import CpuClock, clock_overhead_ns
from scalebench.comparison.validity import invalid_columns, mode_columns

OPERATION = str(Path(__file__).with_name("cheating_operation.py"))
MIB = 1 << 20
pytestmark = pytest.mark.usefixtures("forked_processes")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    names = "eager,again,cached,first3,memoised,deferred,pooled"
    compared = scalebench.compare(
        OPERATION, results=tmp_path_factory.mktemp("results"), providers=names, shapes="length=300000", processes=2,
        seconds=0.15, device="cpu",
    )  # fmt: skip
    return {row["provider"]: row for row in compared.rows}


def test_inputs_that_a_provider_changes_are_restored_for_the_next_and_named() -> None:
    inputs = {"x": torch.tensor([1.0, torch.nan, 3.0]), "ids": torch.arange(3), "scale": 2.0}
    originals, version = Originals.of(inputs), inputs["x"]._version
    assert originals.restored() == {}
    assert inputs["x"]._version == version  # not written to: autograd's graphs of earlier providers stay valid
    inputs["x"].numpy()[2] = 4.0  # behind torch's back, as a kernel of one's own would
    assert originals.restored() == {"accepted": False, "error_note": "changes its inputs in place: x"}
    assert inputs["x"][2] == 3.0


@pytest.mark.slow
def test_honest_providers_keep_their_verdicts(rows: dict[str, dict[str, object]]) -> None:
    for name in ("eager", "again"):
        assert rows[name]["accepted"] is True
        assert rows[name]["invalid_reason"] is None
    assert rows["again"]["verdict"] in ("SAME", "INCONCLUSIVE")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cached", "first3", "memoised"])
def test_results_of_other_inputs_are_wrong_after_timing(rows: dict[str, dict[str, object]], name: str) -> None:
    assert rows[name]["accepted"] is False
    assert rows[name]["error_note"].startswith("wrong after timing")
    assert rows[name]["verdict"] is None


@pytest.mark.slow
def test_a_rate_above_the_copy_ceiling_is_invalid_on_a_cpu(rows: dict[str, dict[str, object]]) -> None:
    assert "faster than the device can be" in rows["cached"]["invalid_reason"]
    assert "B/s of" in rows["cached"]["invalid_reason"]


@pytest.mark.slow
def test_a_memo_and_a_thread_save_no_time(rows: dict[str, dict[str, object]]) -> None:
    assert rows["deferred"]["accepted"] is True
    for name in ("memoised", "deferred"):
        assert rows[name]["invalid_reason"] is None
        assert rows[name]["time_median_s"] > 0.7 * rows["eager"]["time_p20_s"]
        assert rows[name]["verdict"] != "FASTER"


@pytest.mark.slow
def test_a_pool_that_works_on_after_the_call_is_invalid(rows: dict[str, dict[str, object]]) -> None:
    assert "works on after the call returned" in rows["pooled"]["invalid_reason"]
    assert rows["pooled"]["verdict"] is None


@pytest.mark.slow
def test_two_modes_are_two_without_a_verdict(tmp_path: Path) -> None:
    options = {"shapes": "length=500", "processes": 2, "seconds": 0.3, "device": "cpu"}
    comparison = scalebench.compare(OPERATION, results=tmp_path, providers="eager,bimodal", **options)
    eager, row = comparison.rows
    assert 0.01 < row["fast_mode_s"] < 0.3 < row["slow_mode_s"]
    assert row["fast_mode_share"] == pytest.approx(0.5, abs=0.1)
    assert (row["verdict"], row["ratio"]) == (None, None)
    assert "bimodal has two modes" in row["verdict_reason"]
    times = pd.read_parquet(comparison.run / "samples.parquet").query("provider == 'bimodal'")["time_s"]
    assert row["time_low_s"] < times.median() < row["time_high_s"]  # of two processes: wider than their samples
    assert eager["accepted"] is True


# --- the pool --------------------------------------------------------------------------------------------------------


def test_a_pool_is_larger_than_the_caches_unless_memory_is_short() -> None:
    assert set_count(1000, 32 * MIB, 1 << 40) == 16
    assert set_count(MIB * 10, 32 * MIB, 1 << 40) == 7
    assert set_count(MIB * 100, 32 * MIB, 1 << 40) == 4
    assert set_count(MIB * 100, 32 * MIB, 1600 * MIB) == 2
    assert set_count(MIB * 100, 32 * MIB, 0) == 1


@pytest.mark.parametrize("name", scalekernels.OPERATIONS)
@pytest.mark.parametrize("backward", [False, True])
def test_every_call_of_a_repeatable_provider_reads_its_inputs(name: str, backward: bool) -> None:
    """The results for refreshed inputs are those of a provider that is prepared on them."""
    if name == "optimizer":
        return
    module = load_operation(name.replace("_", "-")).module
    case = module.CASES[1]
    inputs = module.inputs(case, seed=0)
    work = module.providers()["eager"].prepare(case, inputs, backward)
    before = {key: tensor.clone() for key, tensor in work().items()}
    pool = draw_pool(module, case, inputs, backward, 0)
    assert len(pool.sets) == 16
    pool.refresh()
    again, fresh = work(), module.providers()["eager"].prepare(case, inputs, backward)()
    assert not all(torch.equal(before[key], again[key]) for key in again)
    for key, tensor in again.items():
        torch.testing.assert_close(tensor, fresh[key], rtol=0, atol=0)


def test_sets_differ_from_each_other_and_from_those_drawn_after_timing() -> None:
    module = load_operation(OPERATION).module
    inputs = module.inputs(module.Case(10))
    pool = draw_pool(module, module.Case(10), inputs, False, 0)
    after = draw(module, module.Case(10), pool.live, 0, "after timing")
    first = {float(values["x"][0]) for values in [inputs, *pool.sets, after]}
    assert len(first) == 2 + 16
    assert draw(module, module.Case(10), pool.live, 1, "after timing")["x"][0] != after["x"][0]
    for values in [*pool.sets, pool.sets[0]]:
        pool.refresh()
        assert torch.equal(inputs["x"], values["x"])


def test_backward_reads_gradients_unless_the_operation_names_others() -> None:
    inputs = {"x": torch.ones(1), "grad_y": torch.ones(1), "count": 3}
    assert live_names(SimpleNamespace(), None, True, inputs) == ["grad_y"]
    assert live_names(SimpleNamespace(), None, False, inputs) == ["x", "grad_y"]
    assert live_names(SimpleNamespace(live=lambda case, backward: ["x"]), None, True, inputs) == ["x"]
    with pytest.raises(ValueError, match="live\\(\\) names z"):
        live_names(SimpleNamespace(live=lambda case, backward: ["z"]), None, True, inputs)


def test_inputs_that_ignore_the_seed_or_change_shape_are_refused() -> None:
    live = {"x": torch.ones(3)}
    with pytest.raises(ValueError, match="same values"):
        draw(SimpleNamespace(inputs=lambda case, device, seed: {"x": torch.ones(3)}), None, live, 0, "a")
    with pytest.raises(ValueError, match="other shapes of x"):
        draw(SimpleNamespace(inputs=lambda case, device, seed: {"x": torch.ones(4)}), None, live, 0, "a")


# --- the clock -------------------------------------------------------------------------------------------------------


def test_inputs_are_refreshed_before_each_call_and_outside_the_clock() -> None:
    x, values = torch.zeros(1), []

    class Slow(Pool):
        def refresh(self) -> None:
            super().refresh()
            time.sleep(2e-3)

    pool = Slow({"x": x}, [{"x": torch.full((1,), value)} for value in (1.0, 2.0)])
    timer = CpuClock().timer(lambda: values.append(float(x)) or {}, 5, pool=pool)
    assert timer.take() < 1e-3
    assert values == [1.0, 2.0, 1.0, 2.0, 1.0]
    assert "each of 5 calls" in timer.method
    assert "pool of 2" in timer.method


def test_the_overhead_of_the_clock_is_subtracted() -> None:
    timer = CpuClock().timer(dict, 100)
    assert 0 < clock_overhead_ns() < 100_000
    assert 0 < min(timer.take() for _ in range(1000)) < 0.5e-9 * clock_overhead_ns()


def test_threads_started_by_a_call_are_waited_for_inside_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "JOIN_S", 0.1)

    def work() -> dict[str, object]:
        threading.Thread(target=time.sleep, args=(0.03,)).start()
        return {}

    assert CpuClock().timer(work, 1).take() >= 0.03
    staying = threading.Event()
    begun = time.monotonic()
    joining(lambda: threading.Thread(target=staying.wait, daemon=True).start() or {})()
    assert 0.1 <= time.monotonic() - begun < 5
    staying.set()


@pytest.mark.slow
def test_work_left_to_other_threads_is_its_processor_time_after_the_call() -> None:
    x = torch.randn(2_000_000)

    def compute() -> dict[str, object]:
        return {"y": x.exp().sin()}

    begun = time.thread_time()
    compute()
    spent = time.thread_time() - begun
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        # Pauses of 100 ms: on busy cores the thread may begin late.
        left = work_left_behind(lambda: {"y": pool.submit(compute)}, 0.05)
        assert 0.2 * spent < left < 20 * spent
        assert work_left_behind(lambda: pool.submit(compute).result(), spent) is None
    assert work_left_behind(compute, spent) is None


class SimulatedProcess:
    """A clock and processor time: earlier work takes half a core until `ends_s`, each call leaves `left_s` behind."""

    def __init__(self, ends_s: float, left_s: float) -> None:
        self.now_s, self.spent_s, self.ends_s, self.left_s, self.pending_s = 0.0, 0.0, ends_s, left_s, 0.0

    def monotonic(self) -> float:
        return self.now_s

    def process_time(self) -> float:
        return self.spent_s

    def sleep(self, duration_s: float) -> None:
        self.spent_s += max(0.0, min(duration_s, self.ends_s - self.now_s)) / 2 + self.pending_s
        self.now_s, self.pending_s = self.now_s + duration_s, 0.0

    def call(self) -> dict[str, object]:
        self.pending_s = self.left_s
        return {}


def test_earlier_work_is_waited_for_before_what_a_call_leaves_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimulatedProcess(ends_s=10.0, left_s=5e-3)
    monkeypatch.setattr(draining, "time", process)
    assert work_left_behind(process.call, 0.05) == pytest.approx(5e-3)
    assert 10 <= process.now_s < 12


@pytest.mark.parametrize(("idle_calls", "left_s"), [(0, 5e-3), (1, 5e-3), (2, None)])
def test_one_call_whose_threads_get_no_time_clears_nobody(
    monkeypatch: pytest.MonkeyPatch, idle_calls: int, left_s: float | None
) -> None:
    process, calls = SimulatedProcess(ends_s=0.0, left_s=5e-3), iter(range(100))

    def call() -> dict[str, object]:
        return process.call() if next(calls) >= idle_calls else {}

    monkeypatch.setattr(draining, "time", process)
    assert work_left_behind(call, 0.05) == (left_s and pytest.approx(left_s))


def test_the_calls_share_one_budget_for_earlier_work(monkeypatch: pytest.MonkeyPatch) -> None:
    process = SimulatedProcess(ends_s=1e9, left_s=20e-3)
    monkeypatch.setattr(draining, "time", process)
    assert work_left_behind(process.call, 0.05) == pytest.approx(20e-3)  # beside what the earlier work takes
    assert draining.SETTLE_S <= process.now_s < draining.SETTLE_S + 2


# --- rows ------------------------------------------------------------------------------------------------------------

GPU_LIMITS = {
    "flops_per_s": 1e15, "bytes_per_s": 3e12, "cache_bytes": 50 * MIB, "cached_bytes_per_s": None,
    "cached_bytes": None,
}  # fmt: skip
CPU_LIMITS = {
    "flops_per_s": 1e11, "bytes_per_s": 1e10, "cache_bytes": None, "cached_bytes_per_s": 1e11,
    "cached_bytes": 64 * MIB,
}  # fmt: skip


def test_a_rate_above_a_ceiling_is_invalid_where_the_cache_is_cold() -> None:
    row = {"time_median_s": 1e-3, "flops": 10**12, "bytes_moved": 3 * 10**9, "verdict": "FASTER"}
    assert invalid_columns(row, GPU_LIMITS, "cuda") == {}
    faster = invalid_columns(row | {"time_median_s": 0.94e-3}, GPU_LIMITS, "cuda")
    assert "1.06e+15 FLOP/s of 1e+15" in faster["invalid_reason"]
    assert "B/s" not in faster["invalid_reason"].replace("FLOP/s", "")
    assert faster["verdict"] is None
    memory = invalid_columns(row | {"flops": 0, "time_median_s": 0.9e-3}, GPU_LIMITS | {"cache_bytes": MIB}, "cuda")
    assert "B/s of 3e+12" in memory["invalid_reason"]
    assert invalid_columns({"status": "oom"}, GPU_LIMITS, "cuda") == {}


def test_on_a_cpu_what_fits_into_the_caches_has_the_ceiling_of_the_caches_and_twice_the_slack() -> None:
    small, large = {"flops": 0, "bytes_moved": 60 * MIB}, {"flops": 0, "bytes_moved": 68 * MIB}
    assert invalid_columns(small | {"time_median_s": 60 * MIB / 1.9e11}, CPU_LIMITS, "cpu") == {}
    assert (
        "of 1e+11" in invalid_columns(small | {"time_median_s": 60 * MIB / 2.1e11}, CPU_LIMITS, "cpu")["invalid_reason"]
    )
    assert invalid_columns(large | {"time_median_s": 68 * MIB / 1.9e10}, CPU_LIMITS, "cpu") == {}
    assert (
        "of 1e+10" in invalid_columns(large | {"time_median_s": 68 * MIB / 2.1e10}, CPU_LIMITS, "cpu")["invalid_reason"]
    )
    slow = large | {"time_median_s": 1.0, "invalid_reason": "works on"}
    assert invalid_columns(slow, CPU_LIMITS, "cpu")["verdict_reason"] == "works on"


def test_two_modes_in_most_processes_of_either_side_take_the_verdict() -> None:
    steady, bimodal = [1.0, 1.001, 0.999] * 10, [1.0, 1.01, 3.0, 3.01] * 8
    assert mode_columns([bimodal, bimodal, steady])["fast_mode_share"] == pytest.approx(0.5)
    assert mode_columns([bimodal, steady]) == dict.fromkeys(("fast_mode_s", "slow_mode_s", "fast_mode_share"))

    def judged(ours: list[list[float]], base: list[list[float]]) -> dict[str, object]:
        runs, against = ([{"status": "ok", "samples_s": samples} for samples in side] for side in (ours, base))
        return verdict_columns("new", "ok", runs, "old", against, 0.02)

    assert judged([steady, steady], [steady, steady])["verdict"] == "SAME"
    assert "old has two modes" in judged([steady, steady], [bimodal, bimodal])["verdict_reason"]
    assert "new has two modes" in judged([bimodal, bimodal], [steady, steady])["verdict_reason"]
    assert "verdict" not in judged([bimodal, bimodal], [steady, steady])
    assert judged([bimodal, steady], [steady, steady])["verdict"] is not None


def test_the_summary_has_the_geometric_mean_and_the_share_of_cases_at_least_as_fast() -> None:
    def row(provider: str, ratio: float | None, **others: object) -> dict[str, object]:
        fixed = {"operation": "norm", "backward": False, "baseline": "eager", "status": "ok", "accepted": True}
        return fixed | {"invalid_reason": None, "provider": provider, "ratio": ratio} | others

    rows = [
        *(row("eager", None) for _ in range(5)),
        row("new", 0.5), row("new", 2.0), row("new", 0.25), row("new", 0.1, accepted=False),
        row("new", 0.1, invalid_reason="too fast"),
        row("lost", None, status="failed"),
    ]  # fmt: skip
    new, lost = summarize_suite(rows)
    assert (new.provider, new.cases, new.compared) == ("new", 5, 3)
    assert new.speedup == pytest.approx(4 ** (1 / 3))
    assert new.fast_1 == pytest.approx(2 / 5)
    assert (lost.speedup, lost.fast_1, lost.compared) == (None, 0.0, 0)
