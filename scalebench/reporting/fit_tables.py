"""Tables of fits: parameters, how each law was fitted, hold-out errors, and predictions beyond the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalebench.analysis.predictions import PredictedQuantity, predict_loss_at, predict_size
from scalebench.analysis.series import Series, ranked, to_fit
from scalebench.analysis.surfaces import Surface
from scalebench.analysis.trends import Trend
from scalebench.analysis.trials import PARAMETERS
from scalebench.reporting.quantities import (
    CLEAR,
    NO_INTERVAL,
    NO_SPREAD,
    PREFIXED,
    bounded,
    decimals_of,
    formula,
    percent,
    symbol,
    uncertain,
)
from scalebench.reporting.sentences import within_noise
from scalebench.reporting.tables import Cell, Table, number, table, word

if TYPE_CHECKING:
    from scalebench.laws import Fit

NEXT_FACTORS = (2, 4, 10)
NO_FIT: Cell = ("no fit", None)
EXPONENT = 4  # the column of the ranking
HEADINGS = {"validation loss": "loss in nats"}
PROJECTED = ("validation loss", "step time", "memory", "training time", "compute", "data", "checkpoint", "energy")


def _trends(series: Series) -> dict[str, tuple[Trend, str]]:
    """Return the fits of a series by name, each with the unit of what it predicts."""
    return {
        "loss": (series.loss_all, ""),
        "step time": (series.step_time, "s"),
        "memory": (series.memory, "B"),
    }


def _named_trends(all_series: Sequence[Series], surfaces: Sequence[Surface]) -> Iterator[tuple[str, Trend, str]]:
    """Yield every fit by its name, with its unit: those of each series, and those of the ``surfaces``."""
    for series in all_series:
        for name, (trend, unit) in _trends(series).items():
            yield ", ".join(filter(None, (series.label, name))), trend, unit
    for surface in surfaces:
        yield ", ".join(filter(None, (surface.label, "loss, size and data"))), surface.trend, ""


def parameters_table(all_series: Sequence[Series], surfaces: Sequence[Surface] = ()) -> Table:
    """Return every fitted parameter with its interval and how its fit ended, or why there is no fit."""
    rows: list[tuple[Cell, ...]] = []
    for name, trend, unit in _named_trends(all_series, surfaces):
        if trend.fit is None:
            rows.append((word(name), word(None), word(None), word(None), word(f"no fit: {trend.reason}")))
            continue
        for parameter, value in trend.fit.parameters.items():
            has_unit = parameter in trend.fit.law.coefficients  # exponents have none
            text, interval = bounded(value, *trend.interval(parameter), unit=unit if has_unit else "")
            at_bound = parameter in trend.fit.bounds_hit
            ended = "at its bound: one-sided interval" if at_bound else str(trend.fit.status).replace("_", " ")
            value_cell: Cell = (text, value)
            if parameter in trend.fit.undetermined:  # the ends of its interval are those of the search
                value_cell, ended, interval = ("not determined", None), _why_open(trend.fit, parameter), ""
            rows.append((word(name), word(symbol(parameter)), value_cell, word(interval or None), word(ended)))
    return Table(
        "Fitted parameters.", ("fit", "parameter", "value", "95 % interval", "status"), tuple(rows), appendix=True
    )


def _why_open(fit: Fit, parameter: str) -> str:
    """Return why the points do not determine a parameter, other parameters by their symbols."""
    reason = fit.undetermined[parameter]
    other = reason.removesuffix(" is not")
    return f"{symbol(other)} is not determined" if other in fit.parameters else formula(reason)


def fits_table(all_series: Sequence[Series], surfaces: Sequence[Surface] = ()) -> Table:
    """Return how each fit was made: law, objective, agreement of its starts, and where its intervals come from."""
    rows = []
    for name, trend, _ in _named_trends(all_series, surfaces):
        if trend.fit is None:
            continue
        fit = trend.fit.to_dict()
        objective = f"{fit['loss']} (δ = {fit['delta']:g}), {fit['space']} space"
        rows.append((word(name), word(formula(fit["formula"])), word(objective), number(fit["objective"]),
                     word(fit["status"].replace("_", " ")), word(f"{fit['starts_agreeing']} of {fit['starts']}"),
                     number(fit["n_points"]), number(fit["n_configurations"]),
                     word(fit["interval_method"])))  # fmt: skip
    columns = ("fit", "law", "objective", "value", "status", "starts that agree", "trials", "sizes", "intervals from")
    return Table("How each law was fitted.", columns, tuple(rows), appendix=True)


def backtest_table(all_series: Sequence[Series]) -> Table:
    """Return how each larger size was predicted from the sizes below it."""
    rows = [
        (word(series.label or "all trials"), number(forecast.size), (f"{forecast.predicted:.3f}", forecast.predicted),
         (f"{forecast.measured:.3f}", forecast.measured),
         (percent(forecast.error_percent / 100), forecast.error_percent),
         (percent(forecast.naive_error_percent / 100), forecast.naive_error_percent),
         word({None: "no interval", True: "yes", False: "no"}[forecast.inside_interval]))
        for series in all_series for forecast in series.backtest
    ]  # fmt: skip
    columns = ("series", "held-out size", "predicted (nats)", "measured (nats)", "error",
               "error of repeating the next-smaller loss", "inside the 95 % interval")  # fmt: skip
    predicted = table("Each size predicted from the smaller ones only.", columns, rows, len(all_series))
    return replace(predicted, topic="prediction")


def ranking_table(all_series: Sequence[Series]) -> Table:
    """Return the series by their loss at their largest size, lowest first, which are within noise of it, and exponents.

    The exponent of a series beyond those ``to_fit`` is that of its means, without an interval.
    """
    rows, places, fitted = [], ranked(all_series), {id(series) for series in to_fit(all_series)}
    for series in places:
        best, last = places[0].sizes.iloc[-1], series.sizes.iloc[-1]
        behind, digits = last["mean"] - best["mean"], decimals_of(float(np.hypot(last["se"], best["se"])))
        above = f"{behind:.{digits}f}", float(behind)
        near = "within noise of the lowest" if within_noise(last, best) else "higher"
        place = "lowest" if series is places[0] else near
        loss = uncertain(last["mean"], last["se"]), float(last["mean"])
        exponent = _exponent(series.loss_all if id(series) in fitted else series.loss_of_means)
        rows.append((word(series.label or "all trials"), number(last["size"]), loss, above, exponent,
                     word(place)))  # fmt: skip
    columns = ("series", "largest size", "loss there (nats)", "above the lowest (nats)", "exponent", "verdict")
    caption = f"Series by their loss at the largest size; noise is {CLEAR:g} combined standard errors."
    if all(row[EXPONENT] == NO_FIT for row in rows):
        return Table(caption, _without(columns, EXPONENT), tuple(_without(row, EXPONENT) for row in rows))
    caption += " Exponents are those of the fitted laws, with 95 % intervals."
    if len(fitted) < len(places):
        caption += " Exponents without an interval come from laws fitted to the means."
    return Table(caption, columns, tuple(rows))


def _without(cells: tuple[Any, ...], place: int) -> tuple[Any, ...]:
    return (*cells[:place], *cells[place + 1 :])


def _exponent(trend: Trend) -> Cell:
    """Return the exponent of a law with its interval, where it has one; "no fit" of a refused fit."""
    if trend.fit is None:
        return NO_FIT
    name = next(iter(trend.fit.law.exponents), None)
    if name is None:
        return word(None)
    value = trend.fit.parameters[name]
    text, interval = bounded(value, *trend.interval(name))
    note = "at its bound" if name in trend.fit.bounds_hit else "" if interval == NO_INTERVAL else interval
    return f"{text} ({note})" if note else text, value


def predictions_table(all_series: Sequence[Series]) -> Table:
    """Return what sizes beyond the data will need and reach, with intervals of a new run.

    Quantities that no series can project have no column. Where none has a law, the rows are the reasons.
    """
    projected = [
        (series, factor, size, _answers(series, size))
        for series in all_series if len(series.sizes)
        for factor in NEXT_FACTORS for size in [factor * float(series.sizes["size"].max())]
    ]  # fmt: skip
    per_row = [answers for *_, answers in projected]
    predicted = [name for name in PROJECTED if any(name in each and each[name].value is not None for each in per_row)]
    if not {*predicted} - {"data"}:
        return _no_projections(all_series)
    rows = [
        (word(series.label or "all trials"), number(size), word(f"×{factor}"),
         *(projected_cell(answers.get(name), "\n") for name in predicted))
        for series, factor, size, answers in projected
    ]  # fmt: skip
    columns = ("series", "size", "largest size ×", *(HEADINGS.get(name, name) for name in predicted))
    caption = "Projections for a new run beyond the data, with 95 % intervals."
    compute = [answers["compute"] for answers in per_row if "compute" in answers]
    caption += compute_note(compute, list(dict.fromkeys(series.counting.reason for series in all_series)))
    return replace(table(caption, columns, rows, len(all_series)), topic="projection")


def compute_note(projected: Sequence[PredictedQuantity], reasons: Sequence[str] = ()) -> str:
    """Return whether compute is counted or by the law, in a sentence that begins with a space; "" if there is none.

    ``reasons`` are why it is not counted.
    """
    by = {answer.by for answer in projected if answer.value is not None}
    if by == {"counted"}:
        return " Compute is counted, for the models that the family builds at these sizes."
    if by == {"counted", "law"}:
        return " Compute is counted where it has no interval, else by the law."
    why = "; ".join(filter(None, reasons))
    return f" Compute is by the law, not counted{f': {why}' if why else ''}." if by else ""


def _answers(series: Series, size: float) -> dict[str, PredictedQuantity]:
    """Return what a series projects at a place on its x axis, by the names of the quantities."""
    if series.x is not PARAMETERS:
        return {"validation loss": predict_loss_at(series, size)}
    return {answer.quantity: answer for answer in predict_size(series, size).quantities}


def _no_projections(all_series: Sequence[Series]) -> Table:
    """Return why no series has a law to project by, the series of one reason together."""
    reasons: dict[str, list[str]] = {}
    for series in all_series:
        reasons.setdefault(series.loss_all.reason or "its law has no values", []).append(series.label or "all trials")
    rows = [(word(", ".join(labels)), word(reason)) for reason, labels in reasons.items()]
    return Table(
        "Nothing is projected beyond the data: no quantity has a law.", ("series", "law of the loss"), tuple(rows)
    )


def projected_cell(predicted: PredictedQuantity | None, between: str = " ") -> Cell:
    """Return the cell of value and interval with ``between`` them, the value alone where it is known without one."""
    if predicted is None or predicted.value is None:
        return word(None)
    unit = predicted.unit if predicted.unit in PREFIXED else ""
    if predicted.low is None or predicted.high is None:
        text, key = number(predicted.value, unit, 4 if predicted.unit == "nats" else 3)
        return f"{text}{between}({NO_INTERVAL})" if predicted.trend else text, key
    value, interval = bounded(predicted.value, predicted.low, predicted.high, unit=unit)
    return value if interval == NO_SPREAD else f"{value}{between}({interval})", predicted.value


def fitted_note(all_series: Sequence[Series]) -> str:
    """Return a sentence where the laws of some series only are shown; it begins with a space."""
    fitted = to_fit(all_series)
    if len(fitted) == len(all_series):
        return ""
    return f" Of the {len(fitted)} of {len(all_series)} series with the lowest loss at their largest size."


def fit_tables(all_series: Sequence[Series], surfaces: Sequence[Surface]) -> tuple[Table, ...]:
    """Return every table of fits, of the series ``to_fit``; ``surfaces`` are those of size and data."""
    fitted, note = to_fit(all_series), fitted_note(all_series)
    of_fits = (predictions_table(fitted), backtest_table(fitted), parameters_table(fitted, surfaces),
               fits_table(fitted, surfaces))  # fmt: skip
    predictions, *others = (replace(table, caption=table.caption + note) for table in of_fits)
    rankings = [ranking_table(all_series)] if len(ranked(all_series)) > 1 else []
    return (*rankings, predictions, *others) if len(all_series) > len(fitted) else (predictions, *rankings, *others)
