"""What the series of a study found, in sentences with numbers and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import MEMORY_PEAKS, PARAMETERS, STEP_TIME, N
from scalebench.reporting.quantities import (
    NBSP,
    NO_INTERVAL,
    bounded,
    formula,
    percent,
    quantity,
    significant,
    symbol,
    uncertain,
)

MANY_SERIES = 3  # beyond these, details are in the tables alone: a wall of sentences is not read
CLEAR = 2.0  # standard errors below which a change is called noise


def series_sentences(study: StudyAnalysis, details: Callable[[Series], Iterable[str]]) -> Iterator[str]:
    """Yield how the loss of each series changed, and further sentences on each where there are few series."""
    many = len(study.series) > MANY_SERIES
    if many:
        yield f"{len(study.series)} series were run; their fits, predictions and costs are in the tables below."
    for series in study.series:
        prefix = f"{series.label}: " if series.label else ""
        for sentence in (loss_sentence(series), *(() if many else details(series))):
            if sentence:
                yield (prefix + sentence).replace(" %", f"{NBSP}%")


def loss_sentence(one: Series) -> str:
    """Say how the loss went from the smallest to the largest size."""
    sizes = one.sizes
    if sizes.empty:
        return "no validation loss was measured."
    first, last = sizes.iloc[0], sizes.iloc[-1]
    start, end = (uncertain(row["mean"], row["se"]) for row in (first, last))
    if len(sizes) == 1:
        return f"Validation loss is {start} nats at {quantity(first['size'])} {one.x.noun}, the only size."
    change, error = first["mean"] - last["mean"], float(np.hypot(first["se"], last["se"]))
    rises = [quantity(size) for size, step in zip(sizes["size"][1:], np.diff(sizes["mean"]), strict=True) if step >= 0]
    steps = f"without falling on the step to {', '.join(rises)}" if rises else "falling at every step of size"
    ratio = abs(change) / error if error > 0 else np.nan
    noise = ", which is within the noise" if ratio < CLEAR else ""
    clear = f", a change of {significant(ratio, 2)} combined standard errors{noise}" if error > 0 else ""
    model = one.x is PARAMETERS
    what, unit = ("the model", "non-embedding parameters") if model else ("the data", one.x.noun)
    return (
        f"Validation loss went from {start} to {end} nats as {what} grew from {quantity(first['size'])} to "
        f"{quantity(last['size'])} {unit} (×{significant(last['size'] / first['size'], 2)})"
        f"{clear}, {steps}."
    )


def law_sentence(one: Series) -> str:
    """State exponent and irreducible loss of the law fitted to every size, and whether a bound holds."""
    trend = one.loss_all
    if trend.fit is None:
        return f"No law is fitted: {trend.reason}." if len(one.sizes) else ""
    parts = []
    for name, value in trend.fit.parameters.items():
        text, interval = bounded(value, *trend.interval(name))
        held = ", at its bound, so that these sizes do not determine it" if name in trend.fit.bounds_hit else ""
        parts += [f"{one.x.formula(symbol(name))} = {text} ({_around(interval)}{held})"] * (name != "A")
    law = one.x.formula(formula(trend.fit.law.formula))
    return f"The law {law} has {', '.join(parts)}."


def _around(interval: str) -> str:
    return interval if interval == NO_INTERVAL else f"95 % interval {interval}"


def held_out_sentence(one: Series) -> str:
    """Say how well the smaller sizes predicted the largest, against repeating the next-smaller size's loss."""
    held = one.held
    if held is None:
        return ""
    inside = ""
    if held.interval is not None:
        where = "inside" if held.inside_interval else "outside"
        inside = f"; the measured mean lies {where} the 95 % interval {bounded(held.predicted, *held.interval)[1]}"
    return (
        f"From the smaller sizes the law predicted {held.predicted:.3f} nats for the largest, measured "
        f"{held.measured:.3f}: an error of {percent(held.error_percent / 100)}, where repeating the next-smaller "
        f"size's loss errs by {percent(held.naive_error_percent / 100)}{inside}."
    )


def cost_sentence(one: Series, what: str) -> str:
    """Say how step time or memory grew, and what a further parameter costs."""
    timed = what == "step_time"
    trend, column, unit = (one.step_time, STEP_TIME, "s") if timed else (one.memory, one.memory_column, "B")
    kept = one.timed if timed else one.usable
    means = kept.groupby(N)[column].median().dropna() if column else pd.Series(dtype=float)
    if means.empty:
        return ""
    name = "A training step" if timed else MEMORY_PEAKS[str(column)].capitalize()
    verb = "takes" if timed else "is"
    head = f"{name} {verb} {quantity(means.iloc[0], unit)} at {quantity(means.index[0])} parameters"
    if len(means) > 1:
        head += f" and {quantity(means.iloc[-1], unit)} at {quantity(means.index[-1])}"
    if trend.fit is None:
        return f"{head}; no trend: {trend.reason}."
    parameters = trend.fit.parameters
    offset = quantity(parameters["c0"], unit)
    if "p" in parameters:
        exponent, interval = bounded(parameters["p"], *trend.interval("p"))
        each = quantity(parameters["c1"], unit)
        return f"{head}; the trend is {offset} plus {each}·N^p with p = {exponent} ({_around(interval)})."
    value, interval = bounded(parameters["c1"], *trend.interval("c1"), unit=unit)
    return f"{head}; the trend is {offset} plus {value} per parameter ({_around(interval)})."
