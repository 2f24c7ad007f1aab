"""Import JSON files of pytest-benchmark as comparisons: group = case, parameter = provider, file = process."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.comparison.rows import ABSENT, case_rows, rate_columns, sample_rows
from scalebench.errors import InputError
from scalebench.store import StoreError, check_writable, is_name, read_json, write_json
from scalebench.store.comparisons import ROW_COLUMNS, new_run, read_run, write_run
from scalebench.store.names import RULE

Benchmarks = list[dict[str, Any]]
METHOD = "pytest-benchmark, rounds of one provider after the other, {} call{} each"


def import_files(
    paths: Sequence[Path], operation: str | None, baseline: str, margin: float, results: Path, command: str
) -> list[dict[str, Any]]:
    """Add the measurements in the files to ``results``, a run per operation and direction, and return the rows.

    Operation, case and provider of a benchmark come from its ``extra_info`` if it has them (as this project's do);
    otherwise they are ``operation``, the benchmark's group, and its parameter or name. Raises ``InputError`` for a file
    that is not pytest-benchmark's, and for a benchmark without an operation.
    """
    benchmarks = [
        benchmark for process, path in enumerate(paths) for benchmark in _benchmarks(path, process, operation)
    ]
    for operation_name in dict.fromkeys(benchmark["operation"] for benchmark in benchmarks):
        if not is_name(operation_name):
            raise InputError([f"operation: {operation_name[:60]!a} cannot name a folder; allowed: {RULE}"])
    check_writable(results)
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((benchmark["operation"], benchmark["backward"]) for benchmark in benchmarks):
        part = [benchmark for benchmark in benchmarks if (benchmark["operation"], benchmark["backward"]) == key]
        rows.extend(_add_run(part, paths, baseline, margin, results, command))
    return rows


def _benchmarks(path: Path, process: int, operation: str | None) -> Iterator[dict[str, Any]]:
    try:
        content = read_json(path)
    except StoreError as error:
        raise InputError([str(error)]) from error
    benchmarks, machine = content.get("benchmarks"), content.get("machine_info")
    if not isinstance(benchmarks, list) or not isinstance(machine, dict):
        raise InputError([f"{path}: not a JSON file of pytest-benchmark (no benchmarks or machine_info in it)"])
    if not benchmarks:
        raise InputError([f"{path}: holds no benchmarks"])
    commit = content.get("commit_info") or {}
    shared = _machine(machine) | {"git_commit": commit.get("id"), "git_dirty": commit.get("dirty")}
    for benchmark in benchmarks:
        columns = _columns(path, benchmark, operation) | shared
        yield columns | {"process": process, "started_at": content.get("datetime")}


def _machine(info: Mapping[str, Any]) -> dict[str, Any]:
    """Return the machine as columns; the id distinguishes machines without naming them."""
    cpu = info.get("cpu") or {}
    parts = [info.get("node"), info.get("machine"), cpu.get("brand_raw"), cpu.get("count")]
    return {
        "machine_id": hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12],
        "cpu_model": cpu.get("brand_raw") or info.get("processor") or None,
        "python_version": info.get("python_version"),
    }


def _columns(path: Path, benchmark: Mapping[str, Any], operation: str | None) -> dict[str, Any]:
    extra, params, stats = benchmark.get("extra_info") or {}, benchmark.get("params") or {}, benchmark["stats"]
    operation = operation or extra.get("operation")
    if not operation:
        raise InputError(
            [f"{path}: {benchmark['name']}: operation missing; pass it: scalebench compare OPERATION --import …"]
        )
    others = {name: value for name, value in params.items() if name != "provider"}
    provider = extra.get("provider") or params.get("provider") or benchmark.get("param") or benchmark["name"]
    case = extra.get("case") or benchmark.get("group") or ", ".join(f"{name} {value}" for name, value in others.items())
    calls, samples = int(stats.get("iterations") or 1), stats.get("data") or []
    columns = {name: value for name, value in extra.items() if name in ROW_COLUMNS or name.startswith("shape_")}
    return columns | {
        "operation": str(operation), "backward": bool(extra.get("backward", False)),
        "case": str(case or benchmark["name"]),
        "provider": str(provider), "status": "ok", "samples_s": samples, "median_s": stats["median"],
        "calls_per_sample": calls, "timing_method": METHOD.format(calls, "s" * (calls > 1)),
        "stop_reason": "pytest-benchmark's own rule",
    }  # fmt: skip


def _add_run(
    part: Benchmarks, paths: Sequence[Path], baseline: str, margin: float, results: Path, command: str
) -> list[dict[str, Any]]:
    run = new_run(results, part[0]["operation"])
    request = {
        "schema": 1, "operation": part[0]["operation"], "source": "pytest-benchmark", "backward": part[0]["backward"],
        "baseline": baseline, "margin": margin, "command": command, "files": [path.name for path in paths],
        "imported_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }  # fmt: skip
    write_json(run / "request.json", request)
    rows: list[dict[str, Any]] = []
    machines = {benchmark["machine_id"] for benchmark in part if benchmark["provider"] == baseline}
    for number, key in enumerate(dict.fromkeys((benchmark["machine_id"], benchmark["case"]) for benchmark in part)):
        same = [benchmark for benchmark in part if (benchmark["machine_id"], benchmark["case"]) == key]
        rows.extend(_rows(same, number, request, machines))
    samples = [
        sample_rows(benchmark["case"], benchmark["provider"], benchmark["process"], benchmark["samples_s"])
        for benchmark in part
    ]
    write_run(run, rows, pd.concat(samples, ignore_index=True))
    return read_run(run)[0]


def _rows(part: Benchmarks, number: int, request: Mapping[str, Any], machines: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one case on one machine; no verdict if the baseline was measured on another machine."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for benchmark in part:
        groups.setdefault(benchmark["provider"], {})[benchmark["process"]] = benchmark
    processes = sorted({benchmark["process"] for benchmark in part})
    filled = {name: [group.get(process, {"status": ABSENT}) for process in processes] for name, group in groups.items()}
    own = ("status", "provider", "process", "samples_s", "median_s", "calls_per_sample", "stop_reason")
    head = {key: value for key, value in part[0].items() if key not in own}
    head |= {"case_index": number, "source": request["source"], "command": request["command"]}
    for row in case_rows(head, filled, {}, request["baseline"], request["margin"], {}):
        first = next(iter(groups[row["provider"]].values()))
        if row.get("time_median_s") is None:  # a file saved without samples still has the median
            row.update({"time_median_s": first["median_s"], "timing_method": first["timing_method"]})
            row.update(rate_columns(row))
        if request["baseline"] not in filled and machines:
            row["verdict_reason"] = "no verdict: the baseline was measured on another machine"
        yield row
