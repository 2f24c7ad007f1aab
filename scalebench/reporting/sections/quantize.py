"""Quantisation: what fewer bits add to the loss by size and by data, their bytes and their time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from scalebench.analysis.quantising import (
    Slope,
    data_trends,
    last_of_runs,
    levels,
    means,
    precision_law,
    quantised,
    size_trends,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import N, numeric
from scalebench.reporting.outcomes import Finding, Outcome, law_text
from scalebench.reporting.quantities import bounded, formula, interval_words, quantity, symbol
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of
from scalebench.reporting.sections.quantize_figures import (
    BY_DATA,
    BY_SIZE,
    LATENCY,
    RATIO,
    nats_text,
    size_text,
    unit_of,
)
from scalebench.reporting.tables import Table, number, share, table, word
from scalebench.reporting.views import FigureSpec

USUAL = "4 bits"  # the level by which published findings are judged


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield what each level stores, the trends, and the law."""
    rows = quantised(study)
    if rows.empty:
        return
    yield _bytes_table(rows)
    yield _trends_table(rows, study)
    yield _law_table(study)


def _bytes_table(rows: pd.DataFrame) -> Table:
    cells = []
    for level, part in levels(last_of_runs(rows)):
        for size, group in part.groupby(N):
            row = group.iloc[0]
            cells.append((
                word(level), number(size), number(row["quantized_matrices"]), share(row["quantized_share"]),
                number(row["weight_bytes_before"], "B"), number(row["closed_form_bytes"], "B"),
                number(row["weight_bytes"], "B"), word(row["round_trip_equal"]),
            ))  # fmt: skip
    columns = (
        "level", "size", "matrices", "of the parameters", "unchanged", "closed form", "real", "round trip equal",
    )  # fmt: skip
    return table("What is stored. Simulated bits save no bytes: their closed form is what packing would take.", columns,
                 cells)  # fmt: skip


def _trends_table(rows: pd.DataFrame, study: StudyAnalysis) -> Table:
    cells = []
    for axis, slopes in (("size", size_trends(rows)), (unit_of(study), data_trends(rows))):
        for slope in slopes:
            text, interval = bounded(slope.value, slope.low, slope.high)
            cells.append((word(slope.level), word(axis), (text, slope.value), word(interval), number(slope.runs)))
    columns = ("level", "doubling of", "change of the loss added (nats)", "95 % interval of all together", "runs")
    return table("How the loss added changes with size and with data.", columns, cells)


def _law_table(study: StudyAnalysis) -> Table:
    trend = precision_law(study)
    if trend.fit is None:
        return table(
            "Law of the loss added.", ("law", "status"), [(word("precision"), word(f"no fit: {trend.reason}"))]
        )
    cells = []
    for name, value in trend.fit.parameters.items():
        text, interval = bounded(value, *trend.interval(name))
        cells.append((word(symbol(name)), (text, value), word(interval), word(trend.fit.status.replace("_", " "))))
    about = f"{formula(trend.fit.law.formula)}: {trend.fit.n_points} trials of {trend.fit.n_configurations} runs"
    return table(f"Law of the loss added, {about}.", ("parameter", "value", "95 % interval", "status"), cells)


