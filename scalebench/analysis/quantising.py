"""What fewer bits cost trained models: loss added by level, its trends with size and with data, and Kumar's law.

A level is a scheme with its bits and groups. Noise is that between runs: models trained from other seeds. What differs
within one run, as its checkpoints do, is taken run by run, so that a run counts once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from scalebench.analysis.parents import PARENT_SETTINGS, parent_settings
from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, determined
from scalebench.analysis.trials import DATA_SEEN, N, numeric
from scalebench.errors import number_of
from scalebench.laws import FitRefused, fit
from scalebench.measure.statistics import combined_standard_error

ADDED, ADDED_SE, LAW = "loss_added_nats", "loss_added_se_nats", "precision"
SIMULATED = "simulated"
FEWEST_BITS = 2  # one bit is rounded by another rule, so it is no point of a law in bits


@dataclass(frozen=True)
class Slope:
    """Change of the added loss per doubling, in nats, with its interval; NaN ends with too few runs.

    The interval's level is 95 % for all levels of a study together (Bonferroni).
    """

    level: str
    value: float
    low: float
    high: float
    runs: int

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0; else 0."""
        return 1 if self.low > 0 else -1 if self.high < 0 else 0


def level_of(row: pd.Series[Any]) -> str:
    """Return the name of a row's level: its scheme, or the bits of simulated weights; with its groups and layers.

    Settings of the training before, in which models of one size, seed and length differ, keep levels apart, too.
    """
    name = str(row["scheme"])
    if name == SIMULATED:
        name = number_of(float(row["bits"]), "bit")
    groups = f", groups of {row['group_size']:g}" if pd.notna(row.get("group_size")) else ""
    layers = ", outer layers too" if row.get("outer_layers") is True else ""
    before = [f", {setting} {setting_text(row[setting])}" for setting in PARENT_SETTINGS if setting in row]
    return f"{name}{groups}{layers}{''.join(before)}"


@lru_cache(maxsize=8)
def quantised(study: StudyAnalysis) -> pd.DataFrame:
    """Return the valid trials with a loss added, in the order of their levels, most bits last.

    Adds ``level``, ``added``, ``se``, ``data`` (tokens or samples that the model was trained on), ``ratio`` (of these
    to parameters), ``bits`` as numbers, and ``run``, the trial whose weights were converted.
    """
    trials = study.trials[study.trials["valid"] & numeric(study.trials, ADDED).notna()]
    tokens_seen = numeric(trials, DATA_SEEN)
    rows = trials.assign(
        level=[level_of(row) for _, row in trials.iterrows()],
        added=numeric(trials, ADDED), se=numeric(trials, ADDED_SE).fillna(0.0), bits=numeric(trials, "bits"),
        data=tokens_seen, ratio=tokens_seen / trials[N],
        run=trials["parent_trial_id"] if "parent_trial_id" in trials else trials["trial_id"],
    )  # fmt: skip
    return rows.assign(real=rows["scheme"] != SIMULATED).sort_values(
        ["real", "bits", "level", N, "data"], kind="stable"
    )


def last_of_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the trials of each run's last checkpoint: those with the most data."""
    return rows[rows["data"].isna() | (rows["data"] == rows.groupby(["run"])["data"].transform("max"))]


