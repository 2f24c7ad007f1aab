"""Figures of served models: what they answer by size, how long requests wait by load, and goodput."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pandas as pd

from scalebench.analysis.serving import ANSWERED, GOODPUT, SHARE, TIME_PER_REQUEST, Served, capacity_trends, served
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import N, numeric
from scalebench.reporting.figures.base import curve_sentence, draw_curve
from scalebench.reporting.figures.costs import laws
from scalebench.reporting.quantities import NBSP, quantity, scale, tick
from scalebench.reporting.svg import MUTED, PAPER, Marks, finish, legend, log_ticks, ramp, series_styles
from scalebench.reporting.tables import Cell, Rows, number, share, table, word
from scalebench.reporting.views import Caption, FigureSpec

FIRST, TOKEN, LATENCY = "first_token_time", "token_time", "request_time"


def name_of(model: Served) -> str:
    """Return what a served model is called: its size, and its settings where others have its size."""
    return ", ".join(filter(None, (quantity(model.size), model.label)))


def per_s(value: Any) -> str:
    """Format a rate of requests: 84.2 requests/s."""
    return f"{quantity(value)}{NBSP}requests/s"


def styles(models: Sequence[Served]) -> list[dict[str, Any]]:
    """Return colour and marker of each model: from light to dark where they differ in size alone."""
    if any(model.label for model in models):
        return series_styles(range(len(models)))
    return [{"color": color, "marker": "o"} for color in ramp(len(models))]


def waiting_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Median time to the first token against the requests that arrive, with a bar to the highest percentile known."""
    models = [model for model in served(study) if numeric(model.trials, f"{FIRST}_median_s").notna().any()]
    if not models:
        return None
    factor, unit = scale(float(pd.concat([m.trials[f"{FIRST}_median_s"] for m in models]).median()), "s")
    rows = Rows(len(models))
    for model, style in zip(models, styles(models), strict=True):
        trials = model.trials
        median = numeric(trials, f"{FIRST}_median_s") / factor
        high = numeric(trials, f"{FIRST}_p99_s").fillna(numeric(trials, f"{FIRST}_p95_s")) / factor
        marks.bars(trials["arrived"], median, high, color=style["color"], linewidth=1.2)
        marks.axes.plot(trials["arrived"], median, color=style["color"], linewidth=1)
        piled = trials["saturated"].eq(True)
        for chosen, face in ((~piled, style["color"]), (piled, PAPER)):
            titles = [
                f"{name_of(model)}: {quantity(wait * factor, 's')} at {per_s(rate)}"
                for rate, wait in zip(trials.loc[chosen, "arrived"], median[chosen], strict=True)
            ]
            label = name_of(model) if face != PAPER else None
            marks.draw(
                trials.loc[chosen, "arrived"], median[chosen], titles, **style, markerfacecolor=face, label=label
            )
        rows.add(trials, partial(_waiting_cells, model))
    _rates(marks, "x")
    marks.axes.set_yscale("log")
    log_ticks(marks.axes.yaxis, *marks.axes.get_ylim())
    marks.axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    marks.axes.set_ylabel(f"time to the first token ({unit})")
    legend(marks)
    columns = ("model", "arriving per s", "answered per s", "first token", "its p95", "its p99", "per further token",
               "its p99", "whole request", "in flight", "batch", "piled up")  # fmt: skip
    return Caption(
        "From the arrival of a request to its first token: marks are medians"
        + (
            ", bars extend to the 99th percentile (the 95th of fewer than 100 requests)"
            if "bars" in marks.drawn
            else ""
        )
        + ". Lines join the loads of one model."
        + (
            " Hollow: requests piled up, so that a longer run would show longer waits."
            if "hollow" in marks.drawn
            else ""
        ),
        table("Waiting by load.", columns, rows),
    )


def _waiting_cells(model: Served, row: pd.Series[Any]) -> Sequence[Cell]:
    piled = {True: "yes", False: "no"}.get(row["saturated"]) if pd.notna(row["saturated"]) else None
    names = (f"{FIRST}_median_s", f"{FIRST}_p95_s", f"{FIRST}_p99_s", f"{TOKEN}_median_s", f"{TOKEN}_p99_s",
             f"{LATENCY}_median_s")  # fmt: skip
    return (word(name_of(model)), number(row["arrived"]), number(row.get(ANSWERED)),
            *(number(row.get(name), "s") for name in names), number(row.get("in_flight_mean")),
            number(row.get("batch_mean")), word(piled))  # fmt: skip


