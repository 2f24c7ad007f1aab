"""Import JSON files of benchmarking tools as comparisons: each file counts as one process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.comparison import Comparison
from scalebench.comparison.benchmark_files import Benchmark, BenchmarkFile, read_benchmarks
from scalebench.comparison.rows import ABSENT, case_rows, rate_columns, sample_rows
from scalebench.errors import InputError, number_of
from scalebench.store import StoreError, check_writable, is_name, read_bytes, write_json
from scalebench.store.comparison_columns import ROW_COLUMNS
from scalebench.store.comparisons import new_run, read_run, write_run
from scalebench.store.names import RULE

Benchmarks = list[dict[str, Any]]
METHOD = "{}, rounds of one provider after the other, {} each"


def import_files(
    paths: Sequence[Path], operation: str | None, baseline: str, margin: float, results: Path, command: str
) -> tuple[Comparison, list[str]]:
    """Add the measurements in the files to ``results``, a run per operation and direction.

    Returns the rows with the folder of their run (``results`` where there are several), and a line for each benchmark
    that some of the files lack or whose measurement is no time. Operation, case and provider of a
    benchmark come from its ``extra_info`` if it has them (as this project's do); otherwise they are ``operation``, the
    benchmark's group or parameters, and its parameter or name. Raises ``InputError``, before anything is written, for a
    file that cannot be read, one that is named twice, and a benchmark without an operation.
    """
    _check_different(paths)
    files = [read_benchmarks(path) for path in paths]
    benchmarks = [
        _columns(file, benchmark, operation) | {"process": process}
        for process, file in enumerate(files)
        for benchmark in file.benchmarks
    ]
    check_writable(results)
    runs: list[Path] = []
    rows: list[dict[str, Any]] = []
    for key in dict.fromkeys((benchmark["operation"], benchmark["backward"]) for benchmark in benchmarks):
        part = [benchmark for benchmark in benchmarks if (benchmark["operation"], benchmark["backward"]) == key]
        runs.append(_add_run(part, paths, baseline, margin, results, command))
        rows.extend(read_run(runs[-1])[0])
    others = [f"{file.path}: {name}: not a time, left out" for file in files for name in file.not_times]
    return Comparison(runs[0] if len(runs) == 1 else results, rows), others + _missing(benchmarks, paths)


def _check_different(paths: Sequence[Path]) -> None:
    """Raise ``InputError`` for a file that is named twice, or a copy of another: it would count as two processes."""
    by_digest: dict[str, Path] = {}
    for path in paths:
        try:
            digest = hashlib.sha256(read_bytes(path)).hexdigest()
        except StoreError as error:
            raise InputError([str(error)]) from error
        if digest in by_digest:
            raise InputError(
                [f"--import {path}: the same measurements as {by_digest[digest]}; each file is one process"]
            )
        by_digest[digest] = path


def _missing(benchmarks: Benchmarks, paths: Sequence[Path]) -> list[str]:
    """Return a line for each case and provider that is in some of the files only."""
    places: dict[tuple[str, str], set[int]] = {}
    for benchmark in benchmarks:
        places.setdefault((benchmark["case"], benchmark["provider"]), set()).add(benchmark["process"])
    return [
        f"{provider} in {case}: missing in {', '.join(str(paths[i]) for i in range(len(paths)) if i not in processes)}"
        for (case, provider), processes in places.items()
        if len(processes) < len(paths)
    ]


def _columns(file: BenchmarkFile, benchmark: Benchmark, operation: str | None) -> dict[str, Any]:
    operation = operation or benchmark.operation
    if not operation:
        line = "operation missing; pass it: scalebench compare OPERATION --import …"
        raise InputError([f"{file.path}: {benchmark.fullname}: {line}"])
    if not is_name(operation):
        raise InputError([f"operation: {operation[:60]!a} cannot name a folder; allowed: {RULE}"])
    columns = {
        name: value for name, value in benchmark.extra.items() if name in ROW_COLUMNS or name.startswith("shape_")
    }
    return columns | {
        "operation": str(operation), "backward": benchmark.backward, "case": benchmark.case,
        "provider": benchmark.provider, "status": "ok", "samples_s": benchmark.samples_s,
        "median_s": benchmark.median_s, "calls_per_sample": benchmark.calls, "source": file.tool,
        "timing_method": METHOD.format(file.tool, number_of(benchmark.calls, "call")),
        "stop_reason": f"{file.tool}'s own rule", **file.shared,
    }  # fmt: skip


def _add_run(
    part: Benchmarks, paths: Sequence[Path], baseline: str, margin: float, results: Path, command: str
) -> Path:
    run = new_run(results, part[0]["operation"])
    request = {
        "schema": 1, "operation": part[0]["operation"], "source": part[0]["source"], "backward": part[0]["backward"],
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
    return run


def _rows(part: Benchmarks, number: int, request: Mapping[str, Any], machines: set[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of one case on one machine; no verdict if the baseline was measured on another machine."""
    groups: dict[str, dict[int, dict[str, Any]]] = {}
    for benchmark in part:
        groups.setdefault(benchmark["provider"], {})[benchmark["process"]] = benchmark
    processes = sorted({benchmark["process"] for benchmark in part})
    filled = {name: [group.get(process, {"status": ABSENT}) for process in processes] for name, group in groups.items()}
    of_run = ("source", "status", "provider", "process", "samples_s", "median_s", "calls_per_sample", "stop_reason")
    firsts = {name: next(iter(group.values())) for name, group in groups.items()}
    own = {name: {key: value for key, value in first.items() if key not in of_run} for name, first in firsts.items()}
    head = {"case_index": number, "source": request["source"], "command": request["command"]}
    for row in case_rows(head, filled, own, request["baseline"], request["margin"], {}):
        first = firsts[row["provider"]]
        if row.get("time_median_s") is None:  # a file saved without samples still has the median
            row.update({"time_median_s": first["median_s"], "timing_method": first["timing_method"]})
            row.update(rate_columns(row))
        if request["baseline"] not in filled and machines:
            elsewhere = part[0]["machine_id"] not in machines
            reason = "was measured on another machine" if elsewhere else "was not measured in this case"
            row["verdict_reason"] = f"no verdict: the baseline {reason}"
        yield row
