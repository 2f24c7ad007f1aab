"""Files of benchmarks with a part of a wrong type: one line that names the file, the benchmark and the part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from scalebench.comparison.benchmark_files import read_benchmarks
from scalebench.errors import InputError

STATS = {"median": 1e-3, "data": [1e-3, 2e-3], "iterations": 1}
BENCHMARK: dict[str, Any] = {"name": "t", "fullname": "x::t", "stats": STATS}
COMMAND: dict[str, Any] = {"command": "a", "median": 1.0, "times": [1.0]}


def pytest_file(**changes: Any) -> dict[str, Any]:
    return {"machine_info": {}, "benchmarks": [BENCHMARK | changes]}


def google(**changes: Any) -> dict[str, Any]:
    return {"context": {}, "benchmarks": [{"name": "a/1", "real_time": 3.0} | changes]}


def asv(*stored: Any, **changes: Any) -> dict[str, Any]:
    return {"commit_hash": "c", "results": {"m.time_a": [*stored] if len(stored) > 1 else stored[0]}} | changes


@pytest.mark.parametrize("content", [pytest_file(), google(), asv([1e-3], []), {"results": [COMMAND]}])
def test_the_files_without_a_wrong_part_are_read(tmp_path: Path, content: Any) -> None:
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert len(read_benchmarks(tmp_path / "b.json").benchmarks) == 1


def test_a_combination_that_asv_skipped_is_left_out(tmp_path: Path) -> None:
    """asv writes NaN for it, which JSON does not have and Python's writer of JSON does."""
    (tmp_path / "b.json").write_text(json.dumps(asv([1e-3, float("nan"), None], [["1", "2", "3"]])))
    (benchmark,) = read_benchmarks(tmp_path / "b.json").benchmarks
    assert (benchmark.case, benchmark.median_s) == ("1", 1e-3)


def test_a_median_that_is_no_number_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "b.json").write_text(json.dumps(pytest_file(stats=STATS | {"median": float("nan")})))
    with pytest.raises(InputError, match="the median is missing"):
        read_benchmarks(tmp_path / "b.json")


def test_the_start_of_a_benchmark_is_in_utc(tmp_path: Path) -> None:
    content = google() | {"context": {"date": "2024-01-01T12:00:00+02:00"}}
    (tmp_path / "b.json").write_text(json.dumps(content))
    assert read_benchmarks(tmp_path / "b.json").shared["started_at"] == "2024-01-01T10:00:00+00:00"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"machine_info": {}, "benchmarks": [1]}, "benchmark 0: expected an object, not 1"),
        (pytest_file(stats=STATS | {"data": "1e-3"}), "x::t: data is '1e-3'; expected a list"),
        (pytest_file(stats=STATS | {"iterations": "many"}), "x::t: iterations is 'many'; expected a whole number"),
        (pytest_file(stats=[1]), "x::t: stats is [1]; expected an object"),
        (pytest_file(params=[1]), "x::t: params is [1]; expected an object"),
        (pytest_file(extra_info="none"), "benchmark 0: extra_info is 'none'"),
        (pytest_file() | {"commit_info": [1]}, "commit_info is [1]"),
        (google(iterations=1.5), "benchmark 0: iterations is 1.5; expected a whole number"),
        ({"context": {}, "benchmarks": ["x"]}, "benchmark 0: expected an object, not 'x'"),
        ({"results": [3]}, "result 0: expected an object, not 3"),
        ({"results": [COMMAND | {"exit_codes": 3}]}, "result 0: exit_codes is 3; expected a list"),
        ({"results": [COMMAND | {"parameters": [1]}]}, "a: parameters is [1]; expected an object"),
        (asv(3), "m.time_a: expected an object, not 3"),
        (asv(1e-3, []), "m.time_a: result is 0.001; expected a list"),
        (asv([1e-3], [["1"], 3]), "m.time_a: params is [['1'], 3]; expected a list of lists"),
        (asv([1e-3], [], result_columns=5), "result_columns is 5; expected a list"),
        (asv([1e-3], [], params=["machine"]), "params is ['machine']; expected an object"),
    ],
)
def test_a_part_of_another_type_is_one_line(tmp_path: Path, content: Any, part: str) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as refused:
        read_benchmarks(path)
    (line,) = refused.value.lines
    assert line.startswith(f"{path}: ")
    assert part in line
