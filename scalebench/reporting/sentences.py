"""What the series of a study found, in sentences with numbers and intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd

from scalebench.analysis.series import Series, ranked
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import undetermined
from scalebench.analysis.trials import MEMORY_PEAKS, PARAMETERS, STEP_TIME, N
from scalebench.reporting.quantities import (
    CLEAR,
    NBSP,
    NEGLIGIBLE,
    NO_SPREAD,
    bounded,
    formula,
    interval_words,
    percent,
    quantity,
    significant,
    symbol,
    uncertain,
)

NAMED = 6  # series within noise of the best, in a sentence
MANY_SERIES = 3  # with more, details are in figures and tables only: a wall of sentences is not read


def series_sentences(study: StudyAnalysis, details: Callable[[Series], Iterable[str]]) -> Iterator[str]:
    """Yield how the loss changed with size; of several series first which is the best, and details of that one.

    Of at most ``MANY_SERIES`` series, how the loss of each changed is among them.
    """
    best = ranked(study.series)[:1] or study.series[:1]
    if len(study.series) > 1 and len(ranked(study.series)) != 1:
        yield from ranking_sentences(study.series)
    for series in study.series if len(study.series) <= MANY_SERIES else best:
        yield _of_series(series, loss_sentence(series))
    for series in best:
        yield from (_of_series(series, sentence) for sentence in details(series) if sentence)


def _of_series(series: Series, sentence: str) -> str:
    prefix = f"{series.label}: " if series.label else ""
    return (prefix + sentence).replace(" %", f"{NBSP}%")


def ranking_sentences(all_series: Sequence[Series]) -> Iterator[str]:
    """Yield which of many series has the lowest loss at its largest size, and which are within noise of it."""
    places = ranked(all_series)
    if not places:
        yield f"{len(all_series)} series were run; none measured a validation loss."
        return
    last = [series.sizes.iloc[-1] for series in places]
    best, worst = (f"{series.label} ({uncertain(row['mean'], row['se'])} nats)"
                   for series, row in ((places[0], last[0]), (places[-1], last[-1])))  # fmt: skip
    yield f"Of {len(places)} series the lowest validation loss at the largest size is that of {best}."
    near = [series.label for series, row in zip(places[1:], last[1:], strict=True) if within_noise(row, last[0])]
    more = f" and {len(near) - NAMED} more" if len(near) > NAMED else ""
    others = f"Within noise of it: {', '.join(near[:NAMED])}{more}." if near else "No other is within noise of it."
    yield others if len(near) == len(places) - 1 else f"{others} The highest is that of {worst}."


def within_noise(row: pd.Series[float], best: pd.Series[float]) -> bool:
    """Return whether two mean losses (mean, se) differ by less than ``CLEAR`` combined standard errors."""
    return bool(row["mean"] - best["mean"] < CLEAR * np.hypot(row["se"], best["se"]))


def loss_sentence(series: Series) -> str:
    """Return how the loss changed from the smallest to the largest size."""
    sizes = series.sizes
    if sizes.empty:
        return "no validation loss was measured."
    first, last = sizes.iloc[0], sizes.iloc[-1]
    start, end = (uncertain(row["mean"], row["se"]) for row in (first, last))
    if len(sizes) == 1:
        return f"Validation loss is {start} nats at {quantity(first['size'])} {series.x.noun}, the only size."
    change, error = first["mean"] - last["mean"], float(np.hypot(first["se"], last["se"]))
    rises = [quantity(size) for size, step in zip(sizes["size"][1:], np.diff(sizes["mean"]), strict=True) if step >= 0]
    steps = f"it did not fall at {' and '.join(filter(None, (', '.join(rises[:-1]), *rises[-1:])))}."
    steps = steps if rises else "it fell at every size."
    ratio = abs(change) / error if error > 0 else np.nan
    noise = ", which is within noise" if ratio < CLEAR else ""
    clear = f", a change of {significant(ratio, 2)} combined standard errors{noise}" if error > 0 else ""
    model = series.x is PARAMETERS
    grown, unit = ("the model", "non-embedding parameters") if model else ("the data", series.x.noun)
    return (
        f"Validation loss went from {start} to {end} nats as {grown} grew from {quantity(first['size'])} to "
        f"{quantity(last['size'])} {unit} (×{significant(last['size'] / first['size'], 2)})"
        f"{clear}; {steps}"
    )


def law_sentence(series: Series) -> str:
    """Return exponent and irreducible loss of the law fitted to every size, and which parameters are at a bound."""
    trend = series.loss_all
    if trend.fit is None:
        return f"No law could be fitted: {trend.reason}." if len(series.sizes) > 1 else ""
    law = series.x.formula(formula(trend.fit.law.formula))
    if reason := undetermined(trend.fit) or trend.no_interval:
        return f"The law {law} is not determined: {reason}."
    if series.sizes["mean"].iloc[-1] >= series.sizes["mean"].iloc[0]:
        return f"The loss does not fall, so that the law {law} has no exponent."
    parts, unknown = [], []
    for name, value in trend.fit.parameters.items():
        if name == "A":
            continue
        if name in trend.fit.undetermined:
            unknown.append(series.x.formula(symbol(name)))
            continue
        text, interval = bounded(value, *trend.interval(name))
        bound = ", at its bound" if name in trend.fit.bounds_hit else ""
        parts.append(f"{series.x.formula(symbol(name))} = {text}{_bracket(interval, bound)}")
    but = f"; these sizes do not determine {' and '.join(unknown)}" if unknown else ""
    return f"The fitted law is {law} with {', '.join(parts)}{but}." if parts else f"The fitted law is {law}{but}."


def _bracket(interval: str, also: str = "") -> str:
    """Return an interval in brackets after a space; nothing for one without width."""
    return f" ({interval_words(interval)}{also})" if interval != NO_SPREAD else ""


def held_out_sentence(series: Series) -> str:
    """Return how well the smaller sizes predicted the largest, and the error of repeating the next-smaller loss."""
    forecast = series.held_out_forecast
    if forecast is None:
        return ""
    inside = ""
    if forecast.interval is not None:
        where = "inside" if forecast.inside_interval else "outside"
        inside = (
            f" The measured mean is {where} the 95 % interval {bounded(forecast.predicted, *forecast.interval)[1]}."
        )
    return (
        f"Fitted to the smaller sizes, the law predicted {forecast.predicted:.3f} nats for the largest, measured "
        f"{forecast.measured:.3f}: an error of {percent(forecast.error_percent / 100)}; repeating the next-smaller "
        f"size's loss errs by {percent(forecast.naive_error_percent / 100)}.{inside}"
    )


def streak_sentence(series: Series) -> str:
    """Return that the sizes lie on one side of the law of the loss in turn, as of another shape; empty if not."""
    streaks = series.loss_all.fit.streaks if series.loss_all.fit else None
    if not (streaks and streaks.flagged):
        return ""
    return (
        "Residuals of neighbouring sizes have the same sign more often than independent noise would give: the law has "
        "another shape than the points, and its interval may be too narrow."
    )


def far_sentence(series: Series) -> str:
    """Return which sizes lie far from the fitted law of the loss; empty where none does."""
    far = [f"{quantity(next(iter(point.inputs.values())))} ({percent(point.error_percent / 100)})"
           for point in series.loss_all.far]  # fmt: skip
    return f"Far from the fitted law, where the other sizes lie close to it: {', '.join(far)}." if far else ""


def cost_sentence(series: Series, cost: str) -> str:
    """Return how step time or memory grew, and the fitted trend."""
    timed = cost == "step_time"
    trend, column, unit = (series.step_time, STEP_TIME, "s") if timed else (series.memory, series.memory_column, "B")
    trials = series.timed if timed else series.usable
    means = trials.groupby(N)[column].median().dropna() if column else pd.Series(dtype=float)
    if means.empty:
        return ""
    name = "A training step" if timed else MEMORY_PEAKS[str(column)].capitalize()
    verb = "takes" if timed else "is"
    head = f"{name} {verb} {quantity(means.iloc[0], unit)} at {quantity(means.index[0])} parameters"
    if len(means) > 1:
        head += f" and {quantity(means.iloc[-1], unit)} at {quantity(means.index[-1])}"
    if trend.fit is None:
        return f"{head}; no trend: {trend.reason}." if len(series.sizes) > 1 or series.untimed_reason else f"{head}."
    parameters = trend.fit.parameters
    fixed = f"{quantity(parameters['c0'], unit)} plus " if parameters["c0"] > NEGLIGIBLE * means.iloc[0] else ""
    if "p" in parameters:
        exponent, interval = bounded(parameters["p"], *trend.interval("p"))
        each = quantity(parameters["c1"], unit)
        return f"{head}; the trend is {fixed}{each}·N^p with p = {exponent}{_bracket(interval)}."
    value, interval = bounded(parameters["c1"], *trend.interval("c1"), unit=unit)
    return f"{head}; the trend is {fixed}{value} per parameter{_bracket(interval)}."
