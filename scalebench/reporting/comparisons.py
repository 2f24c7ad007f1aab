"""Comparisons on the page: what is faster than what, whether it is right, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.trials import numeric
from scalebench.reporting import comparison_figures as drawing
from scalebench.reporting.comparison_figures import UNITS, Part, part_of, share_of_ceiling
from scalebench.reporting.quantities import NBSP, bounded, percent, present, significant
from scalebench.reporting.tables import ENVIRONMENT, Cell, Table, number, table, word
from scalebench.reporting.views import Download, FigureView, downloads, drawn
from scalebench.store.comparisons import Comparisons, latest, went_wrong

MAX_EMBEDDED_BYTES = 600_000  # of CSV and of JSON each, over all operations
WIDEST = 1000.0
DIRECTIONS = {False: "Results", True: "Gradients"}


@dataclass(frozen=True)
class PartView:
    """One direction on one machine: figures and tables."""

    title: str
    figures: tuple[FigureView, ...]
    verdicts: Table
    details: Table


@dataclass(frozen=True)
class ComparisonSection:
    """One operation of the page."""

    id: str
    title: str
    verdict: tuple[str, ...]
    counts: str
    providers: Table
    problems: Table
    parts: tuple[PartView, ...]
    environment: Table
    commands: tuple[str, ...]
    methods: tuple[str, ...]
    downloads: tuple[Download, ...]


def sections_of(compared: Comparisons) -> list[ComparisonSection]:
    """Return a section per operation and source of the newest rows of every case."""
    newest = latest(compared.frame)
    names = list(newest["operation"].drop_duplicates())
    return [_section(i, name, newest[newest["operation"] == name], len(names)) for i, name in enumerate(names, 1)]


def _section(number_: int, name: str, frame: pd.DataFrame, sections: int) -> ComparisonSection:
    ident, providers = f"comparison{number_}", list(frame["provider"].drop_duplicates())
    keys = ["source", "backward", "machine_id"]
    groups = [(key, part_of(rows, providers)) for key, rows in frame.groupby(keys, dropna=False)]
    machines = frame["machine_id"].nunique()
    parts = [
        _part(f"{ident}-{i}", _title(key, part.frame, machines > 1), part) for i, (key, part) in enumerate(groups, 1)
    ]
    raw = frame.reset_index(drop=True)
    return ComparisonSection(
        id=ident,
        title=f"{name}: providers compared",
        verdict=tuple(sentence.replace(" %", f"{NBSP}%") for _, part in groups for sentence in sentences(name, part)),
        counts=_counts(frame),
        providers=_providers_table(frame),
        problems=_problems_table(frame),
        parts=tuple(parts),
        environment=_environment_table(frame),
        commands=tuple(frame["command"].dropna().drop_duplicates()),
        methods=METHODS,
        downloads=tuple(downloads(f"compare-{name}", raw, MAX_EMBEDDED_BYTES // sections)),
    )


def _title(key: Any, frame: pd.DataFrame, several: bool) -> str:
    source, backward, machine = key
    title = DIRECTIONS[bool(backward)] + (f" (from {source})" if source != "measured" else "")
    device = frame["device_name"].combine_first(frame["cpu_model"]).iloc[0]
    return f"{title} on {device if present(device) else 'a machine'}" + (f" ({machine})" if several else "")


def _part(name: str, title: str, part: Part) -> PartView:
    views = [
        drawn(f"{name}-{key}", heading, partial(draw, part=part), possible=False)
        for key, (heading, draw) in drawing.FIGURES.items()
    ]
    found = tuple(view for view in views if view is not None)
    return PartView(title, found, verdicts_table(part), details_table(part.frame))


# --- sentences -------------------------------------------------------------------------------------------------------


def sentences(name: str, part: Part) -> Iterator[str]:
    """Say first which right provider is fastest how often, then how each stands to the baseline."""
    frame = part.frame
    what = f"{name}, {DIRECTIONS[bool(frame['backward'].iloc[0])].lower()}"
    right = frame[(frame["status"] == "ok") & frame["accepted"].ne(False) & (numeric(frame, "time_median_s") > 0)]
    if right.empty:
        yield f"No conclusion on {what}: no provider ran and was right."
        return
    fastest = right.loc[right.groupby("case")["time_median_s"].idxmin().astype(int)]["provider"].value_counts()
    best = sorted(fastest.items(), key=lambda item: (-item[1], str(item[0])))
    cases = frame["case"].nunique()
    told = ", ".join(f"{provider} in {count}" for provider, count in best)
    yield f"Shortest median time for {what}, of {cases} case{'s' * (cases > 1)}: {told}."
    for provider in part.providers:
        rows = frame[frame["provider"] == provider]
        if len(rows) and (rows["provider"] != rows["baseline"]).any():
            yield _standing(provider, rows)


def _standing(provider: str, rows: pd.DataFrame) -> str:
    baseline, judged = rows["baseline"].iloc[0], rows[rows["verdict"].notna()]
    states = rows.loc[rows["status"] != "ok", "status"].value_counts()
    wrong = int(rows["accepted"].eq(False).sum())
    ends = [f"{status} in {count}" for status, count in states.items()] + [f"WRONG in {wrong}"] * bool(wrong)
    if judged.empty:
        return f"{provider}: {', '.join(ends) or 'no verdict'} of {len(rows)} cases."
    counts = judged["verdict"].value_counts()
    words = [f"{word_.lower()} in {counts[word_]}" for word_ in ("FASTER", "SAME", "SLOWER", "INCONCLUSIVE")
             if word_ in counts]  # fmt: skip
    mean = significant(float(np.exp(-np.log(numeric(judged, "ratio")).mean())))
    return (
        f"{provider} against {baseline}: {', '.join([*words, *ends])} of {len(rows)} cases; "
        f"×{mean} as fast in the geometric mean."
    )


def _counts(frame: pd.DataFrame) -> str:
    cases, providers = frame.groupby("backward")["case"].nunique().sum(), frame["provider"].nunique()
    statuses = frame["status"].value_counts()
    ended = ", ".join(f"{statuses[name]} {name}" for name in sorted(statuses.index, key=lambda n: (n != "ok", n)))
    runs = frame["run"].nunique()
    source = f"from {runs} run{'s' * (runs > 1)}; of each case the newest"
    load, cores = numeric(frame, "load_average").max(), numeric(frame, "cpu_count").max()
    busy = f" The machine was busy: load average {load:.1f} on {cores:.0f} cores." if load > 0.5 * cores else ""
    return f"{cases} cases and {providers} providers, {len(frame)} rows: {ended} ({source}).{busy}"


# --- tables ----------------------------------------------------------------------------------------------------------


def _providers_table(frame: pd.DataFrame) -> Table:
    rows = []
    for name, part in frame.groupby("provider", sort=False):
        summary = part["summary"].dropna()
        gone = part.loc[part["status"].isin(["unavailable", "oom"]), "error_message"].dropna().value_counts()
        why = "; ".join(f"{text} ({count} case{'s' * (count > 1)})" for text, count in gone.items())
        rows.append((word(name), word(summary.iloc[0] if len(summary) else None), word(why or None)))
    return table("Providers, and where they could not run.", ("provider", "what it is", "could not run"), rows)


def _problems_table(frame: pd.DataFrame) -> Table:
    """Return wrong results one by one, and crashes by provider and reason with the cases they were in."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for _, row in went_wrong(frame).iterrows():
        wrong = row["status"] == "ok"
        reason = row["error_note"] if wrong else f"{row['error_class']}: {row['error_message']}"
        groups.setdefault((row["provider"], "wrong" if wrong else row["status"], str(reason)), []).append(row["case"])
    rows = [
        (word(provider), word(what), word(reason), number(len(cases)),
         word("; ".join(cases[:3]) + (f"; and {len(cases) - 3} more" if len(cases) > 3 else "")))
        for (provider, what, reason), cases in groups.items()
    ]  # fmt: skip
    columns = ("provider", "what", "reason", "cases", "which")
    return table("Results that were not accepted, and crashes.", columns, rows)


