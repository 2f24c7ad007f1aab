"""JSON files of benchmarking tools, read: pytest-benchmark, hyperfine, asv and google-benchmark.

Every format becomes a list of ``Benchmark``: what was timed, as which provider in which case, with its samples. What a
file lacks or has wrong is an ``InputError`` that names the file and the benchmark.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from scalebench.errors import InputError
from scalebench.store import StoreError, read_json

UNITS_S = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
KINDS: Mapping[type, str] = {dict: "an object", list: "a list", int: "a whole number"}
Part = TypeVar("Part", dict[str, Any], list[Any], int)
UNKNOWN_MACHINE = "unknown"
# In asv a benchmark's name begins with what it measures; its file of results has no unit.
NOT_A_TIME = re.compile(r"(^|\.)(mem_|Mem[A-Z_]|peakmem_|PeakMem[A-Z_]|track_|Track[A-Z_])[^.]*$")


@dataclass(frozen=True)
class Benchmark:
    """One benchmark of a file. ``samples_s`` may be empty; ``alternatives`` are other (case, provider), on a clash."""

    fullname: str
    case: str
    provider: str
    median_s: float
    samples_s: list[float]
    calls: int = 1
    operation: str | None = None
    backward: bool = False
    extra: Mapping[str, Any] = field(default_factory=dict)
    alternatives: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class BenchmarkFile:
    """A file's benchmarks, the tool that wrote it, and its information on the machine and the code, as columns.

    ``not_times`` names the benchmarks that were left out, as they measured memory or something else than a time.
    """

    path: Path
    tool: str
    benchmarks: tuple[Benchmark, ...]
    shared: Mapping[str, Any]
    not_times: tuple[str, ...] = ()


def read_benchmarks(path: Path) -> BenchmarkFile:
    """Read a file of any of the formats. Raises ``InputError``."""
    try:
        content = read_json(path, finite=False)  # asv writes NaN
    except StoreError as error:
        raise InputError([str(error)]) from error
    for tool, (keys, benchmarks, shared) in FORMATS.items():
        if all(isinstance(content.get(key), kind) for key, kind in keys.items()):
            entries = tuple(benchmarks(path, content))
            others = tuple(filter(NOT_A_TIME.search, content["results"])) if tool == "asv" else ()
            if not entries:
                reason = f"its benchmarks measure no times: {', '.join(others)}" if others else "holds no benchmarks"
                raise InputError([f"{path}: {reason}"])
            _check_clashes(path, entries)
            return BenchmarkFile(path, tool, _resolved(entries), shared(path, content), others)
    raise InputError([f"{path}: not a JSON file of {', '.join(FORMATS)}"])


def _seconds(path: Path, name: str, value: Any, quantity: str, unit: float = 1.0) -> float:
    """Return a time in seconds. Raises ``InputError`` for what is not a positive finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(
            [f"{path}: {name}: {quantity} is missing" if value is None else f"{path}: {name}: {quantity} is {value!r}"]
        )
    if not (math.isfinite(value) and value > 0):
        raise InputError([f"{path}: {name}: {quantity} is {value}; a positive time is needed"])
    return float(value) * unit


def _part(place: str, parts: Any, key: str, kind: type[Part]) -> Part:
    """Return a part of an entry, empty where it is missing or null. Raises ``InputError`` for one of another type."""
    if not isinstance(parts, dict):
        raise InputError([f"{place}: expected an object, not {parts!r:.40}"])
    value = parts.get(key)
    if value is None:
        return kind()
    if not isinstance(value, kind) or isinstance(value, bool):
        raise InputError([f"{place}: {key} is {value!r:.40}; expected {KINDS[kind]}"])
    return value


def _samples(path: Path, name: str, values: Any, unit: float = 1.0) -> list[float]:
    return [_seconds(path, name, value, "a sample", unit) for value in values]


def _middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


# --- pytest-benchmark ------------------------------------------------------------------------------------------------


