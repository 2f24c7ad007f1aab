"""From the measurements of all processes to the table: one row per provider and case, with its verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench.comparison.validity import invalid_columns, limits_of, mode_columns, two_modes_reason
from scalebench.measure.statistics import (
    Interval,
    median_noise,
    outlier_mask,
    ratio_of_medians,
    typical_time,
    verdict,
)
from scalebench.store import read_json
from scalebench.store.comparison_columns import ROW_COLUMNS

ABSENT = "absent"
ProviderRun = Mapping[str, Any]  # one provider in one case and process, as process.py wrote it


def collect(
    run: Path, costs: Sequence[Mapping[str, Mapping[str, Any]]], summaries: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Return the rows of a run, finished or not; ``costs`` has for each case the columns of each provider's cost.

    A case that only some processes finished has rows from those; the column ``processes`` has their number.
    """
    request = read_json(run / "request.json")
    measured = measured_cases(run)
    if not measured:
        return []
    environment = read_json(run / "environment.json")
    ceilings = best_ceilings([read_json(path) for path in sorted(run.glob("process-*/ceilings.json"))])
    head = {name: environment[name] for name in ROW_COLUMNS if name in environment}
    head["load_average"] = environment["load_average"][0]  # over the minute before anything was measured
    head |= {name: request[name] for name in ("operation", "source", "backward", "started_at", "command")}
    rows: list[dict[str, Any]] = []
    for number, runs in measured.items():
        case = {"case": runs[0]["label"], "case_index": number, "dtype": runs[0]["dtype"]}
        case |= {f"shape_{name}": value for name, value in request["cases"][number].items() if name != "dtype"}
        measured_ceilings = ceilings[runs[0]["dtype"]]
        case |= {name: value for name, value in measured_ceilings.items() if name in ROW_COLUMNS}
        group = {name: [run_of_case["providers"][name] for run_of_case in runs] for name in request["providers"]}
        of_case = case_rows(head | case, group, costs[number], request["baseline"], request["margin"], summaries)
        limits = limits_of(measured_ceilings)
        rows.extend(row | invalid_columns(row, limits, request["device"]) for row in of_case)
    return rows


def measured_cases(run: Path) -> dict[int, list[dict[str, Any]]]:
    """Return the measurements of each case that at least one process finished, in the order of the processes."""
    count = len(read_json(run / "request.json")["cases"])
    files = {number: sorted(run.glob(f"process-*/case-{number}.json"), key=_process_of) for number in range(count)}
    return {number: [read_json(path) for path in paths] for number, paths in files.items() if paths}


def _process_of(path: Path) -> int:
    return int(path.parent.name.rpartition("-")[2])


