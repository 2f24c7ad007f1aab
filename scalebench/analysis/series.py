"""What a study's trials say: series, means per size, fitted laws, and how well they predicted the largest size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.laws import LAWS, FitRefused, fit
from scalebench.measure.statistics import combined_standard_error

if TYPE_CHECKING:
    from scalebench.laws import Fit, Forecast

Array = NDArray[np.float64]

N = "params_non_embedding"
LOSS = "validation_loss_nats"
LOSS_SE = "validation_loss_se_nats"
STEP_TIME = "step_time_median_s"

# The first of these that a series measured is "the" memory of its figure and fit: a device allocator's own count, the
# tensors tracked in the untimed pass, and only then the whole process, interpreter and libraries included.
MEMORY_PEAKS = {
    "peak_memory_allocated_bytes": "peak allocated memory",
    "memory_tracked_peak_bytes": "peak memory of the tracked tensors",
    "peak_rss_bytes": "peak resident memory of the process",
}

# These describe how large the model is, or only repeat it: they never split a study into series.
SIZE_AXES = frozenset({"params", "requested_params", N, "size", "depth", "width", "heads", "head_dim", "seed"})
ALWAYS_SPLIT = ("family", "implementation", "optimizer", "precision", "device_name")
TEXT_COLUMNS = frozenset({"status", "invalid_reason", "error_class", "error_message"})


@dataclass(frozen=True)
class Trend:
    """A fitted law, or the one-line reason why there is none; ``no_interval`` says why a fit has no intervals."""

    fit: Fit | None
    reason: str = ""
    no_interval: str = ""

    def at(self, value: float, kind: str = "new") -> tuple[float, float, float]:
        """Return prediction, low and high (95 %) at one size; NaN ends where there is no interval."""
        assert self.fit is not None
        x = np.array([value])
        low, high = self.band(x, kind)
        return float(self.fit.predict(x=x)[0]), float(low[0]), float(high[0])

    def band(self, x: Array, kind: str = "mean") -> tuple[Array, Array]:
        """Return low and high (95 %) at sizes x (n,)."""
        assert self.fit is not None
        if self.no_interval:
            return np.full(len(x), np.nan), np.full(len(x), np.nan)
        return self.fit.prediction_interval({"x": x}, kind=kind)

    def interval(self, parameter: str) -> tuple[float, float]:
        """Return the 95 % interval of a parameter; NaN ends where there is none."""
        assert self.fit is not None
        return (np.nan, np.nan) if self.no_interval else self.fit.interval(parameter)


@dataclass(frozen=True)
class HeldOut:
    """The largest size, predicted from the smaller ones; losses in nats, errors as fractions of the measured loss."""

    params: float
    measured: float
    predicted: float
    low: float
    high: float
    naive: float

    @property
    def error(self) -> float:
        """Prediction over measurement, less one."""
        return self.predicted / self.measured - 1

    @property
    def naive_error(self) -> float:
        """The same for repeating the loss of the next-smaller size."""
        return self.naive / self.measured - 1

    @property
    def inside(self) -> bool:
        """Whether the measured mean lies in the 95 % prediction interval of a new run."""
        return self.low <= self.measured <= self.high

    @property
    def has_interval(self) -> bool:
        """Whether the prediction came with an interval."""
        return bool(np.isfinite(self.low) and np.isfinite(self.high))


@dataclass(frozen=True)
class Series:
    """Trials that differ in size and seed only, with what was fitted to them.

    ``usable`` are the valid trials that ended ok (at each size the best of the tuned axes), ``sizes`` their means per
    size, ``loss`` the law fitted without the held-out size, ``loss_all`` the same on every size.
    """

    label: str
    trials: pd.DataFrame
    usable: pd.DataFrame
    sizes: pd.DataFrame
    loss: Trend
    loss_all: Trend
    held: HeldOut | None
    backtest: Sequence[Forecast]
    step_time: Trend
    memory: Trend
    memory_column: str | None
    notes: tuple[str, ...]
    noun: str  # what N counts: parameters, or data where that is what grows


PARAMETERS, DATA = "parameters", "tokens or samples seen"


def numeric(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return a column as floats, NaN where it is absent or not a number."""
    if column not in frame:
        return pd.Series(np.nan, index=frame.index, dtype=float)
    return pd.to_numeric(frame[column], errors="coerce").astype(float).replace([np.inf, -np.inf], np.nan)


