"""Figures of a comparison: time and rate against size, and the roofline; one colour and marker per provider."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.trials import numeric
from scalebench.reporting.quantities import percent, present, quantity, scale
from scalebench.reporting.svg import MUTED, Marks, finish, series_styles
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

FLOPS, BYTES = "achieved_flops_per_s", "achieved_bytes_per_s"
CEILINGS = {FLOPS: "matmul_ceiling_flops_per_s", BYTES: "copy_ceiling_bytes_per_s"}
UNITS = {FLOPS: "FLOP/s", BYTES: "B/s"}
NAMES = {FLOPS: "FLOP/s", BYTES: "bandwidth"}


LINES = " Lines join cases that differ only in size."
ROOF = (
    " Dashed: the roof, the smaller of a copy's rate times the intensity and a matrix product's rate, both measured in "
    "the same run; points above it were served by caches."
)


@dataclass(frozen=True)
class Part:
    """The rows of one direction on one machine, and what their figures share.

    ``providers`` fixes colours over all parts; ``x`` is the column of sizes and ``x_label`` its name; ``variants`` are
    the columns that keep cases from lying on one line.
    """

    frame: pd.DataFrame
    providers: Sequence[str]
    x: str
    x_label: str
    variants: tuple[str, ...]
    rate: str

    @property
    def timed(self) -> pd.DataFrame:
        """The rows that have a time, smallest first."""
        timed = self.frame[(self.frame["status"] == "ok") & (numeric(self.frame, "time_median_s") > 0)]
        return timed[numeric(timed, self.x) > 0].sort_values(self.x, kind="stable")


def part_of(frame: pd.DataFrame, providers: Sequence[str]) -> Part:
    """Choose the size axis: a number of the shape that grows while the others stay equal; else FLOPs or bytes per call.

    What the size determines (a batch that shrinks as the length grows) may change with it. Cases that share no such
    axis are not joined by lines: each is its own variant.
    """
    rate = rate_of(frame)
    shapes = [str(name) for name in frame if str(name).startswith("shape_")]
    frame = frame.assign(
        **{
            name: frame[name].map(str)
            for name in shapes
            if frame[name].map(lambda value: isinstance(value, list)).any()
        }
    )
    cases = frame.drop_duplicates("case")
    varying = [name for name in shapes if cases[name].nunique(dropna=False) > 1]
    sizes = [name for name in varying if pd.api.types.is_numeric_dtype(cases[name]) and cases[name].dtype != bool]
    others = [name for name in (*varying, "dtype") if name not in sizes]
    # Of equal choices not the batch: where it varies beside a length, it falls as that grows.
    for size in sorted(sizes, key=lambda name: (-cases[name].nunique(), name == "shape_batch")):
        variants = _variants(cases, size, others, [name for name in sizes if name != size])
        if cases.groupby(variants, dropna=False)[size].nunique().median() >= 2:
            return Part(frame, providers, size, size.removeprefix("shape_").replace("_", " "), tuple(variants), rate)
    x, label = ("flops", "FLOPs per call") if rate == FLOPS else ("bytes_moved", "bytes per call")
    if not (numeric(frame, x) > 0).any():
        x, label = "case_index", "case"
        frame = frame.assign(case_index=numeric(frame, "case_index") + 1)
    return Part(frame, providers, x, label, ("case",), rate)


def _variants(cases: pd.DataFrame, size: str, others: Sequence[str], rest: Sequence[str]) -> list[str]:
    """Return the columns that must be equal for cases to differ only in size, those with fewest values first."""
    variants, waiting = list(others), sorted(rest, key=lambda name: cases[name].nunique())
    while True:
        groups = [group for _, group in cases.groupby(variants, dropna=False)]
        free = [name for name in waiting if not all(_follows(group, name, size) for group in groups)]
        if not free:
            return variants
        variants.append(free[0])
        waiting.remove(free[0])


def _follows(cases: pd.DataFrame, name: str, size: str) -> bool:
    """Return whether the size determines a column that rises or falls monotonically with it."""
    by_size = cases.groupby(size)[name]
    first = by_size.first()
    return bool(by_size.nunique().max() == 1 and (first.is_monotonic_increasing or first.is_monotonic_decreasing))


def rate_of(frame: pd.DataFrame) -> str:
    """Return the rate that limits the operation: FLOP/s above the ridge of the roofline, bandwidth below."""
    intensity = (numeric(frame, "flops") / numeric(frame, "bytes_moved")).median()
    ridge = (numeric(frame, CEILINGS[FLOPS]) / numeric(frame, CEILINGS[BYTES])).median()
    return FLOPS if intensity > (ridge if np.isfinite(ridge) else 10.0) else BYTES


def _lines(marks: Marks, part: Part, x: pd.Series[Any], y: pd.Series[Any], titles: Sequence[str]) -> None:
    """Draw each provider's marks, joined along the cases that differ only in size."""
    timed, title_of = part.timed, dict(zip(part.timed.index, titles, strict=True))
    styles = series_styles(range(len(part.providers)))
    for i, name in enumerate(part.providers):
        rows = timed[timed["provider"] == name]
        if rows.empty:
            continue
        style = styles[i]
        marks.draw(x[rows.index], y[rows.index], [title_of[j] for j in rows.index], **style, label=name, markersize=5.5)
        for _, line in rows.groupby(list(part.variants), dropna=False):
            if len(line) > 1:
                marks.axes.plot(x[line.index], y[line.index], color=style["color"], linewidth=1, alpha=0.55)
                marks.drawn.add("joined")