def best_ceilings(processes: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the ceilings of each dtype as columns, the best over processes, with ``cache_bytes`` and the limit."""

    def best(dtype: str, name: str) -> float | None:
        values = [ceilings[dtype][name] for ceilings in processes]
        return None if None in values else max(values)

    return {
        dtype: {
            "copy_ceiling_bytes_per_s": best(dtype, "copy_bytes_per_s"),
            "cached_ceiling_bytes_per_s": best(dtype, "cached_bytes_per_s"),
            "matmul_ceiling_flops_per_s": best(dtype, "matmul_flops_per_s"),
            "flops_limit_per_s": best(dtype, "flops_limit_per_s"),
            "ceiling_source": processes[0][dtype]["source"],
            "cache_bytes": processes[0][dtype]["cache_bytes"],
            "timing_floor_s": min(ceilings[dtype]["floor_s"] for ceilings in processes),
        }
        for dtype in processes[0]
    }


def case_rows(
    head: Mapping[str, Any],
    group: Mapping[str, Sequence[ProviderRun]],
    costs: Mapping[str, Mapping[str, Any]],
    baseline: str,
    margin: float,
    summaries: Mapping[str, str],
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a case: ``group`` maps each provider to its results in all processes.

    ``costs`` maps it to the columns that are its own whatever was measured, such as its cost. A process that did not
    measure a provider has the status "absent" there and is left out.
    """
    against = group.get(baseline)
    for name, runs in group.items():
        processes = [process for process in runs if process["status"] != ABSENT]
        row = dict(head) | dict(costs.get(name, {})) | {"provider": name, "summary": summaries.get(name)}
        row |= provider_columns(processes)
        if row["status"] == "ok":
            row |= rate_columns(row)
        row |= {"baseline": baseline, "margin": margin}
        row |= verdict_columns(name, row["status"], runs, baseline, against, margin)
        if row.get("verdict") and row.get("accepted") is False:
            row |= {"verdict": None, "verdict_reason": "no verdict on a wrong result"}
        yield row


def provider_columns(processes: Sequence[ProviderRun]) -> dict[str, Any]:
    """Summarise a provider over processes: ok if it was in all of them, otherwise its first failure."""
    columns: dict[str, Any] = {"status": "ok"}
    for process in reversed(processes):
        if process["status"] != "ok":
            columns |= {name: process[name] for name in ("status", "error_class", "error_message")}
    names = (
        "peak_memory_bytes", "memory_method", "max_abs_error", "eager_max_abs_error", "error_ratio", "error_result",
        "accepted", "error_note", "invalid_reason",
    )  # fmt: skip
    columns |= {name: process[name] for process in reversed(processes) for name in names if name in process}
    timed = [process for process in processes if process.get("samples_s")]
    if columns["status"] == "ok" and timed:
        columns |= time_columns(timed)
    return columns


def time_columns(processes: Sequence[ProviderRun]) -> dict[str, Any]:
    """Return the columns of times, in seconds per call, from the samples of each process."""
    samples = [np.array(process["samples_s"]) for process in processes]
    typical, pooled = typical_time(samples), np.concatenate(samples)
    reasons = Counter(process["stop_reason"] for process in processes)
    noise = max(median_noise(x) for x in samples)
    p20, p80 = (float(q) for q in np.quantile(pooled, (0.2, 0.8)))
    return {
        "time_median_s": typical.value,
        "time_low_s": _finite(typical.low),
        "time_high_s": _finite(typical.high),
        "time_p20_s": p20,
        "time_p80_s": p80,
        "samples": pooled.size,
        **mode_columns(samples),
        "outliers": int(sum(outlier_mask(x).sum() for x in samples)),
        "processes": len(samples),
        "noise": _finite(noise),
        "stop_reason": min(reasons, key=lambda reason: (-reasons[reason], reason)),
        "stop_reasons": ", ".join(f"{reason} ×{count}" for reason, count in sorted(reasons.items())),
        "calls_per_sample": processes[0].get("calls_per_sample"),
        "timing_method": " | ".join(
            dict.fromkeys(filter(None, (process.get("timing_method") for process in processes)))
        )
        or None,
        **{name: _median_of(processes, name) for name in ("prepare_time_s", "first_call_time_s")},
    }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _median_of(processes: Sequence[ProviderRun], name: str) -> float | None:
    values = [process[name] for process in processes if process.get(name) is not None]
    return float(np.median(values)) if values else None


def rate_columns(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the achieved rates; null without a time or a cost."""
    time, flops, moved = (row.get(name) for name in ("time_median_s", "flops", "bytes_moved"))
    return {
        "achieved_flops_per_s": flops / time if time and flops else None,
        "achieved_bytes_per_s": moved / time if time and moved else None,
    }


def verdict_columns(
    name: str,
    status: str,
    processes: Sequence[ProviderRun],
    baseline: str,
    against: Sequence[ProviderRun] | None,
    margin: float,
) -> dict[str, Any]:
    """Return the ratio of times to the baseline with its interval, and the verdict with its reason."""
    if name == baseline:
        return {"verdict_reason": "the baseline"}
    if status != "ok":
        return {"verdict_reason": f"no time: {status}"}
    if against is None:
        return {"verdict_reason": f"no baseline: {baseline} was not among the providers"}
    pairs = [(x, y) for x, y in zip(processes, against, strict=True) if _timed(x) and _timed(y)]
    if not pairs:
        return {"verdict_reason": f"no baseline: {baseline} has no samples of this case"}
    ours, theirs = ([pair[side]["samples_s"] for pair in pairs] for side in (0, 1))
    split = [two_modes_reason(name, ours), two_modes_reason(baseline, theirs)]
    if reason := "; ".join(filter(None, split)):  # a median between two modes describes neither
        return {"verdict_reason": f"no verdict: {reason}"}
    ratio = ratio_of_medians(ours, theirs)
    judged = verdict(ratio, margin)
    return _ratio_columns(ratio) | {"verdict": judged.word, "verdict_reason": judged.reason}


def _timed(process: ProviderRun) -> bool:
    return process["status"] == "ok" and bool(process.get("samples_s"))


def _ratio_columns(ratio: Interval) -> dict[str, float | None]:
    return {"ratio": ratio.value, "ratio_low": _finite(ratio.low), "ratio_high": _finite(ratio.high)}


def samples_table(run: Path) -> pd.DataFrame:
    """Return every sample of a run: case, provider, process, place in the order taken, seconds per call, outlier."""
    frames = [sample_rows("", "", 0, [])]
    for folder in sorted(run.glob("process-*")):
        for path in sorted(folder.glob("case-*.json")):
            measured, process = read_json(path), int(folder.name.rpartition("-")[2])
            for name, columns in measured["providers"].items():
                frames.append(sample_rows(measured["label"], name, process, columns.get("samples_s") or []))
    return pd.concat(frames, ignore_index=True)


def sample_rows(case: str, provider: str, process: int, times_s: Sequence[float]) -> pd.DataFrame:
    """Return the samples of one provider, case and process as rows, outliers flagged."""
    times = np.asarray(times_s, dtype=np.float64)
    outliers = outlier_mask(times) if times.size else np.zeros(0, dtype=bool)
    frame = pd.DataFrame({"place": np.arange(times.size), "time_s": times, "outlier": outliers})
    return frame.assign(case=case, provider=provider, process=process)