# --- sentences -------------------------------------------------------------------------------------------------------


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield what the levels add, whether larger and longer trained models lose more, the law, and bytes and time."""
    rows = quantised(study)
    if rows.empty:
        return
    largest = last_of_runs(rows)
    largest = largest[largest[N] == largest[N].max()]
    if by_data := data_trends(rows):
        yield _verdict("Models trained longer", by_data, f"per doubling of the {unit_of(study)}")
    if by_size := size_trends(rows):
        same = rows.groupby(N)["data"].mean().nunique() == 1
        yield _verdict(f"Larger models{' trained on as much data' * same}", by_size, "per doubling of the size")
    each = [f"{level} {nats_text(*_mean(part))}" for level, part in levels(largest)]
    yield f"Loss added to the largest model ({size_text(largest[N].max())}): {', '.join(each)}."
    yield _law_sentence(study)
    yield from _costs(largest)


def _verdict(models: str, slopes: Sequence[Slope], per: str) -> str:
    """Return at which levels the loss added rises, falls, or does neither beyond the noise between runs."""
    runs = max(slope.runs for slope in slopes)
    if not any(slope.sign for slope in slopes):
        widest = max(slopes, key=lambda slope: abs(slope.value))
        return (
            f"{models} lose neither more nor less at any of {len(slopes)} levels, beyond the noise between "
            f"{runs} runs: the largest change is at {widest.level}, {_change(widest)}, {per}."
        )
    parts = [f"{text} at {_level_changes(chosen)}" for text, sign in (("more", 1), ("less", -1))
             if (chosen := [slope for slope in slopes if slope.sign == sign])]  # fmt: skip
    unclear = [slope.level for slope in slopes if not slope.sign]
    rest = f"; at {', '.join(unclear)} the noise between runs hides any change" if unclear else ""
    return f"{models} lose {' and '.join(parts)}, {per} over {runs} runs{rest}."


def _level_changes(slopes: Sequence[Slope]) -> str:
    return ", ".join(f"{slope.level} ({_change(slope)})" for slope in slopes)


def _change(slope: Slope) -> str:
    text, interval = bounded(slope.value, slope.low, slope.high)
    return f"{'+' if slope.value > 0 else ''}{text} nats, {interval_words(interval)}"


def _law_sentence(study: StudyAnalysis) -> str:
    trend = precision_law(study)
    if trend.fit is None:
        return f"Kumar's law of precision is not fitted: {trend.reason}."
    if trend.no_interval:
        return f"Kumar's law of precision is fitted without intervals: {trend.no_interval}."
    values = {name: (value, *trend.interval(name)) for name, value in trend.fit.parameters.items()}
    of_data, of_bits, (value, low, high) = bounded(*values["gamma_D"]), bounded(*values["gamma"]), values["gamma_N"]
    of_size = bounded(-value, -high, -low)
    return (
        f"By Kumar's law the loss added goes as D^{of_data[0]} ({of_data[1]}) and N^{of_size[0]} ({of_size[1]}), and "
        f"falls by a factor e every {of_bits[0]} bits ({of_bits[1]})."
    )


def _costs(largest: pd.DataFrame) -> Iterator[str]:
    """Yield bytes and time of each scheme that saves any, at the largest size; times of trials that ran alone."""
    parts = []
    for level, part in levels(largest[largest["real"]]):
        stored = numeric(part, "weight_bytes") / numeric(part, "weight_bytes_before")
        alone = part["timing_exclusive"] != False  # noqa: E712 - also where it is not known
        ratios = numeric(part[alone], RATIO).dropna().sort_values()
        ends = dict.fromkeys(f"{ratios.iloc[i]:.2f}" for i in (0, -1) if len(ratios))
        time = f" and {' to '.join(ends)} times the latency" if ends else ""
        parts.append(f"{level} {100 * stored.median():.0f} % of the bytes{time}")
    if parts:
        yield f"The largest model takes with {'; with '.join(parts)}."


def _mean(part: pd.DataFrame) -> tuple[float, float]:
    row = means(part).iloc[0]
    return float(row["mean"]), float(row["se"])


def outcome(study: StudyAnalysis) -> Outcome:
    """Return the study's row on a page of several, with what Kumar et al. found about size and data."""
    rows = quantised(study)
    level, part = _usual(rows)
    source, noun = "Kumar et al., arXiv:2411.04330", f"loss added at {level}"
    findings = (
        _finding(
            part, N, "larger models trained on as much data lose less to quantisation", source, noun,
            largest_first=False, unit="parameters",
        ),
        _finding(
            part, "data", "models trained on more data lose more to quantisation", source, noun,
            largest_first=True, unit=unit_of(study),
        ),
    )  # fmt: skip
    return Outcome("loss added, bytes, latency", law_text(precision_law(study)), findings)


def _usual(rows: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the level by which findings are judged: 4 simulated bits, else the first level."""
    each = dict(levels(rows))
    level = USUAL if USUAL in each else next(iter(each), "")
    return level, each.get(level, rows)


def _finding(
    part: pd.DataFrame, column: str, published: str, source: str, noun: str, *, largest_first: bool, unit: str
) -> Finding:
    """Return a finding on the difference in the loss added between both ends of a column, seed by seed."""
    ends = part[column].min(), part[column].max()
    if not ends[0] < ends[1]:
        return Finding(published, source, reason=f"the models do not differ in {unit}")
    first, last = ends[::-1] if largest_first else ends
    effect = f"{noun}, {quantity(first)} minus {quantity(last)} {unit}"
    return Finding.of_differences(published, source, effect, _differences(part.groupby(column), last, first))


def _differences(groups: Any, first: float, second: float) -> list[float]:
    """Return the mean loss added in the group ``second`` minus that in ``first``, one of each seed that has both."""
    means_of = [groups.get_group(value).groupby("seed")["added"].mean() for value in (first, second)]
    return (means_of[1] - means_of[0]).dropna().tolist()


METHODS = (
    "Loss added is the difference of two losses on the same held-out samples; its standard error over the sample is "
    "paired and clustered by document or chain, that of a mean also has the spread between runs. Trends are least "
    "squares over runs for size, means over runs of each run's own slope for data, with Student's t intervals that "
    "hold for all levels together (Bonferroni). The law is fitted to those simulated bits, 2 and more, at which every "
    "trial lost.",
    DRAWN_WITH,
)
COLUMNS = (
    Column("loss before", "loss_before_nats", digits=4),
    Column("loss after", "validation_loss_nats", digits=4),
    Column("loss added", "loss_added_nats"),
    Column("± standard error", "loss_added_se_nats"),
    Column("bytes", "weight_bytes", "B"),
    Column("closed form", "closed_form_bytes", "B"),
    Column("latency", "latency_s", "s"),
    Column("unchanged", "latency_before_s", "s"),
    Column("ratio", RATIO),
    *RESOURCES,
)


def _figures(study: StudyAnalysis) -> Sequence[FigureSpec[StudyAnalysis]]:
    """Return the figures, that of the data first where one run gives several."""
    longer = bool(data_trends(quantised(study)))
    return (*((BY_DATA,) if longer else ()), BY_SIZE, LATENCY)


SECTION = StudySection(
    shows=lambda study: workload_of(study) == "quantize",
    sentences=sentences,
    figures=_figures,
    columns=lambda _: COLUMNS,
    methods=METHODS,
    tables=tables,
    outcome=outcome,
    strip=False,
)