def time_figure(marks: Marks, part: Part) -> Caption | None:
    """Median time of a call against size, with the 95 % interval over processes."""
    timed = part.timed
    if timed.empty:
        return None
    times = numeric(timed, "time_median_s")
    factor, unit = scale(float(times.median()), "s")
    edges = (times.min() / 4, times.max() * 4)  # an interval over ten decades would compress the times
    for i, name in enumerate(part.providers):
        own = timed[timed["provider"] == name]
        low, high = (numeric(own, f"time_{end}_s").clip(*edges) / factor for end in ("low", "high"))
        marks.bars(own[part.x], low, high, color=series_styles(range(len(part.providers)))[i]["color"], linewidth=1.2)
    titles = [f"{r['provider']}, {r['case']}: {quantity(r['time_median_s'], 's')}" for _, r in timed.iterrows()]
    _lines(marks, part, timed[part.x], times / factor, titles)
    finish(marks, f"time per call ({unit})", log=True)
    marks.axes.set_xlabel(part.x_label)
    rows = [(word(r["case"]), word(r["provider"]), number(r[part.x]), number(r["time_median_s"], "s"),
             number(r["time_low_s"], "s"), number(r["time_high_s"], "s")) for _, r in timed.iterrows()]  # fmt: skip
    return Caption(
        "Median time per call"
        + (
            "; bars are its 95 % interval over processes, cut at four times the extremes." * ("bars" in marks.drawn)
            or "."
        )
        + LINES * ("joined" in marks.drawn),
        table("Time per call.", ("case", "provider", part.x_label, "median", "low", "high"), rows),
    )


def rate_figure(marks: Marks, part: Part) -> Caption | None:
    """Achieved rate against size, with the ceiling measured in the same run."""
    timed = part.timed[numeric(part.timed, part.rate) > 0]
    if timed.empty:
        return None
    part = Part(timed, part.providers, part.x, part.x_label, part.variants, part.rate)
    rates, ceilings = numeric(timed, part.rate), _ceilings(timed, part.rate)
    factor, unit = scale(float(max([rates.max(), *ceilings.values()])), UNITS[part.rate])
    titles = [f"{r['provider']}, {r['case']}: {quantity(r[part.rate], UNITS[part.rate])}" for _, r in timed.iterrows()]
    _lines(marks, part, timed[part.x], rates / factor, titles)
    for name, height in ceilings.items():
        label = f"{name} {quantity(height, UNITS[part.rate])}"
        marks.axes.axhline(height / factor, color=MUTED, linestyle="--", linewidth=1.2, label=label)
    finish(marks, f"achieved {unit}", log=True)
    marks.axes.set_xlabel(part.x_label)
    rows = [(word(r["case"]), word(r["provider"]), number(r[part.x]), number(r[part.rate], UNITS[part.rate]),
             share_of_ceiling(r, part.rate)) for _, r in timed.iterrows()]  # fmt: skip
    work = "FLOPs of the operation" if part.rate == FLOPS else "minimum of bytes to move"
    return Caption(
        f"The {work} over the median time.{LINES * ('joined' in marks.drawn)}"
        + (_ceiling_sentence(part.rate) if ceilings else " No ceiling was measured."),
        table(f"Achieved {NAMES[part.rate]}.", ("case", "provider", part.x_label, "rate", "of ceiling"), rows),
    )