def levels(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each level with its trials, in order."""
    for level, part in rows.groupby("level", sort=False):
        yield str(level), part


def means(part: pd.DataFrame, by: str = N) -> pd.DataFrame:
    """Return the mean loss added at each value of a column: ``by``, trials, mean, standard error over runs and sample.

    With one run the error is that of the held-out sample alone.
    """
    records = []
    for value, group in part.groupby(by):
        error = combined_standard_error(group["added"].tolist(), group["se"].tolist())
        records.append((value, len(group), group["added"].mean(), group["se"].mean() if np.isnan(error) else error))
    return pd.DataFrame(records, columns=[by, "trials", "mean", "se"])


def size_trends(rows: pd.DataFrame) -> list[Slope]:
    """Return, per level, how the loss added changes with a doubling of the size: least squares over runs."""
    slopes = []
    for level, part in levels(rows):
        per_run = part.groupby("run").agg(size=(N, "first"), added=("added", "mean"))
        if per_run["size"].nunique() > 1:
            slopes.append((level, *_line(np.log2(per_run["size"].to_numpy(float)), per_run["added"].to_numpy(float))))
    return [_slope(level, value, error, freedom, runs, len(slopes)) for level, value, error, freedom, runs in slopes]


def data_trends(rows: pd.DataFrame) -> list[Slope]:
    """Return, per level, how the loss added changes with a doubling of the data: the mean over runs of each's slope.

    Only runs with several checkpoints have one.
    """
    slopes = []
    for level, part in levels(rows):
        each = [
            _line(np.log2(run["data"].to_numpy(float)), run["added"].to_numpy(float))[0]
            for _, run in part.groupby("run")
            if run["data"].nunique() > 1
        ]
        if each:
            error = float(np.std(each, ddof=1) / np.sqrt(len(each))) if len(each) > 1 else np.nan
            slopes.append((level, float(np.mean(each)), error, len(each) - 1, len(each)))
    return [_slope(level, value, error, freedom, runs, len(slopes)) for level, value, error, freedom, runs in slopes]


def _line(x: Any, y: Any) -> tuple[float, float, int, int]:
    """Return the slope of least squares, its standard error, its degrees of freedom and the number of points."""
    across, freedom = x - x.mean(), len(x) - 2
    slope = float(across @ y / (across @ across))
    residuals = y - y.mean() - slope * across
    error = float(np.sqrt(residuals @ residuals / freedom / (across @ across))) if freedom > 0 else np.nan
    return slope, error, freedom, len(x)


def _slope(level: str, value: float, error: float, freedom: int, runs: int, comparisons: int) -> Slope:
    half = float(stdtrit(freedom, 1 - 0.025 / comparisons)) * error if freedom > 0 else np.nan
    return Slope(level, value, value - half, value + half, runs)


def _mixed(rows: pd.DataFrame) -> str:
    """Return why rows of several bits are of no single law; "" if they are."""
    if before := parent_settings(rows):
        return f"the models differ in {', '.join(before)}: choose some with [from] where"
    kinds = {level.partition(",")[2] for level in rows["level"]}
    return "the bits have different groups or layers; give one of them with --where" if len(kinds) > 1 else ""


@lru_cache(maxsize=8)
def precision_law(study: StudyAnalysis) -> Trend:
    """Return Kumar's law of what simulated bits add to the loss, or the reason why there is none.

    Its points are all trials with a number of bits at which every trial lost: to leave out only those that did not
    would raise the rest. Runs are the configurations of its intervals, as checkpoints of one run are not independent.
    """
    rows = quantised(study)
    rows = rows[(rows["scheme"] == SIMULATED) & (rows["bits"] >= FEWEST_BITS)]
    if rows.empty:
        return Trend(None, f"no trial has 2 simulated bits or more (scheme = {SIMULATED!r})")
    if mixed := _mixed(rows):
        return Trend(None, mixed)
    lost = rows.groupby("bits")["added"].min() > 0
    rows = rows[rows["bits"].isin(lost[lost].index)]
    if rows.empty:
        return Trend(None, "no number of simulated bits, 2 or more, adds to the loss of every model")
    if not (rows["data"] > 0).all():
        return Trend(None, "it needs the data that each model was trained on, which the parents do not record")
    columns = {"params": rows[N], "tokens": rows["data"], "bits": rows["bits"], "loss_added": rows["added"]}
    try:
        return determined(fit({**columns, "config": rows["run"].astype(str)}, LAW, loss="squares"))
    except FitRefused as refusal:
        return Trend(None, str(refusal))
