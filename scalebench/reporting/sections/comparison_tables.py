"""Tables of a comparison: providers, problems, verdicts, and how every number was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.suite import summarize_suite
from scalebench.errors import number_of
from scalebench.reporting.quantities import NBSP, bounded, percent, present, significant
from scalebench.reporting.sections.comparison_figures import UNITS, Part, share_of_ceiling
from scalebench.reporting.tables import ENVIRONMENT, Cell, Table, number, share, table, word
from scalebench.store.comparisons import went_wrong

VERDICTS = ("FASTER", "SAME", "SLOWER", "INCONCLUSIVE")
WIDEST = 1000.0  # high over low of an interval that is still written out


def providers_table(frame: pd.DataFrame) -> Table:
    """Return what each provider is, and why it could not run in some cases."""
    rows = []
    for name, part in frame.groupby("provider", sort=False):
        summary = part["summary"].dropna()
        gone = part.loc[part["status"].isin(["unavailable", "oom"]), "error_message"].dropna().value_counts()
        why = "; ".join(f"{text} ({number_of(count, 'case')})" for text, count in gone.items())
        rows.append((word(name), word(summary.iloc[0] if len(summary) else None), word(why or None)))
    return table("Providers, and why they could not run.", ("provider", "description", "could not run"), rows)


def problems_table(frame: pd.DataFrame) -> Table:
    """Return wrong results one by one, and crashes by provider and reason with the cases they were in."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for _, row in went_wrong(frame).iterrows():
        wrong = row["status"] == "ok"
        reason = row["error_note"] if wrong else f"{row['error_class']}: {row['error_message']}"
        groups.setdefault((row["provider"], "wrong" if wrong else row["status"], str(reason)), []).append(row["case"])
    rows = [
        (word(provider), word(stage), word(reason), number(len(cases)),
         word("; ".join(cases[:3]) + (f"; and {len(cases) - 3} more" if len(cases) > 3 else "")))
        for (provider, stage, reason), cases in groups.items()
    ]  # fmt: skip
    columns = ("provider", "problem", "reason", "cases", "which")
    return table("Wrong results and crashes.", columns, rows)


def suite_table(part: Part) -> Table:
    """Return each provider over all cases: how often it is faster or slower, and by how much in the geometric mean."""
    rows = []
    plain = part.frame.astype(object).where(part.frame.notna(), None)
    records = [{str(name): value for name, value in row.items()} for row in plain.to_dict("records")]
    ran = set(runnable(part.frame)["provider"])
    for suite in summarize_suite(records):
        if suite.provider not in ran:
            continue
        own = part.frame[part.frame["provider"] == suite.provider]
        counts = [number(int((own["verdict"] == name).sum())) for name in VERDICTS]
        speedup = word(None) if suite.speedup is None else (f"×{significant(suite.speedup)}", suite.speedup)
        rows.append((word(suite.provider), number(suite.cases), *counts, number(int(own["accepted"].eq(False).sum())),
                     speedup, share(suite.fast_1)))  # fmt: skip
    columns = ("provider", "cases", *(name.lower() for name in VERDICTS), "wrong", "geometric mean speedup",
               "share of cases at least as fast")  # fmt: skip
    return table(
        "Providers against the baseline, over all cases. Those that could not run in any are left out.", columns, rows
    )


def verdicts_table(part: Part) -> Table:
    """Return time, rate, memory, error and verdict of every provider and case."""
    rate, rows = part.rate, []
    for _, row in runnable(part.frame).iterrows():
        rows.append((
            word(row["case"]), word(row["provider"]), word(_verdict(row)), *_speed_cells(row), word(_correctness(row)),
            number(row["error_ratio"]), *_time_cells(row), number(row[rate], UNITS[rate]), share_of_ceiling(row, rate),
            number(row["peak_memory_bytes"], "B"),
        ))  # fmt: skip
    columns = ("case", "provider", "verdict", "speedup", "95 % interval", "correct", "error ÷ eager error",
               "time", "95 % interval", "rate", "of ceiling", "memory above inputs")  # fmt: skip
    return table("Providers by case. Providers that could not run in any case are left out.", columns, rows)


def runnable(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out providers that are unavailable in every case: the table of providers has them, with the reason."""
    absent = frame["status"].eq("unavailable").groupby(frame["provider"]).transform("all")
    return frame[~absent]


def _time_cells(row: pd.Series[Any]) -> tuple[Cell, Cell]:
    time, low, high = (_float(row[f"time_{name}_s"]) for name in ("median", "low", "high"))
    if not present(row["time_median_s"]):
        return word(None), word(None)
    return _bounded(time, low, high, "s")


def _speed_cells(row: pd.Series[Any]) -> tuple[Cell, Cell]:
    if not present(row["ratio"]):
        return word(None), word(None)
    value, low, high = (1 / _float(row[name]) for name in ("ratio", "ratio_high", "ratio_low"))
    (text, key), interval = _bounded(value, low, high)
    return (f"×{text}", key), interval


def _float(value: Any) -> float:
    """Return a cell as a number; NaN if empty, as the interval of a single process is."""
    return float(value) if present(value) else float("nan")


def _bounded(value: float, low: float, high: float, unit: str = "") -> tuple[Cell, Cell]:
    """Return the cells of a value and its interval; one wider than three orders of magnitude is not written out."""
    if not high <= WIDEST * low:
        return number(value, unit), word("no interval" if np.isnan(low) else f"wider than{NBSP}×{WIDEST:,.0f}")
    text, interval = bounded(value, low, high, unit)
    return (text, value), word(interval.replace(" ", NBSP))


def _correctness(row: pd.Series[Any]) -> str | None:
    if row["status"] != "ok":
        return None
    return {True: "yes", False: "NO"}.get(row["accepted"], "not checked")


def _verdict(row: pd.Series[Any]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    return str(row["verdict"]) if present(row["verdict"]) else str(row["verdict_reason"])


def details_table(frame: pd.DataFrame) -> Table:
    """Return how every number was measured: spread, samples, noise, stop reason, first call, reason of the verdict."""
    rows = []
    for _, row in runnable(frame).iterrows():
        noise = (percent(row["noise"], sign=False), float(row["noise"])) if present(row["noise"]) else word(None)
        why = row["verdict_reason"] if row["status"] == "ok" else row["error_message"]
        rows.append((
            word(row["case"]), word(row["provider"]), number(row["time_p20_s"], "s"), number(row["time_p80_s"], "s"),
            number(row["samples"]), number(row["outliers"]), number(row["processes"]), noise,
            word(row["stop_reasons"]), number(row["prepare_time_s"], "s"), number(row["first_call_time_s"], "s"),
            number(row["calls_per_sample"]), number(row["max_abs_error"]), number(row["eager_max_abs_error"]),
            word(why),
        ))  # fmt: skip
    columns = ("case", "provider", "p20", "p80", "samples", "outliers", "processes", "noise in a process", "stopped by",
               "preparation", "first call", "calls per sample", "largest error", "eager error",
               "reason of the verdict")  # fmt: skip
    return table("How each number was measured.", columns, rows)


def rows_environment_table(frame: pd.DataFrame) -> Table:
    """Return machine and software of the rows, and how ceilings and memory were measured."""
    rows = []
    for name in (*(n for n in ENVIRONMENT if n in frame), "ceiling_source", "memory_method"):
        values = list(dict.fromkeys(frame[name].dropna().astype(str)))
        if values:
            rows.append(
                (word(name), word("; ".join(values)), word("differs between rows" if len(values) > 1 else None))
            )
    return Table("Environment of the runs.", ("property", "value", "note"), tuple(rows))
