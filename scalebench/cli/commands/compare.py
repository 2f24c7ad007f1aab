"""What ``scalebench compare`` does and prints."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil

from scalebench.analysis.suite import SuiteSummary, summarize_suite
from scalebench.cli import INTERRUPTED
from scalebench.cli.counted import counted
from scalebench.cli.output import duration, one_line, print_json, quantity, say, table, warn
from scalebench.cli.progress import ComparisonProgress, Progress
from scalebench.comparison import Comparison, ComparisonPlan, Options, measure, plan_comparison
from scalebench.comparison.options import OPERATION_MODULES, check_import
from scalebench.errors import InputError, number_of
from scalebench.measure.environment import command_line
from scalebench.reporting.quantities import NBSP, bounded, significant

COMPLAINTS = 3
WIDEST = 1000.0  # a wider interval is not shown; two processes can disagree this much
NOTHING = ("", "-", "—", "unchecked")  # cells without a value
HEADER = ("provider", "time (95 %)", "error", "speedup (95 %)", "verdict", "FLOP/s", "B/s", "memory")


def run_compare(
    operation: str | None, options: Options, imports: Sequence[Path], results: Path, *, as_json: bool
) -> int:
    """Measure or import, print the table and return the exit code: 1 if a result is wrong or a provider crashed."""
    if imports:
        check_import(options)
        from scalebench.comparison.imported import import_files

        margin, line = options.margin, command_line()
        imported, remarks = import_files(imports, operation, options.baseline, margin, results, line)
        warn(*counted(remarks))
        return _print(imported, as_json=as_json)
    if operation is None:
        raise InputError([f"compare: give an operation ({', '.join(OPERATION_MODULES)}) or a .py file"])
    plan = plan_comparison(operation, options)
    if not as_json:
        _announce(plan)
    with Progress(quiet=as_json) as display:
        progress = ComparisonProgress(display)
        comparison = measure(plan, results, command_line(), progress.tick, progress.waiting)
    return _print(comparison, as_json=as_json)


def _announce(plan: ComparisonPlan) -> None:
    request = plan.request
    direction = "gradients" if request["backward"] else "results"
    counts = (
        number_of(len(plan.cases), "case"),
        number_of(len(request["providers"]), "provider"),
        f"{number_of(request['processes'], 'process')} on {request['device']}",
    )
    say(
        f"{request['operation']}, {direction}: {', '.join(counts)}; at most {duration(plan.sampling_s)} of sampling, "
        "plus compilation and checks"
    )
    load, cores = os.getloadavg()[0], psutil.cpu_count() or 1
    if load > 0.5 * cores:
        warn(f"load average is {load:.1f} on {number_of(cores, 'core')}: other programs will make the times noisy")


def _print(comparison: Comparison, *, as_json: bool) -> int:
    code = INTERRUPTED if comparison.ended == "interrupted" else 0 if comparison.good else 1
    if comparison.ended:
        left = f"; not measured: {', '.join(comparison.not_measured)}" if comparison.not_measured else ""
        kept = ", what was measured is kept" if comparison.rows else ""
        warn(f"ended early{kept}: {comparison.ended}{left}")
    if as_json:
        end = {"ended": comparison.ended, "not_measured": comparison.not_measured} if comparison.ended else {}
        summaries = [asdict(summary) for summary in summarize_suite(comparison.rows)]
        print_json("compare", {"run": str(comparison.run), "rows": comparison.rows, "summary": summaries, **end})
        return code
    if not comparison.rows:
        say(f"nothing was measured: {comparison.run}")
        return code
    lines: list[tuple[str, ...]] = []
    for row in comparison.rows:
        if (row["case"],) not in lines:
            lines.append((row["case"],))
        lines.append(_cells(row))
    table("", *_without_empty(HEADER, lines))
    checked = any(row["accepted"] is not None for row in comparison.rows)
    error = "error: against float64, in multiples of the eager error" if checked else "results are unchecked"
    faster = any(row["ratio"] is not None for row in comparison.rows)
    say(error + "; speedup: times as fast as the baseline" * faster)
    if any(row["provider"] == row["baseline"] for row in comparison.rows):
        _print_summary([summary for summary in summarize_suite(comparison.rows) if summary.cases > 1])
    else:
        names = ", ".join(dict.fromkeys(str(row["provider"]) for row in comparison.rows))
        baseline = comparison.rows[0]["baseline"]
        say(f"no speedup and no verdict: there is no provider {baseline!r}; choose one with --baseline: {names}")
    say(*_remarks(comparison.rows), *_ceilings(comparison.rows), f"rows and samples: {comparison.run}")
    return code


def _without_empty(header: Sequence[str], rows: Sequence[tuple[str, ...]]) -> tuple[list[str], list[tuple[str, ...]]]:
    """Leave out the columns in which no row has a value: an imported file has no rates, and nothing to check."""
    full = [row for row in rows if len(row) > 1]
    used = [i for i in range(len(header)) if not full or any(row[i] not in NOTHING for row in full)]
    return [header[i] for i in used], [tuple(row[i] for i in used) if len(row) > 1 else row for row in rows]


def _print_summary(summaries: Sequence[SuiteSummary]) -> None:
    """Print how providers compare over all cases; nothing for a single case."""
    if not summaries:
        return
    header = ("over all cases", "compared", "geometric mean speedup", "at least as fast (fast_1)")
    lines = [
        (
            summary.provider,
            f"{summary.compared} of {summary.cases}",
            "-" if summary.speedup is None else f"×{significant(summary.speedup)}",
            f"{100 * summary.fast_1:.0f} %",
        )
        for summary in summaries
    ]
    table("", header, lines, text_columns=1)


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    if row["status"] != "ok":
        return (row["provider"], row["status"], *[""] * (len(HEADER) - 2))
    error = f"{row['error_ratio']:.3g}" if row["error_ratio"] is not None else "exact" * (row["max_abs_error"] == 0)
    mark = {True: error, False: f"WRONG {error}".strip(), None: "unchecked"}[row["accepted"]]
    return (
        row["provider"],
        _time(row),
        mark,
        speedup(row),
        row["verdict"] or ("baseline" if row["provider"] == row["baseline"] else "-"),
        quantity(row["achieved_flops_per_s"]),
        quantity(row["achieved_bytes_per_s"]),
        quantity(row["peak_memory_bytes"], "B"),
    )


def _time(row: Mapping[str, Any]) -> str:
    """Write a time with its interval in one unit: 12.5 ms (8.83 to 17.6)."""
    low, high = row["time_low_s"], row["time_high_s"]
    if low is None:
        return quantity(row["time_median_s"], "s")
    if not high < WIDEST * low:
        return f"{quantity(row['time_median_s'], 's')} (wider than ×{WIDEST:g})"
    value, interval = (text.replace(NBSP, " ") for text in bounded(row["time_median_s"], low, high, "s"))
    return f"{value} ({interval.rsplit(' ', 1)[0]})"


def speedup(row: Mapping[str, Any]) -> str:
    """Write how many times as fast as the baseline, with the 95 % interval: ×1.83 (1.79 to 1.88)."""
    if row["ratio"] is None:
        return ""
    if row["ratio_low"] is None:
        return f"×{significant(1 / row['ratio'])} (?)"
    value, low, high = (significant(1 / row[name]) for name in ("ratio", "ratio_high", "ratio_low"))
    return f"×{value} ({low} to {high})" if row["ratio_high"] < WIDEST * row["ratio_low"] else f"×{value} (?)"


def _remarks(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each reason why providers did not run or have no verdict, and for each wrong result."""
    reasons = [(row["provider"], row["status"], row["error_message"]) for row in rows if row["status"] != "ok"]
    counts = {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)}
    lines = [
        f"{name} {status} in {number_of(count, 'case')}: {one_line(text)}"
        for (name, status, text), count in counts.items()
    ]
    lines += [
        f"{row['provider']} in {row['case']}: {row['invalid_reason']}" for row in rows if row.get("invalid_reason")
    ]
    unclear = [(row["case"], str(row["verdict_reason"])) for row in rows if row["verdict"] is None]
    lines += [f"{case}: {reason}" for case, reason in dict.fromkeys(unclear) if reason.startswith("no verdict:")]
    lines += [
        f"INCONCLUSIVE: {reason}; {advice}" for reason, advice in dict.fromkeys(map(_of_one_process, rows)) if reason
    ]
    unchecked = [row for row in rows if row["status"] == "ok" and row["accepted"] is None and row["error_note"]]
    lines += [f"{row['provider']} is unchecked in {row['case']}: {_shortened(row['error_note'])}" for row in unchecked]
    wrong = [row for row in rows if row["accepted"] is False]
    return lines + [f"{row['provider']} is WRONG in {row['case']}: {_shortened(row['error_note'])}" for row in wrong]


def _of_one_process(row: Mapping[str, Any]) -> tuple[str, str]:
    """Return why one process is inconclusive, and what to do about it; empty for several."""
    if row["verdict"] != "INCONCLUSIVE" or row["processes"] != 1:
        return "", ""
    measured = row["source"] == "measured"
    advice = "--processes 5 measures several" if measured else "import a file of another run beside it"
    return str(row["verdict_reason"]), advice


def _shortened(note: str | None) -> str:
    """Return the first complaints about a result; a result of many tensors may have a hundred, all in its row."""
    complaints = (note or "").split("; ")
    return "; ".join(complaints[:COMPLAINTS]) + (
        f"; and {len(complaints) - COMPLAINTS} more" if len(complaints) > COMPLAINTS else ""
    )


def _ceilings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = {
        f"ceilings here, {row['dtype']}: {quantity(row['matmul_ceiling_flops_per_s'], 'FLOP/s')}, "
        f"{quantity(row['copy_ceiling_bytes_per_s'], 'B/s')} ({row['ceiling_source']})": None
        for row in rows
        if row["ceiling_source"]
    }
    return list(lines)