def verdicts_table(part: Part) -> Table:
    """Return time, rate, memory, error and verdict of every provider and case."""
    rate, rows = part.rate, []
    for _, row in ran(part.frame).iterrows():
        rows.append((
            word(row["case"]), word(row["provider"]), word(_word(row)), *_speed_cells(row), word(_rightness(row)),
            number(row["error_ratio"]), *_time_cells(row), number(row[rate], UNITS[rate]), share_of_ceiling(row, rate),
            number(row["peak_memory_bytes"], "B"),
        ))  # fmt: skip
    columns = ("case", "provider", "verdict", "speed over baseline", "95 % interval", "right", "error over eager's",
               "time", "95 % interval", "rate", "of the ceiling", "memory above inputs")  # fmt: skip
    return table("Providers by case, but for those that ran in none.", columns, rows)


def ran(frame: pd.DataFrame) -> pd.DataFrame:
    """Leave out providers that are unavailable in every case: they stand, with the reason, among the providers."""
    absent = frame["status"].eq("unavailable").groupby(frame["provider"]).transform("all")
    return frame[~absent]


def _time_cells(row: pd.Series[Any]) -> tuple[Cell, Cell]:
    time, low, high = (float(row[f"time_{name}_s"]) for name in ("median", "low", "high"))
    if not present(row["time_median_s"]):
        return word(None), word(None)
    return _bounded(time, low, high, "s")