def _pytest(path: Path, content: Mapping[str, Any]) -> Iterator[Benchmark]:
    for number, item in enumerate(content["benchmarks"]):
        extra = _part(f"{path}: benchmark {number}", item, "extra_info", dict)
        name = str(item.get("fullname") or item.get("name") or f"benchmark {number}")
        stats, params = (_part(f"{path}: {name}", item, key, dict) for key in ("stats", "params"))
        if item.get("has_error") or extra.get("has_error"):
            raise InputError([f"{path}: {name}: ended with an error; leave it out of the file"])
        if not stats:
            raise InputError([f"{path}: {name}: stats are missing"])
        function = str(item.get("name") or name).partition("[")[0]
        others = ", ".join(f"{key} {value}" for key, value in params.items() if key != "provider")
        provider = extra.get("provider") or params.get("provider")
        group, parameter = item.get("group"), item.get("param")
        case = extra.get("case") or group or others or function
        chosen = str(provider or (parameter if group else None) or function)
        yield Benchmark(
            fullname=name,
            case=str(case),
            provider=chosen,
            median_s=_seconds(path, name, stats.get("median"), "the median"),
            samples_s=_samples(path, name, _part(f"{path}: {name}", stats, "data", list)),
            calls=_part(f"{path}: {name}", stats, "iterations", int) or 1,
            operation=extra.get("operation"),
            backward=bool(extra.get("backward", False)),
            extra=extra,
            alternatives=((f"{case}: {function}", chosen), (f"{case}: {function}", name), (others or str(case), name)),
        )


