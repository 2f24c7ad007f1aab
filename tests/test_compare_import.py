"""Files of pytest-benchmark, real ones, as rows of a comparison."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support import reference_case

from scalebench.comparison.benchmark_files import read_benchmarks
from scalebench.errors import InputError
from scalebench.store import read_json

BENCH = """
import time
import pytest
@pytest.mark.benchmark(group="naps")
@pytest.mark.parametrize("provider", ["eager", "long"])
def test_nap(benchmark, provider):
    benchmark.pedantic(lambda: time.sleep(1e-3 if provider == "eager" else 2e-3), rounds=12)
"""


@pytest.fixture(scope="module")
def bench_files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two real JSON files of pytest-benchmark, with their rounds."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "test_naps.py").write_text(BENCH)
    paths = [folder / "first.json", folder / "second.json"]
    # Within a run of pytest-xdist, pytest-benchmark would take itself for one of its workers and measure nothing.
    alone = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    for path in paths:
        line = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--benchmark-json={path}", folder]
        subprocess.run(line, cwd=folder, check=True, capture_output=True, env=alone)
    return paths


@pytest.mark.slow
def test_files_of_pytest_benchmark_are_imported_with_their_rounds(bench_files, command, tmp_path: Path) -> None:
    imports = [part for path in bench_files for part in ("--import", path)]
    code, out, _ = command("compare", "naps", *imports, "--results", tmp_path / "r", "--json")
    assert code == 0
    eager, long = json.loads(out)["rows"]
    data = [read_json(path)["benchmarks"][1]["stats"]["data"] for path in bench_files]
    assert (long["case"], long["provider"], long["processes"], long["samples"]) == ("naps", "long", 2, 24)
    assert long["time_median_s"] == pytest.approx(np.sqrt(np.median(data[0]) * np.median(data[1])))
    assert long["verdict"] in ("SLOWER", "INCONCLUSIVE")
    assert long["accepted"] is None
    assert eager["source"] == "pytest-benchmark"
    assert "one provider after the other" in eager["timing_method"]
    samples = pd.read_parquet(next((tmp_path / "r").rglob("samples.parquet")))
    assert samples.loc[samples["provider"] == "long", "time_s"].tolist() == pytest.approx([*data[0], *data[1]])


@pytest.mark.slow
def test_files_of_different_machines_get_no_verdict(bench_files, command, tmp_path: Path) -> None:
    here, there = (read_json(path) for path in bench_files)
    here["benchmarks"], there["benchmarks"] = here["benchmarks"][:1], there["benchmarks"][1:]
    there["machine_info"]["node"] = "another"
    for name, content in (("here.json", here), ("there.json", there)):
        (tmp_path / name).write_text(json.dumps(content))
    code, out, _ = command("compare", "naps", "--import", "here.json", "--import", "there.json", "--json")
    _, long = json.loads(out)["rows"]
    assert code == 0
    assert (long["verdict"], long["ratio"]) == (None, None)
    assert "another machine" in long["verdict_reason"]


@pytest.mark.slow
def test_a_file_without_samples_still_has_its_median(bench_files, command, tmp_path: Path) -> None:
    content = read_json(bench_files[0])
    for entry in content["benchmarks"]:
        del entry["stats"]["data"]
    (tmp_path / "short.json").write_text(json.dumps(content))
    code, out, _ = command("compare", "naps", "--import", "short.json", "--json")
    _, long = json.loads(out)["rows"]
    assert code == 0
    assert long["time_median_s"] == content["benchmarks"][1]["stats"]["median"]
    assert long["time_low_s"] is long["verdict"] is None


def test_what_is_no_file_of_pytest_benchmark_is_refused(command, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("{}")
    for name in ("other.json", "absent.json"):
        code, _, err = command("compare", "naps", "--import", name)
        assert code == 2
        assert name in err


# --- nothing is lost, and what is wrong is named ---------------------------------------------------------------------


def pytest_file(*benchmarks: dict[str, object], node: str = "a") -> dict[str, object]:
    machine = {"node": node, "machine": "x86_64", "cpu": {"brand_raw": "CPU", "count": 8}}
    return {"machine_info": machine, "benchmarks": [*benchmarks]}


def timed(name: str, *, median: object = 1e-3, **changes: object) -> dict[str, object]:
    data = [median] * 5 if isinstance(median, float) else []
    stats = {"median": median, "data": data, "iterations": 1}
    return {"name": name.rpartition("::")[2], "fullname": name, "group": None, "params": None, "stats": stats} | changes


def places(tmp_path: Path, content: object) -> list[tuple[str, str]]:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(content))
    return [(benchmark.case, benchmark.provider) for benchmark in read_benchmarks(path).benchmarks]


def test_every_benchmark_of_a_file_has_its_own_place(tmp_path: Path) -> None:
    sizes = [
        timed(f"t.py::test_{name}[{n}]", params={"n": n}, param=str(n)) for name in ("sort", "sum") for n in (10, 20)
    ]
    assert places(tmp_path, pytest_file(*sizes)) == [
        ("n 10", "test_sort"), ("n 20", "test_sort"), ("n 10", "test_sum"), ("n 20", "test_sum"),
    ]  # fmt: skip
    grouped = [
        timed(f"t.py::test_{x}[{p}]", group="g", params={"impl": p}, param=p) for x in "ab" for p in ("eager", "fused")
    ]
    assert places(tmp_path, pytest_file(*grouped)) == [
        ("g: test_a", "eager"), ("g: test_a", "fused"), ("g: test_b", "eager"), ("g: test_b", "fused"),
    ]  # fmt: skip
    same = [timed("x.py::test_load"), timed("y.py::test_load")]
    assert len(set(places(tmp_path, pytest_file(*same)))) == 2
    twice = [timed("x.py::test_load"), timed("x.py::test_load")]
    with pytest.raises(InputError, match="test_load are both"):
        places(tmp_path, pytest_file(*twice))


@pytest.mark.parametrize(("name", "count"), [("real", 4), ("same_param_group", 4), ("same_name", 2)])
def test_files_from_the_field_lose_no_benchmark(command, name: str, count: int) -> None:
    path = reference_case("12-import-drops-benchmarks") / f"{name}.json"
    code, out, _ = command("compare", "listops", "--import", path, "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert len(rows) == count
    assert len({(row["case"], row["provider"]) for row in rows}) == count


@pytest.mark.parametrize(
    ("damaged", "part"),
    [
        (timed("t.py::test_a", median=0.0), "the median is 0.0; a positive time is needed"),
        (timed("t.py::test_a", median=None), "the median is missing"),
        (timed("t.py::test_a", median="1"), "the median is '1'"),
        (timed("t.py::test_a", stats=None), "stats are missing"),
        ({"name": "test_a"}, "stats are missing"),
        (timed("t.py::test_a", has_error=True), "ended with an error"),
        (timed("t.py::test_a", stats={"median": 1.0, "data": [1.0, -1.0]}), "a sample is -1.0"),
    ],
)
def test_what_a_benchmark_lacks_is_one_line_and_nothing_is_written(
    command, tmp_path: Path, damaged: dict[str, object], part: str
) -> None:
    (tmp_path / "b.json").write_text(json.dumps(pytest_file(timed("t.py::test_b"), damaged)))
    code, out, err = command("compare", "op", "--import", "b.json")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith("b.json: ")
    assert "test_a" in line
    assert part in line
    assert not (tmp_path / "results").exists()


def test_damaged_files_from_the_field_are_one_line(command, tmp_path: Path) -> None:
    for path in sorted(reference_case("18-import-tracebacks").glob("*.json")):
        code, _, err = command("compare", "op", "--import", path, "--baseline", "test_eager")
        assert code == (0 if path.stem == "cpu_str" else 2), path
        assert path.stem == "cpu_str" or len(err.splitlines()) == 1


def test_the_same_file_twice_is_refused_and_what_some_files_lack_is_named(command, tmp_path: Path) -> None:
    both = pytest_file(timed("t.py::test_a"), timed("t.py::test_b", median=2e-3))
    for name, content in (("one.json", both), ("copy.json", both), ("less.json", pytest_file(timed("t.py::test_a")))):
        (tmp_path / name).write_text(json.dumps(content))
    for again in ("one.json", "copy.json"):
        code, _, err = command("compare", "op", "--import", "one.json", "--import", again)
        assert code == 2
        assert f"{again}: the same measurements as one.json" in err
    code, _, err = command("compare", "op", "--import", "one.json", "--import", "less.json")
    assert code == 0
    assert "test_b in test_b: missing in less.json" in err


@pytest.mark.parametrize("name", ["../../escaped", "a/b", "", "a b", "x" * 200])
def test_the_name_of_an_operation_names_a_folder(command, tmp_path: Path, name: str) -> None:
    (tmp_path / "b.json").write_text(json.dumps(pytest_file(timed("t.py::test_a"))))
    code, _, err = command("compare", name, "--import", "b.json", "--results", "deep/er/results")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert {path.name for path in tmp_path.iterdir()} == {"b.json"}


# --- other tools -----------------------------------------------------------------------------------------------------


def test_hyperfine_is_imported(tmp_path: Path, command) -> None:
    times = {"sleep 0.1": [0.101, 0.103, 0.102], "sleep 0.2": [0.201, 0.204, 0.202]}
    results = [
        {"command": name, "mean": 0.1, "median": sorted(values)[1], "times": values, "exit_codes": [0] * 3}
        for name, values in times.items()
    ]
    (tmp_path / "h.json").write_text(json.dumps({"results": results}))
    code, out, _ = command("compare", "sleep", "--import", "h.json", "--baseline", "sleep 0.1", "--json")
    assert code == 0
    first, second = json.loads(out)["rows"]
    assert (first["provider"], second["provider"]) == ("sleep 0.1", "sleep 0.2")
    assert second["time_median_s"] == pytest.approx(0.202)
    assert second["samples"] == 3
    assert second["source"] == "hyperfine"
    results[1]["exit_codes"] = [0, 1, 0]
    (tmp_path / "h.json").write_text(json.dumps({"results": results}))
    assert "ended with an error" in command("compare", "sleep", "--import", "h.json")[2]


def test_google_benchmark_is_imported_with_its_repetitions(tmp_path: Path) -> None:
    def run(name: str, time: float, **changes: object) -> dict[str, object]:
        plain = {"name": name, "run_name": name, "run_type": "iteration", "iterations": 100, "time_unit": "us"}
        return plain | {"real_time": time, "cpu_time": time} | changes

    runs = [run("BM_sort/64", 3.0), run("BM_sort/64", 5.0), run("BM_sort/64", 4.0), run("BM_sum/64", 1.0)]
    runs.append(run("BM_sort/64", 9.0, run_type="aggregate"))
    path = tmp_path / "g.json"
    path.write_text(json.dumps({"context": {"host_name": "x", "num_cpus": 8}, "benchmarks": runs}))
    sort, total = read_benchmarks(path).benchmarks
    assert (sort.case, sort.provider, sort.samples_s) == ("64", "BM_sort", pytest.approx([3e-6, 5e-6, 4e-6]))
    assert (sort.median_s, sort.calls) == (pytest.approx(4e-6), 100)
    assert (total.case, total.provider) == ("64", "BM_sum")
    path.write_text(json.dumps({"context": {}, "benchmarks": [run("BM_x", 1.0, time_unit="fortnight")]}))
    with pytest.raises(InputError, match="fortnight"):
        read_benchmarks(path)


def test_asv_is_imported_with_its_parameters(tmp_path: Path) -> None:
    content = {
        "commit_hash": "abc", "params": {"machine": "m", "cpu": "CPU", "num_cpu": "8"}, "version": 2,
        "result_columns": ["result", "params", "version", "started_at", "duration", "samples"],
        "results": {
            "sorting.time_sort": [[1e-3, 2e-3, None], [["10", "20", "30"]], "v", 0, 0, [[1e-3, 1.1e-3], [2e-3], None]],
            "summing.time_sum": [[5e-4], [], "v", 0, 0],
        },
    }  # fmt: skip
    path = tmp_path / "asv.json"
    path.write_text(json.dumps(content))
    file = read_benchmarks(path)
    assert [(each.case, each.provider, each.median_s) for each in file.benchmarks] == [
        ("10", "time_sort", 1e-3), ("20", "time_sort", 2e-3), ("all", "time_sum", 5e-4),
    ]  # fmt: skip
    assert file.benchmarks[0].samples_s == [1e-3, 1.1e-3]
    assert file.shared["git_commit"] == "abc"


def test_what_asv_measured_other_than_time_is_left_out_and_named(command, tmp_path: Path) -> None:
    results = {
        "lists.time_sort": [[1e-3], []], "lists.Suite.mem_list": [[1234], []], "lists.peakmem_list": [[10**6], []],
        "lists.track_size.track_len": [[7], []], "lists.TimeSuite.time_tracked": [[2e-3], []],
    }  # fmt: skip
    content = {"commit_hash": "abc", "result_columns": ["result", "params"], "results": results}
    (tmp_path / "asv.json").write_text(json.dumps(content))
    code, out, err = command("compare", "lists", "--import", "asv.json", "--json")
    assert code == 0
    assert [row["provider"] for row in json.loads(out)["rows"]] == ["time_sort", "time_tracked"]
    for name in ("Suite.mem_list", "peakmem_list", "track_len"):
        assert f"{name}: not a time, left out" in err
    del results["lists.time_sort"], results["lists.TimeSuite.time_tracked"]
    (tmp_path / "asv.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="measure no times"):
        read_benchmarks(tmp_path / "asv.json")


def test_an_import_names_its_run_and_why_there_is_no_verdict(command, tmp_path: Path) -> None:
    cases = [timed(f"t.py::test_{name}[{n}]", params={"n": n}) for name, n in (("a", 1), ("b", 1), ("b", 2))]
    (tmp_path / "b.json").write_text(json.dumps(pytest_file(*cases)))
    code, out, _ = command("compare", "sums", "--import", "b.json", "--baseline", "test_a")
    assert code == 0
    assert "n 2: no verdict: the baseline was not measured in this case" in out
    assert "INCONCLUSIVE: only one process" in out
    assert "float64" not in out  # nothing of it was checked
    run = out.rpartition("rows and samples: ")[2].strip()
    assert len(pd.read_parquet(tmp_path / run / "samples.parquet")) == 15


def test_each_provider_has_its_own_cost(command, tmp_path: Path) -> None:
    """A provider may compute more than another; ``extra_info`` of experiments/bench_support.py has what each does."""
    costs = {"eager": 10, "masked": 20}
    benchmarks = [timed(name, extra_info={"provider": name, "case": "c", "flops": costs[name]}) for name in costs]
    benchmarks.append(timed("plain", extra_info={"provider": "plain", "case": "c"}))
    (tmp_path / "b.json").write_text(json.dumps(pytest_file(*benchmarks)))
    rows = json.loads(command("compare", "o", "--import", "b.json", "--json")[1])["rows"]
    assert {row["provider"]: row["flops"] for row in rows} == {"eager": 10, "masked": 20, "plain": None}
    eager, masked, plain = (row["achieved_flops_per_s"] for row in rows)
    assert (eager, masked, plain) == (pytest.approx(1e4), pytest.approx(2e4), None)


def test_a_baseline_that_is_not_there_is_named(command, tmp_path: Path) -> None:
    benchmarks = [timed(name, extra_info={"provider": name, "case": "c"}) for name in ("eager", "other")]
    (tmp_path / "b.json").write_text(json.dumps(pytest_file(*benchmarks)))
    _, out, _ = command("compare", "o", "--import", "b.json", "--baseline", "torch")
    assert "there is no provider 'torch'" in " ".join(out.split())
