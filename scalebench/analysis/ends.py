"""What growth cost and bought: each quantity at the smallest and the largest size measured, and projected beyond."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from scalebench.analysis.predictions import PredictedQuantity, predict_size
from scalebench.analysis.series import Series
from scalebench.analysis.trials import DATA_SEEN, LOSS, STEP_TIME, N, numeric, own_steps, training_flops

FACTORS = (4, 10)  # how far beyond the largest size the strip projects


@dataclass(frozen=True)
class Ends:
    """One quantity in SI units: medians (of the loss, means) at both ends, and projections at ``FACTORS``.

    ``low`` and ``high`` are the 95 % interval of ``factor``, the largest over the smallest; NaN where a single trial
    shows no spread. ``reason`` is why nothing was measured.
    """

    quantity: str
    unit: str
    smallest: float
    largest: float
    low: float
    high: float
    projected: tuple[PredictedQuantity | None, ...]
    reason: str = ""

    @property
    def factor(self) -> float:
        """How many times the largest size has of what the smallest has."""
        return self.largest / self.smallest if self.smallest else np.nan


def ends_of(series: Series) -> tuple[Ends, ...]:
    """Return loss, step time, training time, memory, compute, data, checkpoint and energy of a series by size."""
    largest = float(series.sizes["size"].max())
    beyond = [{q.quantity: q for q in predict_size(series, factor * largest).quantities} for factor in FACTORS]
    usable = series.usable
    memory = usable[series.memory_column] if series.memory_column else pd.Series(np.nan, index=usable.index)
    timed = usable[STEP_TIME].where(usable["timed"])
    columns = (
        ("validation loss", "nats", usable[LOSS]),
        ("step time", "s", timed),
        ("training time", "s", timed * own_steps(usable)),
        ("memory", "B", memory),
        ("compute", "FLOP", training_flops(usable)),
        ("data", series.recipe.unit, usable[DATA_SEEN]),
        ("checkpoint", "B", numeric(usable, "checkpoint_bytes")),
        ("energy", "J", numeric(usable, "energy_j")),
    )
    return tuple(
        _ends(series, name, unit, values, tuple(answers.get(name) for answers in beyond))
        for name, unit, values in columns
    )


def _ends(
    series: Series, name: str, unit: str, values: pd.Series[float], projected: tuple[PredictedQuantity | None, ...]
) -> Ends:
    sizes, known = series.usable[N], values[values > 0]
    edges = (series.sizes["size"].min(), series.sizes["size"].max())
    first, last = (known[sizes[known.index] == edge] for edge in edges)
    if first.empty or last.empty:  # another size's value would stand under the name of this one
        return Ends(name, unit, np.nan, np.nan, np.nan, np.nan, projected, _reason(series, name, nowhere=known.empty))
    low, high = _loss_interval(series) if name == "validation loss" else _ratio_interval(first, last)
    middle = "mean" if name == "validation loss" else "median"
    return Ends(name, unit, float(first.agg(middle)), float(last.agg(middle)), low, high, projected)


def _loss_interval(series: Series) -> tuple[float, float]:
    """Return the interval of the ratio of mean losses, from the standard errors of both means."""
    first, last = series.sizes.iloc[0], series.sizes.iloc[-1]
    half = 1.96 * float(np.hypot(first["se"] / first["mean"], last["se"] / last["mean"]))
    return tuple(float(last["mean"] / first["mean"] * np.exp(sign * half)) for sign in (-1, 1))  # type: ignore[return-value]


def _ratio_interval(first: pd.Series[float], last: pd.Series[float]) -> tuple[float, float]:
    """Return Welch's t interval of the ratio of geometric means; NaN where an end has one trial only."""
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    logs = [np.log(part.to_numpy(dtype=float)) for part in (first, last)]
    centre = float(logs[1].mean() - logs[0].mean())
    if min(map(len, logs)) < 2:
        return np.nan, np.nan
    variances = [log.var(ddof=1) / len(log) for log in logs]
    if (total := sum(variances)) == 0:
        return float(np.exp(centre)), float(np.exp(centre))
    freedom = total**2 / sum(v**2 / (len(log) - 1) for v, log in zip(variances, logs, strict=True))
    half = float(stdtrit(freedom, 0.975) * np.sqrt(total))
    return float(np.exp(centre - half)), float(np.exp(centre + half))


def _reason(series: Series, name: str, *, nowhere: bool) -> str:
    if name in ("step time", "training time") and not series.usable["timed"].any():
        return "trained together with others" if series.together else "not measured alone on the machine"
    if name in ("step time", "training time"):
        return "not measured alone on the machine at both sizes"
    if name == "energy":
        return series.energy.reason or "not measured at both sizes"
    return "not measured" if nowhere else "not measured at both sizes"