def prepare(frame: pd.DataFrame) -> pd.DataFrame:
    """Return the trials with every column the report computes with, sorted by size; missing ones are all NaN."""
    frame = frame.copy()
    for column in ("status", "invalid_reason", "trial_id", "timing_exclusive"):
        frame[column] = frame[column].astype(object) if column in frame else None
    frame[N] = numeric(frame, N).fillna(numeric(frame, "params"))
    for column in (LOSS, LOSS_SE, STEP_TIME, *MEMORY_PEAKS, "seed"):
        frame[column] = numeric(frame, column)
    frame["noun"] = PARAMETERS
    frame["valid"] = (frame["status"] == "ok") & frame["invalid_reason"].isna() & (frame[N] > 0)
    # `!= False` also keeps a trial that does not say whether it had the machine to itself.
    frame["timed"] = frame["valid"] & (frame["timing_exclusive"] != False) & (frame[STEP_TIME] > 0)  # noqa: E712
    return frame.sort_values([N, "seed", "trial_id"], kind="stable").reset_index(drop=True)


def tuned_axes(study: Mapping[str, Any]) -> list[str]:
    """Return the axes of which each size keeps its best value."""
    return [str(axis) for axis in (study.get("fit") or {}).get("best_over") or []]


def split_columns(frame: pd.DataFrame, study: Mapping[str, Any]) -> list[str]:
    """Return the columns whose values make separate series: axes other than size, seed and tuned ones that vary."""
    axes = [axis for axis, values in (study.get("axes") or {}).items() if isinstance(values, list) and len(values) > 1]
    names = [name for name in dict.fromkeys([*ALWAYS_SPLIT, *axes]) if name in frame]
    leave_out = SIZE_AXES.union(tuned_axes(study))
    return [name for name in names if name not in leave_out and frame[name].dropna().astype(str).nunique() > 1]


def grown(frame: pd.DataFrame, study: Mapping[str, Any]) -> pd.DataFrame:
    """Return prepared trials with what the study grows in the place of N: the data, where all models have one size."""
    seen = numeric(frame, "tokens_seen").fillna(numeric(frame, "samples_seen"))
    columns = split_columns(frame, study)
    done = frame.assign(seen=seen)[frame["valid"]]
    amounts = done.groupby(columns, dropna=False)["seen"].nunique() if columns else pd.Series([done["seen"].nunique()])
    if frame[N].nunique() != 1 or not (amounts > 1).any():
        return frame
    by_data = frame.assign(noun=DATA, valid=frame["valid"] & (seen > 0))
    by_data[N] = seen
    return by_data.sort_values([N, "seed", "trial_id"], kind="stable").reset_index(drop=True)