def _pytest_machine(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    info = content["machine_info"]
    cpu = info.get("cpu")
    brand = cpu.get("brand_raw") if isinstance(cpu, dict) else cpu
    count = cpu.get("count") if isinstance(cpu, dict) else None
    commit = _part(str(path), content, "commit_info", dict)
    return {
        "machine_id": _machine_id(info.get("node"), info.get("machine"), brand, count),
        "cpu_model": brand or info.get("processor") or None,
        "python_version": info.get("python_version"),
        "git_commit": commit.get("id"),
        "git_dirty": commit.get("dirty"),
        "started_at": _in_utc(content.get("datetime")),
    }


def _in_utc(moment: Any) -> Any:
    """Return a time of a file in UTC; one without an offset, or that is no time, as it is."""
    try:
        parsed = datetime.fromisoformat(moment)
    except (TypeError, ValueError):
        return moment
    return moment if parsed.tzinfo is None else parsed.astimezone(UTC).isoformat(timespec="seconds")


def _machine_id(*parts: Any) -> str:
    """Return an id that distinguishes machines without naming them."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


# --- hyperfine, google-benchmark, asv --------------------------------------------------------------------------------


def _hyperfine(path: Path, content: Mapping[str, Any]) -> Iterator[Benchmark]:
    for number, item in enumerate(content["results"]):
        codes = _part(f"{path}: result {number}", item, "exit_codes", list)
        name = str(item.get("command") or "a command")
        if any(codes):
            raise InputError([f"{path}: {name}: ended with an error in some runs; leave it out of the file"])
        parameters = _part(f"{path}: {name}", item, "parameters", dict)
        case = ", ".join(f"{key} {value}" for key, value in parameters.items()) or "all"
        samples = _samples(path, name, _part(f"{path}: {name}", item, "times", list))
        median = item.get("median") if item.get("median") is not None else (_middle(samples) if samples else None)
        yield Benchmark(name, case, name, _seconds(path, name, median, "the median"), samples)


def _google(path: Path, content: Mapping[str, Any]) -> Iterator[Benchmark]:
    repetitions: dict[str, list[float]] = {}
    calls: dict[str, int] = {}
    for number, item in enumerate(content["benchmarks"]):
        count = _part(f"{path}: benchmark {number}", item, "iterations", int)
        name = str(item.get("run_name") or item.get("name") or "a benchmark")
        if item.get("error_occurred"):
            raise InputError([f"{path}: {name}: ended with an error ({item.get('error_message', '')})"])
        if item.get("run_type", "iteration") != "iteration":
            continue  # means and the like, which are computed here
        unit = UNITS_S.get(str(item.get("time_unit", "ns")))
        if unit is None:
            raise InputError([f"{path}: {name}: time_unit is {item['time_unit']!r}; known: {', '.join(UNITS_S)}"])
        repetitions.setdefault(name, []).append(_seconds(path, name, item.get("real_time"), "real_time", unit))
        calls[name] = count or 1
    for name, samples in repetitions.items():
        function, _, case = name.partition("/")
        yield Benchmark(name, case or "all", function, _middle(samples), samples, calls[name])


def _google_machine(_: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    context = content["context"]
    parts = (context.get("host_name"), context.get("num_cpus"), context.get("mhz_per_cpu"))
    return {"machine_id": _machine_id(*parts), "started_at": _in_utc(context.get("date"))}


def _asv(path: Path, content: Mapping[str, Any]) -> Iterator[Benchmark]:
    columns = _part(str(path), content, "result_columns", list) or ["result", "params", "version"]
    for name, stored in content["results"].items():
        if NOT_A_TIME.search(name):
            continue
        row = dict(zip(columns, stored, strict=False)) if isinstance(stored, list) else stored
        results, params, stored_samples = (
            _part(f"{path}: {name}", row, key, list) for key in ("result", "params", "samples")
        )
        if not results:
            raise InputError([f"{path}: {name}: has no result (it failed or was skipped)"])
        if not all(isinstance(values, list) for values in params):
            raise InputError([f"{path}: {name}: params is {params!r:.40}; expected a list of lists"])
        combinations = list(product(*params)) if params else [()]
        all_samples = stored_samples or [None] * len(combinations)
        for combination, result, samples in zip(combinations, results, all_samples, strict=False):
            if result is None:
                continue  # asv writes NaN for a combination that was skipped, null for one that failed
            case = ", ".join(map(str, combination)) or "all"
            short = name.rpartition(".")[2]
            median = _seconds(path, f"{name} ({case})", result, "the result")
            times = _samples(path, name, samples if isinstance(samples, list) else [])
            yield Benchmark(f"{name} ({case})", case, short, median, times, alternatives=((case, name),))


def _asv_machine(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    params = _part(str(path), content, "params", dict)
    parts = (params.get("machine"), params.get("cpu"), params.get("num_cpu"))
    machine = {"machine_id": _machine_id(*parts), "cpu_model": params.get("cpu") or None}
    return machine | {"git_commit": content.get("commit_hash")}


def _no_machine(_path: Path, _content: Mapping[str, Any]) -> dict[str, Any]:
    return {"machine_id": UNKNOWN_MACHINE}


Machine = Callable[[Path, Mapping[str, Any]], dict[str, Any]]
Reader = Callable[[Path, Mapping[str, Any]], Iterator[Benchmark]]
FORMATS: dict[str, tuple[Mapping[str, type], Reader, Machine]] = {
    "pytest-benchmark": ({"benchmarks": list, "machine_info": dict}, _pytest, _pytest_machine),
    "google-benchmark": ({"benchmarks": list, "context": dict}, _google, _google_machine),
    "asv": ({"results": dict, "commit_hash": str}, _asv, _asv_machine),
    "hyperfine": ({"results": list}, _hyperfine, _no_machine),
}


# --- one place for each ----------------------------------------------------------------------------------------------


def _place(benchmark: Benchmark) -> tuple[Any, ...]:
    return (benchmark.operation, benchmark.backward, benchmark.case, benchmark.provider)


def _resolved(benchmarks: Sequence[Benchmark]) -> tuple[Benchmark, ...]:
    """Return the benchmarks, those with the same case and provider told apart by their alternatives."""
    current = list(benchmarks)
    for choice in range(3):
        places = [_place(benchmark) for benchmark in current]
        if len(set(places)) == len(places):
            break
        current = [
            _moved(benchmark, choice) if places.count(_place(benchmark)) > 1 else benchmark for benchmark in current
        ]
    return tuple(current)


def _moved(benchmark: Benchmark, choice: int) -> Benchmark:
    if choice >= len(benchmark.alternatives):
        return benchmark
    case, provider = benchmark.alternatives[choice]
    return Benchmark(**(vars(benchmark) | {"case": case, "provider": provider}))


def _check_clashes(path: Path, benchmarks: Sequence[Benchmark]) -> None:
    """Raise ``InputError`` for benchmarks with the same name, provider and case."""
    places: dict[tuple[Any, ...], str] = {}
    lines = []
    for benchmark in _resolved(benchmarks):
        place = _place(benchmark)
        if place in places:
            where = f"case {benchmark.case!r}, provider {benchmark.provider!r}"
            lines.append(f"{path}: {places[place]} and {benchmark.fullname} are both {where}; rename one")
        places.setdefault(place, benchmark.fullname)
    if lines:
        raise InputError(lines)