def goodput_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Requests answered within the objectives per second, against those that arrive."""
    models = [model for model in served(study) if numeric(model.trials, GOODPUT).notna().any()]
    if not models:
        return None
    rows = Rows(len(models))
    arriving = pd.concat([model.trials["arrived"] for model in models])
    ends = [float(arriving.min()), float(arriving.max())]
    marks.axes.plot(ends, ends, color=MUTED, linestyle="--", linewidth=1, label="all that arrive")
    for model, style in zip(models, styles(models), strict=True):
        known = model.trials[numeric(model.trials, GOODPUT) > 0]
        good = numeric(known, GOODPUT)
        titles = [
            f"{name_of(model)}: {per_s(value)} of {quantity(rate)}"
            for rate, value in zip(known["arrived"], good, strict=True)
        ]
        marks.axes.plot(known["arrived"], good, color=style["color"], linewidth=1)
        marks.draw(known["arrived"], good, titles, **style, label=name_of(model))
        rows.add(model.trials, partial(_goodput_cells, model))
    _rates(marks, "x")
    _rates(marks, "y")
    marks.axes.set_ylabel("requests/s within the objectives")
    legend(marks)
    return Caption(
        "Requests per second that were answered within the objectives; on the dashed line all of them were.",
        table("Goodput by load.", ("model", "arriving per s", "within the objectives per s", "share"), rows),
    )


def _goodput_cells(model: Served, row: pd.Series[Any]) -> Sequence[Cell]:
    return word(name_of(model)), number(row["arrived"]), number(row.get(GOODPUT)), share(row.get(SHARE))


def capacity_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Seconds that a request costs with a full batch, against size, with the fitted law."""
    models = [model for model in served(study) if model.capacity]
    if len({model.size for model in models}) < 2:
        return None
    trends = capacity_trends(study)
    values = pd.concat([numeric(model.timed, TIME_PER_REQUEST) for model in models])
    factor, unit = scale(float(values.median()), "s")
    rows: list[Sequence[Cell]] = []
    for (label, trend), style in zip(trends.items(), series_styles(range(len(trends))), strict=True):
        own = [model for model in models if model.label == label]
        timed = pd.concat([model.timed for model in own])
        times = numeric(timed, TIME_PER_REQUEST)
        titles = [f"{quantity(n)}: {quantity(t, 's')} a request" for n, t in zip(timed[N], times, strict=True)]
        marks.draw(timed[N], times / factor, titles, **style, label=label or None)
        draw_curve(marks, trend, timed[N].tolist(), factor=factor, color=style["color"])
        for model in own:
            assert model.capacity is not None
            rows.append((word(name_of(model)), *map(number, model.capacity), number(1 / model.capacity.value, "s")))
    finish(marks, f"time per request at capacity ({unit})", log=True)
    curve = curve_sentence(marks, f"the fitted trend{laws(list(trends.values()))}")
    what = "One over the requests per second that are answered while the batch is full; one mark per trial."
    return Caption(
        f"{what} {curve}".rstrip(),
        table("Capacity by size.", ("model", "requests per s", "95 % low", "high", "time per request"), rows),
    )


def _rates(marks: Marks, which: str) -> None:
    """Make an axis of requests per second logarithmic where it spans more than a factor of four."""
    axes = marks.axes
    axis = getattr(axes, f"{which}axis")
    low, high = getattr(axes, f"get_{which}lim")()
    data = getattr(axes.dataLim, f"interval{which}")
    if data[0] > 0 and data[1] > 4 * data[0]:
        getattr(axes, f"set_{which}scale")("log")
        low, high = getattr(axes, f"get_{which}lim")()
        log_ticks(axis, low, high)
        axis.set_major_formatter(lambda value, _: tick(value))
    if which == "x":
        axes.set_xlabel("requests that arrive (1/s)")


CAPACITIES = FigureSpec("capacity", "Time per request at capacity, against size", capacity_figure, optional=True)
WAITING = FigureSpec("waiting", "Time to the first token against load", waiting_figure)
GOOD = FigureSpec("goodput", "Requests within the objectives against load", goodput_figure, optional=True)