def best_over(frame: pd.DataFrame, axes: Sequence[str]) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep, at each size, the trials of the tuned values with the lowest mean loss; say where one lies at an edge."""
    axes = [axis for axis in axes if axis in frame]
    if not axes or frame.empty:
        return frame, ()
    kept, notes = [], []
    for size, group in frame.groupby(N):
        means = group.groupby(axes, dropna=False)[LOSS].mean()
        if means.isna().all():
            continue
        best = means.idxmin()
        values = best if isinstance(best, tuple) else (best,)
        chosen = group[np.logical_and.reduce([group[axis] == value for axis, value in zip(axes, values, strict=True)])]
        kept.append(chosen)
        for axis, value in zip(axes, values, strict=True):
            tried = sorted(group[axis].dropna().unique())
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                where = "smallest" if value == tried[0] else "largest"
                notes.append(f"{axis}: the best value at {size:,.0f} parameters, {value:g}, is the {where} tried")
    return (pd.concat(kept) if kept else frame.iloc[:0]), tuple(notes)


def means_per_size(usable: pd.DataFrame) -> pd.DataFrame:
    """Return one row per size: trials, mean loss, its standard error, spread over seeds.

    Where only one seed ran, the spread between seeds is unknown: the error is the validation sample's alone.
    """
    rows = []
    for size, group in usable.dropna(subset=[LOSS]).groupby(N):
        both = combined_standard_error(group[LOSS].tolist(), group[LOSS_SE].fillna(0.0).tolist())
        alone = float(np.sqrt(np.nanmean(np.square(group[LOSS_SE])))) if group[LOSS_SE].notna().any() else np.nan
        rows.append((size, len(group), group[LOSS].mean(), alone if np.isnan(both) else both, group[LOSS].std(ddof=1)))
    return pd.DataFrame(rows, columns=["params", "trials", "mean", "se", "seed_sd"])


def try_fit(points: pd.DataFrame, law: str) -> Trend:
    """Fit ``law``, a law of the size alone, to the points (columns x, y, config), or say why not."""
    if law in LAWS and len(LAWS[law].inputs) > 1:
        return Trend(None, f"the law {law} needs {' and '.join(LAWS[law].inputs)}; these figures show size alone")
    try:
        fitted = fit(points, law=law)
    except FitRefused as refusal:
        return Trend(None, str(refusal))
    try:
        fitted.interval(fitted.law.parameters[0])
    except FitRefused as refusal:
        return Trend(fitted, no_interval=str(refusal))
    return Trend(fitted)


def trend_of(frame: pd.DataFrame, column: str, law: str) -> Trend:
    """Fit a column against N; seeds of one size are one configuration."""
    kept = frame[frame[column] > 0]
    points = pd.DataFrame({"x": kept[N], "y": kept[column], "config": kept[N].map("{:.0f}".format)})
    return try_fit(points.reset_index(drop=True), law)


def hold_out(trend: Trend, sizes: pd.DataFrame) -> HeldOut | None:
    """Compare the largest size with what the law fitted to the others says of it."""
    if trend.fit is None:
        return None
    size, measured = float(sizes["params"].iloc[-1]), float(sizes["mean"].iloc[-1])
    return HeldOut(size, measured, *trend.at(size), naive=float(sizes["mean"].iloc[-2]))


def rolling_backtest(trend: Trend) -> Sequence[Forecast]:
    """Return the predictions of every larger size from the smaller ones, or nothing where that is refused."""
    if trend.fit is None:
        return ()
    try:
        return trend.fit.backtest("rolling").forecasts
    except FitRefused:
        return ()


def analyse_series(label: str, trials: pd.DataFrame, study: Mapping[str, Any]) -> Series:
    """Fit everything the report shows to one series of prepared trials."""
    options = study.get("fit") or {}
    usable, notes = best_over(trials[trials["valid"]], tuned_axes(study))
    sizes, points, law = means_per_size(usable), usable.dropna(subset=[LOSS]), str(options.get("law") or "power")
    held_out = bool(options.get("holdout", "largest")) and len(sizes) > 1
    loss_all = trend_of(points, LOSS, law)
    loss = trend_of(points[points[N] < points[N].max()], LOSS, law) if held_out else loss_all
    column = next((name for name in MEMORY_PEAKS if usable[name].notna().any()), None)
    return Series(
        label, trials, usable, sizes, loss, loss_all,
        held=hold_out(loss, sizes) if held_out else None,
        backtest=rolling_backtest(loss_all),
        step_time=trend_of(trials[trials["timed"]], STEP_TIME, "offset_linear"),
        memory=trend_of(usable, column, "offset_linear") if column else Trend(None, "memory was not measured"),
        memory_column=column,
        notes=notes,
        noun=next(iter(trials["noun"]), PARAMETERS),
    )  # fmt: skip


def series_of(frame: pd.DataFrame, study: Mapping[str, Any]) -> Iterator[Series]:
    """Split prepared trials into series and analyse each; one series, without a label, when nothing else varies."""
    columns = split_columns(frame, study)
    if not columns:
        yield analyse_series("", frame, study)
        return
    for values, group in frame.groupby(columns, dropna=False, sort=True):
        named = zip(columns, values, strict=True)
        parts = [value if isinstance(value, str) else f"{name} {str(value).lower()}" for name, value in named]
        label = ", ".join(dict.fromkeys(parts))  # weights and arithmetic may be of one type
        yield analyse_series(label, group, study)


def of_one_size(series: Sequence[Series]) -> bool:
    """Tell whether several series of one size are all there is to compare."""
    sizes = pd.concat([one.trials[N] for one in series]) if series else pd.Series(dtype=float)
    return len(series) > 1 and sizes.nunique() == 1


def mean_loss(one: Series) -> float:
    """Return the mean loss of a series of one size."""
    return float(one.sizes["mean"].iloc[0])
