"""The table of measured tiles: what is adopted from a session, what the launches read, and that the file is sound."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

import compiled_table
import pytest
import torch
import tuning
import tuning_workers
from scalekernels.attention import hopper, hopper_compilations, hopper_gradients, tuned
from scalekernels.attention.hopper import GluonTile
from scalekernels.attention.hopper_gradients import BackwardTile, Method
from session_pool import Job

METHOD_KERNELS = {kernel: deterministic for deterministic, kernel in hopper_gradients.METHOD_ROWS.items()}
VERSIONS = {"date": "2030-01-02", "device": "D", "torch": "2", "triton": "3", "ptxas": "13", "python": "3"}
CASE = {"operation": "forward", "head_dimension": 64, "causal": True, "bucket": "long", "length": 8192}


def row(time_s: float, stages: int, *, shipped: bool = False, **changes: Any) -> dict[str, Any]:
    tile = {"block_n": 128, "stages": stages}
    return {**CASE, "tile": tile, "time_median_s": time_s, "tflops": 1 / time_s, "shipped": shipped, "problem": None,
            **changes}  # fmt: skip


def adopted(*rows: dict[str, Any], table: dict[str, Any] | None = None) -> dict[str, Any]:
    return tuning.adopted(table or {"rows": []}, {"versions": VERSIONS, "winners": list(rows)})


def test_the_fastest_right_row_is_adopted_with_what_it_was_measured_by():
    wrong = row(0.1, 9, problem="result 0 differs")
    failed = {**CASE, "tile": {}, "problem": "out of resources", "shipped": False}
    new_table = adopted(row(1.0, 2, shipped=True), wrong, failed, row(0.9, 3), row(0.95, 4))
    assert new_table["sessions"] == {"2030-01-02": {"device": "D", "torch": "2", "triton": "3", "ptxas": "13"}}
    (only,) = new_table["rows"]
    assert only == {
        "kernel": "forward", "head_dimension": 64, "causal": True, "bucket": "long", "length": 8192,
        "tile": {"block_n": 128, "stages": 3}, "time_median_s": 0.9, "tflops": 1 / 0.9, "session": "2030-01-02",
    }  # fmt: skip


@pytest.mark.parametrize(("time_s", "stages"), [(0.995, 2), (0.985, 3)])
def test_the_shipped_tile_stays_where_no_other_is_clearly_faster(time_s, stages):
    assert adopted(row(1.0, 2, shipped=True), row(time_s, 3))["rows"][0]["tile"]["stages"] == stages


def test_rows_that_were_not_measured_stay_and_sessions_without_rows_go():
    table = {
        "sessions": {"old": {"device": "A"}, "older": {"device": "B"}},
        "rows": [
            {"kernel": "forward", "head_dimension": 64, "causal": True, "bucket": "long", "session": "older"},
            {"kernel": "keys", "head_dimension": 64, "causal": True, "bucket": "long", "session": "old"},
        ],
    }
    new_table = adopted(row(1.0, 2), table=table)
    assert set(new_table["sessions"]) == {"old", "2030-01-02"}
    assert [entry["kernel"] for entry in new_table["rows"]] == ["forward", "keys"]
    assert new_table["rows"][1] == table["rows"][1]


def test_the_file_is_written_as_it_is_read(tmp_path, monkeypatch):
    path, session = tmp_path / "tuned.json", tmp_path / "tune.json"
    path.write_text('{"rows": []}')
    session.write_text(json.dumps({"versions": VERSIONS, "winners": [row(1.0, 5)]}))
    monkeypatch.setattr(tuned, "FILE", path)
    tuned._table.cache_clear()
    try:
        assert tuning.main(["--adopt", str(session)]) == 0
        assert tuned.row("forward", 64, True, "long") == {"block_n": 128, "stages": 5}
        assert tuned.row("forward", 64, True, "short") is None
        assert tuning.main(["--adopt", str(session)]) == 0
        assert len(json.loads(path.read_text())["rows"]) == 1
    finally:
        tuned._table.cache_clear()


def test_buckets():
    assert [tuned.bucket(*lengths) for lengths in ((2048, 1), (1, 2049), (8192, 8192))] == ["short", "long", "long"]


def test_every_row_of_the_file_is_a_tile_that_is_shipped():
    table = json.loads(tuned.FILE.read_text(encoding="utf-8"))
    places = [tuning._place(row) for row in table["rows"]]
    assert places == sorted(set(places))
    for row in table["rows"]:
        assert row["session"] in table["sessions"]
        case = (row["head_dimension"], row["causal"], row["bucket"])
        assert tuned.bucket(row["length"], row["length"]) == row["bucket"]
        if row["kernel"] == "forward":
            assert hopper.FORWARD[case] == GluonTile(**row["tile"])
        elif row["kernel"] in METHOD_KERNELS:
            assert hopper_gradients.method_of(*case, METHOD_KERNELS[row["kernel"]]) == Method(**row["tile"])
        else:
            default = hopper_gradients.SHIPPED[row["kernel"]][row["head_dimension"]]
            assert hopper_gradients.tile_of(row["kernel"], *case) == default._replace(**row["tile"])


@pytest.mark.parametrize("dimension", [64, 128])
def test_dq_is_late_unless_a_measurement_that_had_both_decides_otherwise(monkeypatch, dimension):
    """Then the measured time excuses that half of the exponentials run beside no product."""
    case = (dimension, True, "long")
    assert "late" not in tuned.row("queries", *case)
    default = hopper_gradients.tile_of("queries", *case)
    assert default.late
    assert default._replace(late=False) in hopper_gradients.candidates("queries", *case)
    early = BackwardTile(64, 4)

    def excuse(tile):
        return hopper_compilations.compilation("queries", tile, "bf16", *case[:2]).overlap_excused

    assert excuse(default) == excuse(early) == ""
    session = {"device": "D", "triton": "3"}
    measured = {"tile": early._asdict(), "time_median_s": 0.0012, "length": 8192, "session": "2030-01-02", **session}
    monkeypatch.setattr(tuned, "_table", lambda: {("queries", *case): measured})
    assert hopper_gradients.tile_of("queries", *case) == early
    assert excuse(early) == "the fastest, 1.200 ms at length 8192 on D, 2030-01-02"
    assert excuse(default) == excuse(early._replace(stages=3)) == ""
    assert compiled_table.verdict({
        "failures": [], "spill_store_bytes": 0, "spill_load_bytes": 0, "stack_bytes": 0, "overlap": 0.5,
        "overlap_excused": "fastest",
    }) == "ok (50% of the exponentials beside a product: fastest)"  # fmt: skip


def test_rows_tell_what_they_measured():
    tunables = {tunable.name: tunable for tunable in tuning.tunables()}
    assert tunables["keys D64 T1024 causal"].case == {
        "operation": "keys", "head_dimension": 64, "causal": True, "bucket": "short", "length": 1024,
    }  # fmt: skip
    jobs = [(job["tunable"].split()[0], job["candidate"]) for job in tuning.candidate_jobs()]
    assert len(jobs) > len(set(jobs)) > 10  # the same tile at several head dimensions, no machine code twice


@pytest.mark.parametrize(("deterministic", "default"), [(True, hopper_gradients.APART), (False, None)])
def test_methods_come_from_their_own_rows(monkeypatch, deterministic, default):
    """A method that adds in any order is never used where gradients have to be deterministic."""
    with monkeypatch.context() as unmeasured:
        unmeasured.setattr(tuned, "row", lambda *_: None)
        assert hopper_gradients.method_of(64, True, "long", deterministic) == default
    names = {method.name for method in hopper_gradients.methods(64, True, "long", deterministic)}
    assert names == {"apart", "ordered" if deterministic else "unordered"}
    measured = hopper_gradients.Method("ordered", 64, 3)
    own = hopper_gradients.METHOD_ROWS[deterministic]
    monkeypatch.setattr(tuned, "row", lambda kernel, *_: measured._asdict() if kernel == own else None)
    assert hopper_gradients.method_of(64, True, "long", deterministic) == measured
    assert hopper_gradients.method_of(64, True, "long", not deterministic) != measured
    assert hopper_gradients.methods(64, True, "long", deterministic)[0] == measured


@pytest.mark.parametrize("deterministic", [True, False])
def test_head_dimension_256_keeps_the_plain_kernels_until_others_are_measured(monkeypatch, deterministic):
    case = (256, True, "long", deterministic)
    tuned_256 = [each.name for each in tuning.tunables() if each.head_dimension == 256]
    assert len(tuned_256) == 4
    assert all("T8192" in name for name in tuned_256)
    assert hopper_gradients.methods(*case) == (hopper_gradients.PLAIN, hopper_gradients.APART)
    assert hopper_gradients.method_of(*case) is None
    for method, used in ((hopper_gradients.PLAIN, None), (hopper_gradients.APART, hopper_gradients.APART)):
        monkeypatch.setattr(tuned, "row", lambda *_, method=method: method._asdict())
        assert hopper_gradients.method_of(*case) == used
        assert hopper_gradients.methods(*case)[0] == method


def test_a_method_that_is_not_the_same_from_run_to_run_has_a_fault():
    results = iter([torch.ones(2), torch.ones(2) + 1e-6] * 2)
    (tunable,) = [candidate for candidate in tuning.tunables() if candidate.name == "method D64 T1024 causal"]
    expected = [torch.ones(2)]
    assert "run to run" in str(tuning.fault(tunable, lambda _: [next(results)], "a method", expected))
    other = next(candidate for candidate in tuning.tunables() if candidate.name == "method-any-order D64 T1024 causal")
    assert tuning.fault(other, lambda _: [next(results)], "a method", expected) is None
    assert tuning.fault(tunable, lambda _: expected, "a method", expected) is None


def test_quick_tuning_has_methods_with_the_shipped_one_first():
    names = {tunable.name: tunable.candidates for tunable in tuning.quick(tuning.tunables())}
    assert names["method D128 T8192 causal"][0] == hopper_gradients.method_of(128, True, "long", True)
    assert hopper_gradients.APART in names["method D128 T8192 causal"]
    assert len(names["method D128 T8192 causal"]) > 1
    assert "method-any-order D64 T1024 full" in names
    assert not any(name.startswith(("keys", "queries")) for name in names)


class FakeTimer:
    def take(self) -> float:
        return 1e-3


class FakeClock:
    def timer(self, work: Any, calls: int) -> FakeTimer:
        assert calls == 1
        work()
        return FakeTimer()


@pytest.mark.parametrize("crashed", [None, 0, 1])
def test_a_candidate_whose_worker_crashed_is_not_launched_again(crashed):
    (tunable,) = [each for each in tuning.tunables() if each.name == "method D64 T1024 causal"]
    launched = []
    tunable = dataclasses.replace(tunable, make=lambda: lambda candidate: launched.append(candidate) or [torch.ones(2)])
    failed = {} if crashed is None else {tuning.code_of(tunable, tunable.candidates[crashed]): "crashed: SIGSEGV"}
    if crashed == 0:
        with pytest.raises(RuntimeError, match="the shipped one crashed: SIGSEGV"):
            tuning.measure(tunable, FakeClock(), failed)
        assert launched == []
        return
    rows = tuning.measure(tunable, FakeClock(), failed)
    assert [row["problem"] for row in rows] == [
        "crashed: SIGSEGV" if place == crashed else None for place in range(len(rows))
    ]
    assert (tunable.candidates[1] in launched) == (crashed is None)
    assert sum(row["winner"] for row in rows) == 1
    assert ["time_median_s" in row for row in rows] == [row["problem"] is None for row in rows]


# A worker that crashes on one candidate, hangs on another and finds a third wrong.
TRYING = """
import json, os, signal, sys, time
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    match json.loads(line)["code"]:
        case "a: 1": os.kill(os.getpid(), signal.SIGSEGV)
        case "a: 2": time.sleep(600)
        case "b: 0": print(json.dumps({"status": "failed", "problem": "OutOfMemoryError: others"}), flush=True)
        case "b: 1": print(json.dumps({"status": "failed", "problem": "result 0 differs by 1"}), flush=True)
        case _: print(json.dumps({"status": "ok"}), flush=True)
