"""Tables of fits: parameters, how each law was fitted, hold-out errors, and predictions beyond the data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scalebench.analysis.predictions import PredictedQuantity, predict_loss_at, predict_memory, predict_step_time
from scalebench.analysis.series import Series
from scalebench.analysis.surfaces import Surface
from scalebench.analysis.trends import Trend
from scalebench.reporting.quantities import bounded, formula, percent, symbol
from scalebench.reporting.tables import Cell, Table, number, table, word

NEXT_FACTORS = (2, 4, 10)
PREFIXED = ("s", "B")  # units of predicted quantities that take a prefix


def _trends(one: Series) -> dict[str, tuple[Trend, str]]:
    """Name the fits of a series: each trend with the unit of what it predicts."""
    return {
        "loss": (one.loss_all, ""),
        "step time": (one.step_time, "s"),
        "memory": (one.memory, "B"),
    }


def _named_trends(series: Sequence[Series], surfaces: Sequence[Surface]) -> Iterator[tuple[str, Trend, str]]:
    """Yield every fit by its name, with its unit: those of each series, and those of the ``surfaces``."""
    for one in series:
        for name, (trend, unit) in _trends(one).items():
            yield ", ".join(filter(None, (one.label, name))), trend, unit
    for surface in surfaces:
        yield ", ".join(filter(None, (surface.label, "loss, size and data"))), surface.trend, ""


def parameters_table(series: Sequence[Series], surfaces: Sequence[Surface] = ()) -> Table:
    """Return every fitted parameter with its interval and how its fit ended, or why there is no fit."""
    rows: list[tuple[Cell, ...]] = []
    for name, trend, unit in _named_trends(series, surfaces):
        if trend.fit is None:
            rows.append((word(name), word(None), word(None), word(None), word(f"no fit: {trend.reason}")))
            continue
        for parameter, value in trend.fit.parameters.items():
            of_cost = parameter in trend.fit.law.coefficients  # exponents have no unit
            text, interval = bounded(value, *trend.interval(parameter), unit=unit if of_cost else "")
            held = parameter in trend.fit.bounds_hit
            ended = "at its bound: one-sided interval" if held else str(trend.fit.status).replace("_", " ")
            rows.append((word(name), word(symbol(parameter)), (text, value), word(interval), word(ended)))
    return Table("Fitted parameters.", ("fit", "parameter", "value", "95 % interval", "how the fit ended"), tuple(rows))


def fits_table(series: Sequence[Series], surfaces: Sequence[Surface] = ()) -> Table:
    """Return how each fit was made: law, objective, agreement of its starts, and where its intervals come from."""
    rows = []
    for name, trend, _ in _named_trends(series, surfaces):
        if trend.fit is None:
            continue
        told = trend.fit.to_dict()
        objective = f"{told['loss']} (δ = {told['delta']:g}), {told['space']} space"
        rows.append((word(name), word(formula(told["formula"])), word(objective), number(told["objective"]),
                     word(told["status"].replace("_", " ")), word(f"{told['starts_agreeing']} of {told['starts']}"),
                     number(told["n_points"]), number(told["n_configurations"]),
                     word(told["interval_method"])))  # fmt: skip
    columns = ("fit", "law", "objective", "its sum", "status", "starts that agree", "trials", "sizes", "intervals from")
    return Table("How each law was fitted.", columns, tuple(rows))


def backtest_table(series: Sequence[Series]) -> Table:
    """Return how each larger size was predicted from the sizes below it."""
    rows = [
        (word(one.label or "all trials"), number(held.size), (f"{held.predicted:.3f}", held.predicted),
         (f"{held.measured:.3f}", held.measured), (percent(held.error_percent / 100), held.error_percent),
         (percent(held.naive_error_percent / 100), held.naive_error_percent),
         word({None: "no interval", True: "yes", False: "no"}[held.inside_interval]))
        for one in series for held in one.backtest
    ]  # fmt: skip
    columns = ("series", "held-out size", "predicted (nats)", "measured (nats)", "error",
               "error of repeating the next-smaller size", "inside the 95 % interval")  # fmt: skip
    return table("Each size predicted from the smaller ones only.", columns, rows, len(series))


def predictions_table(series: Sequence[Series]) -> Table:
    """Return loss, step time and memory predicted for sizes beyond the data, with intervals of a new run."""
    rows = []
    for one in (one for one in series if len(one.sizes)):
        largest = float(one.sizes["size"].max())
        for factor in NEXT_FACTORS:
            size = factor * largest
            cells = [
                _predicted_cell(predict(one, size)) for predict in (predict_loss_at, predict_step_time, predict_memory)
            ]
            rows.append((word(one.label or "all trials"), number(size), word(f"×{factor}"), *cells))
    columns = ("series", "size", "beyond the data", "loss in nats (95 %)", "step time (95 %)", "memory (95 %)")
    caption = "Predictions for a new run; each reaches beyond the data as stated."
    return table(caption, columns, rows, len(series))


def _predicted_cell(predicted: PredictedQuantity) -> Cell:
    """Return value and interval, with the value to sort by."""
    if predicted.value is None:
        return word(None)
    low, high = (np.nan if end is None else end for end in (predicted.low, predicted.high))
    value, interval = bounded(predicted.value, low, high, unit=predicted.unit if predicted.unit in PREFIXED else "")
    return f"{value} ({interval})", predicted.value


def fit_tables(series: Sequence[Series], surfaces: Sequence[Surface]) -> tuple[Table, ...]:
    """Return all that tells of fits; ``surfaces`` are those of size and data."""
    parameters, made = parameters_table(series, surfaces), fits_table(series, surfaces)
    return parameters, backtest_table(series), predictions_table(series), made