def _speed_cells(row: pd.Series[Any]) -> tuple[Cell, Cell]:
    if not present(row["ratio"]):
        return word(None), word(None)
    value, low, high = (1 / float(row[name]) for name in ("ratio", "ratio_high", "ratio_low"))
    (text, key), interval = _bounded(value, low, high)
    return (f"×{text}", key), interval


def _bounded(value: float, low: float, high: float, unit: str = "") -> tuple[Cell, Cell]:
    """Return the cells of a value and its interval; one over three orders of magnitude is not written out."""
    if not high <= WIDEST * low:
        return number(value, unit), word("no interval" if np.isnan(low) else f"over{NBSP}×{WIDEST:,.0f}{NBSP}wide")
    text, interval = bounded(value, low, high, unit)
    return (text, value), word(interval.replace(" ", NBSP))


def _rightness(row: pd.Series[Any]) -> str | None:
    if row["status"] != "ok":
        return None
    return {True: "yes", False: "NO"}.get(row["accepted"], "not checked")


def _word(row: pd.Series[Any]) -> str:
    if row["status"] != "ok":
        return str(row["status"])
    return str(row["verdict"]) if present(row["verdict"]) else str(row["verdict_reason"])


def details_table(frame: pd.DataFrame) -> Table:
    """Return how every number was measured: spread, samples, noise, why it stopped, first call, reasons."""
    rows = []
    for _, row in ran(frame).iterrows():
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
               "preparing", "first call", "calls a sample", "largest error", "eager's", "why this verdict")  # fmt: skip
    return table("How each number was measured.", columns, rows)


def _environment_table(frame: pd.DataFrame) -> Table:
    rows = []
    for name in (*(n for n in ENVIRONMENT if n in frame), "ceiling_source", "memory_method"):
        values = list(dict.fromkeys(frame[name].dropna().astype(str)))
        if values:
            rows.append(
                (word(name), word("; ".join(values)), word("differs between rows" if len(values) > 1 else None))
            )
    return Table("Environment of the runs.", ("what", "value", "note"), tuple(rows))


METHODS = (
    "The providers of a case take turns in random order within a process, and the whole is repeated in fresh "
    "processes. Sampling stops at the target noise of the median, when more samples no longer bring its noise down, or "
    "at the time limit. Preparing and the first call, compilation included, are kept apart; the time is the geometric "
    "mean over processes of their medians. Outliers are counted, none is dropped. Rows from pytest-benchmark were "
    "measured one provider after the other, each file a process.",
    "The speed is the baseline's time over the provider's, process by process. Its 95 % interval is a bootstrap over "
    "processes and samples, widened by Student's t for their small number. FASTER, SLOWER and SAME are said only where "
    "the whole interval lies beyond, or within, the equivalence margin of each row; everything else is INCONCLUSIVE, "
    "and so is a single process. Wrong results, and different machines, are not judged.",
    "Right is a result whose largest error against a float64 reference is at most twice that of the plain eager path "
    "in the same precision, or a few float32 units in the last place. FLOPs and bytes are the least that the operation "
    "needs, the same for every provider.",
)