"""


def test_candidates_are_tried_in_parallel_processes_and_those_that_fail_in_any_way_are_named(tmp_path, monkeypatch):
    codes = ["a: 0", "a: 1", "a: 2", "b: 0", "b: 1"]
    jobs = [Job(f"candidate: {code}", {"kind": "candidate", "code": code}, timeout_s=0.5) for code in codes]
    pool = tuning_workers._pool

    def with_fake_worker(*arguments: Any) -> Any:
        return dataclasses.replace(pool(*arguments), command=(sys.executable, "-c", TRYING))

    monkeypatch.setattr(tuning_workers, "_pool", with_fake_worker)
    failed = tuning_workers.try_all(jobs, 2, 1e12, tmp_path / "rows.log")
    assert sorted(failed) == ["a: 1", "a: 2", "b: 1"]
    assert "SIGSEGV" in failed["a: 1"]
    assert failed["a: 2"].startswith("timeout: ")
    assert failed["b: 1"] == "failed: result 0 differs by 1"
    given = tmp_path / "failed.json"
    given.write_text(json.dumps(failed))
    assert tuning.failed_before(argparse.Namespace(failed=given)) == failed  # tried before: not again


def test_every_candidate_has_a_code_of_its_own_that_its_job_carries():
    jobs = list(tuning.candidate_jobs())
    assert len({job["code"] for job in jobs}) == len(jobs)
    codes = {tuning.code_of(each, candidate) for each in tuning.tunables() for candidate in each.candidates}
    assert codes == {job["code"] for job in jobs}