def _ceiling_sentence(rate: str) -> str:
    by = "matrix product" if rate == FLOPS else "copy"
    cached = "" if rate == FLOPS else " Small cases that fit in a cache may exceed the rate of a copy."
    return f" Dashed: ceiling measured in the same run by a {by}.{cached}"


def _ceilings(frame: pd.DataFrame, rate: str) -> dict[str, float]:
    """Return the measured ceilings by name: one copy rate for all dtypes, one matrix product rate for each dtype."""
    if rate == BYTES:
        best = numeric(frame, CEILINGS[BYTES]).max()
        return {"copy": float(best)} if best > 0 else {}
    by_dtype = numeric(frame, CEILINGS[FLOPS]).groupby(frame["dtype"]).max().dropna()
    return {f"{dtype} product": float(value) for dtype, value in by_dtype.items()}


def share_of_ceiling(row: pd.Series[Any], rate: str) -> Cell:
    """Return the cell of an achieved rate as a share of its ceiling."""
    achieved, ceiling = row[rate], row[CEILINGS[rate]]
    if not (present(achieved) and present(ceiling)):
        return word(None)
    return percent(achieved / ceiling, sign=False), float(achieved / ceiling)


def roofline_figure(marks: Marks, part: Part) -> Caption | None:
    """Achieved FLOP/s against arithmetic intensity, under the measured roof."""
    frame = part.timed
    frame = frame[(numeric(frame, FLOPS) > 0) & (numeric(frame, "bytes_moved") > 0)]
    if frame.empty or not (numeric(frame, CEILINGS[BYTES]) > 0).any():
        return None
    frame = frame.assign(intensity=numeric(frame, "flops") / numeric(frame, "bytes_moved"))
    part = Part(frame, part.providers, "intensity", "arithmetic intensity (FLOP per byte)", part.variants, part.rate)
    frame = part.timed
    products, copy = _ceilings(frame, FLOPS), _ceilings(frame, BYTES)["copy"]
    factor, unit = scale(max([float(numeric(frame, FLOPS).max()), *products.values()]), "FLOP/s")
    for i, name in enumerate(part.providers):
        own = frame[frame["provider"] == name]
        titles = [
            f"{name}, {r['case']}: {quantity(r[FLOPS], 'FLOP/s')} at {quantity(r['intensity'])} FLOP per byte"
            for _, r in own.iterrows()
        ]
        marks.draw(
            own["intensity"],
            numeric(own, FLOPS) / factor,
            titles,
            **series_styles(range(len(part.providers)))[i],
            label=name,
        )
    ridges = [peak / copy for peak in products.values()]
    x = np.geomspace(min([frame["intensity"].min(), *ridges]) / 1.5, max([frame["intensity"].max(), *ridges]) * 1.5, 80)
    for label, peak in products.items():
        marks.axes.plot(x, np.minimum(peak, x * copy) / factor, color=MUTED, linestyle="--", linewidth=1.2,
                        label=f"{label}, copy")  # fmt: skip
    finish(marks, f"achieved {unit}", log=True)
    marks.axes.set_xlabel(part.x_label)
    marks.axes.xaxis.set_major_formatter("{x:g}")  # a ratio has no prefixes
    rows = [(word(r["case"]), word(r["provider"]), number(r["intensity"]), number(r[FLOPS], "FLOP/s"),
             number(min(x for x in (r["intensity"] * copy, r[CEILINGS[FLOPS]]) if present(x)), "FLOP/s"))
            for _, r in frame.iterrows()]  # fmt: skip
    return Caption(
        "Rate achieved against arithmetic intensity (FLOPs over the minimum of bytes to move)."
        + (ROOF if products else " No matrix product was measured, so that there is no roof."),
        table("Roofline.", ("case", "provider", "FLOP per byte", "achieved", "roof"), rows),
    )


TIMES = FigureSpec("time", "Time per call against size", time_figure, optional=True)
RATES = FigureSpec("rate", "Achieved rate against size", rate_figure, optional=True)
ROOFLINE = FigureSpec("roofline", "Roofline", roofline_figure, optional=True)
FIGURES = (TIMES, RATES, ROOFLINE)
