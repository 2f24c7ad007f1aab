"""Tables of the report: what was run, how it ended, what was fitted, and where it ran."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.predictions import PredictedQuantity, predict_loss_at, predict_memory, predict_step_time
from scalebench.analysis.series import Series
from scalebench.analysis.surfaces import Surface
from scalebench.analysis.trends import Trend
from scalebench.analysis.trials import LOSS, LOSS_SE, MEMORY_PEAKS, STEP_TIME, N, SizeAxis, numeric
from scalebench.reporting.quantities import NOT_MEASURED, bounded, formula, percent, present, quantity, symbol

NEXT_FACTORS = (2, 4, 10)
PREFIXED = ("s", "B")  # units of predicted quantities that take a prefix
MAX_ROWS = 1000
SHORT_PEAKS = ("allocated", "tracked", "process")  # of MEMORY_PEAKS, for the heads of columns

Cell = tuple[str, float | str | None]  # what is printed, and what the column sorts by


@dataclass(frozen=True)
class Table:
    """A table of the page: every cell printed as its text; a number as sort key also aligns it to the right."""

    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @property
    def numeric(self) -> tuple[bool, ...]:
        """Whether a column holds numbers, the gaps among them apart."""
        return tuple(any(isinstance(row[i][1], int | float) for row in self.rows) for i in range(len(self.columns)))


def number(value: Any, unit: str = "", digits: int = 3) -> Cell:
    """Return the cell of a measured number."""
    return quantity(value, unit, digits), float(value) if present(value) else None


def word(value: Any) -> Cell:
    """Return the cell of any other value, an em dash for a missing one; true and false as a study file has them."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower(), str(value).lower()
    if isinstance(value, float) and present(value):
        return f"{value:g}", value
    return (str(value), str(value)) if present(value) else (NOT_MEASURED, None)


def table(caption: str, columns: Sequence[str], rows: Iterable[Sequence[Cell]], series: int = 0) -> Table:
    """Make a table; one whose first column names the series loses it where there is but one series."""
    first = 1 if series == 1 else 0
    shown = [tuple(row[first:]) for row in rows]
    cut = f" The first {MAX_ROWS:,} of {len(shown):,} rows." if len(shown) > MAX_ROWS else ""
    return Table(caption + cut, tuple(columns[first:]), tuple(shown[:MAX_ROWS]))


# --- tables ----------------------------------------------------------------------------------------------------------


def axes_table(study: Mapping[str, Any]) -> Table:
    """Return what was varied, one axis per row."""
    axes = study.get("axes") or {}
    shown = ((name, values if isinstance(values, list) else [values]) for name, values in axes.items())
    rows = [(word(name), number(len(values)), word(", ".join(word(v)[0] for v in values))) for name, values in shown]
    return Table("Axes of the study; their values multiply.", ("axis", "values", "which"), tuple(rows))


def problems_table(frame: pd.DataFrame, x: SizeAxis) -> Table:
    """Return the trials that did not end ok, or are invalid, each with its reason."""
    bad = frame[(frame["status"] != "ok") | frame["invalid_reason"].notna()]
    columns = ("trial", "size", "status", "last step", "reason")
    rows = [
        (
            word(row["trial_id"]),
            number(row[x.column]),
            word(status_of(row)),
            number(row.get("stop_step")),
            word(reason(row)),
        )
        for _, row in bad.iterrows()
    ]
    return table("Trials that are out of every fit, and why.", columns, rows)


def status_of(row: pd.Series[Any]) -> str:
    """Return the status, marked where the record is invalid."""
    return f"{row['status']}, invalid" if present(row["invalid_reason"]) else str(row["status"])


def reason(row: pd.Series[Any]) -> str | None:
    """Return why a trial is not ok, from its record; None for a good one."""
    error = ": ".join(str(row[c]) for c in ("error_class", "error_message") if c in row and present(row[c]))
    invalid = f"invalid: {row['invalid_reason']}" if present(row["invalid_reason"]) else ""
    return "; ".join(filter(None, (error, invalid))) or (None if row["status"] == "ok" else "no reason was recorded")


def trials_table(frame: pd.DataFrame, axes: Iterable[str]) -> Table:
    """Return every trial, failed ones included, the study's varying axes as columns."""
    extra = [axis for axis in axes if axis in frame and axis not in ("params", N)]
    measured = {
        "validation loss (nats)": (LOSS, "", 5), "± (validation)": (LOSS_SE, "", 2), "step time": (STEP_TIME, "s", 3),
        "latency": ("latency_median_s", "s", 3), "p95": ("latency_p95_s", "s", 3),
        "first token": ("prefill_time_s", "s", 3), "each further token": ("decode_time_per_token_s", "s", 3),
        "weights": ("weight_bytes", "B", 3), "cache": ("kv_cache_bytes", "B", 3),
        "tokens/s": ("tokens_per_s", "", 3), "achieved": ("achieved_flops_per_s", "FLOP/s", 3),
        **{f"{title} peak": (name, "B", 3) for name, title in zip(MEMORY_PEAKS, SHORT_PEAKS, strict=True)},
        "energy": ("energy_j", "J", 3),
    }  # fmt: skip
    shown = {title: how for title, how in measured.items() if numeric(frame, how[0]).notna().any()}
    values = {title: numeric(frame, name).tolist() for title, (name, _, _) in shown.items()}
    rows = []
    for i, (_, row) in enumerate(frame.iterrows()):
        axis_cells = [word(row[axis]) for axis in extra]
        cells = [number(values[title][i], unit, digits) for title, (_, unit, digits) in shown.items()]
        size = (f"{row[N]:,.0f}", float(row[N])) if present(row[N]) else word(None)
        rows.append((word(row["trial_id"]), size, *axis_cells, word(status_of(row)), *cells, word(reason(row))))
    columns = ("trial", "N (non-embedding parameters)", *extra, "status", *shown, "reason")
    return table("Every trial, by size.", columns, rows)


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
            text, interval = bounded(value, *trend.interval(parameter), unit=unit)
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


ENVIRONMENT = (
    *("machine_id", "device_kind", "device_name", "cpu_model", "threads", "platform"),
    *("python_version", "torch_version", "triton_version", "ptxas_version"),
    *("git_commit", "git_dirty", "code_fingerprint", "data_sha256"),
    *("timing_method", "energy_method", "memory_split_method", "peak_source"),
)


def environment_table(frame: pd.DataFrame) -> Table:
    """Return machine and software, with the number of trials of each value where trials differ."""
    rows = []
    for name in (name for name in ENVIRONMENT if name in frame):
        values = frame[name].dropna().astype(str).value_counts().sort_index()
        text = "; ".join(f"{value} ({n} trials)" if len(values) > 1 else str(value) for value, n in values.items())
        differs = "differs between trials" if len(values) > 1 else ""
        rows.append((word(name), word(text or None), word(differs)))
    return Table("Environment of the trials.", ("what", "value", "note"), tuple(rows))
