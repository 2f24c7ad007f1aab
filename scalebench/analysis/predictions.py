"""What a size will need and reach, from measured trials or from a fitted law: each answer with its interval and reach.

Step time, memory, FLOPs per step and checkpoint size are trends of the trials: a floor and a line, or a floor and a
power of the size where that predicted the larger sizes better; what the trials cannot support is refused with why.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalebench.analysis.recipe import Recipe
from scalebench.analysis.series import (
    LOSS,
    STEP_TIME,
    N,
    Series,
    Trend,
    numeric,
    prepare,
    rolling_backtest,
    series_of,
    split_columns,
    trend_of,
)
from scalebench.errors import InputError
from scalebench.laws import FitRefused, choose
from scalebench.laws import fit as fit_law
from scalebench.points.table import select_rows
from scalebench.store import Results, read_results

if TYPE_CHECKING:
    from scalebench.laws import Fit, Forecast

COST_LAWS = ("offset_linear", "offset_power")
NEGLIGIBLE_PERCENT = 0.1  # hold-out error below which a straight line needs no bend
# How long a trial trains makes a point of another size or compute; it does not make another kind of trial.
LENGTH_AXES = ("steps", "tokens", "tokens_per_param", "flops")


@dataclass(frozen=True)
class Answer:
    """One predicted quantity in SI units with the 95 % interval of a new run, or the reason why there is none.

    ``beyond`` is how many times outside the data the prediction lies, 1 inside; ``hold_out_percent`` the largest error
    of the law when it predicted the larger sizes from the smaller ones; ``basis`` says what the answer rests on.
    """

    quantity: str
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    beyond: float | None = None
    hold_out_percent: float | None = None
    basis: str = ""
    reason: str = ""

    def times(self, factor: float, quantity: str, unit: str, basis: str) -> Answer:
        """Return the answer to a quantity that is a known multiple of this one; a refusal stays one."""
        value, low, high = (end if end is None else end * factor for end in (self.value, self.low, self.high))
        return replace(self, quantity=quantity, unit=unit, basis=basis, value=value, low=low, high=high)


@dataclass(frozen=True)
class Prediction:
    """The answers for one size, or other inputs, and how well larger sizes were predicted from smaller ones before."""

    params: float | None
    tokens: float | None
    answers: tuple[Answer, ...]
    backtest: tuple[Forecast, ...]
    at: str = ""  # the inputs, where they are others
    held_out: str = "the loss"  # what the backtest is of


# --- from a fitted law -----------------------------------------------------------------------------------------------


def predict_fit(path: Path, fitted: Fit, given: Mapping[str, float | None], named: str) -> Prediction:
    """Predict from a law alone, at inputs by name: its response, nothing about costs.

    Raises ``InputError`` where an input is missing.
    """
    law, params, tokens = fitted.law, given["params"], given.get("tokens")
    options = {"x": "--params", "params": "--params", "tokens": "--tokens"}
    missing = [options.get(name, f"--input {name}=NUMBER") for name in law.inputs if given.get(name) is None]
    if missing:
        needed = " and ".join(law.inputs)
        raise InputError([f"{path}: {law.name} predicts from {needed}; give {' and '.join(missing)}"])
    inputs = {name: np.array([given[name]], dtype=np.float64) for name in law.inputs}
    answer = law_answer(fitted, inputs, named, "")
    refused = [
        Answer(quantity, unit, reason="a fit of one law holds no costs: give a results folder")
        for quantity, unit in (("step time", "s"), ("memory", "B"), ("compute", "FLOP"), ("checkpoint", "B"))
    ]
    data = Answer("data", "tokens", reason=f"{law.name} does not depend on tokens")
    if "tokens" in law.inputs:
        data = Answer("data", "tokens", tokens, basis="as asked")
    at = ", ".join(f"{name} {given[name]:g}" for name in law.inputs)
    return Prediction(params, tokens, (answer, data, *refused), tuple(_backtest(fitted)), at, named)


def law_answer(fitted: Fit, inputs: Mapping[str, Any], quantity: str, unit: str) -> Answer:
    """Return a law's prediction at one place with the interval of a new run, where there is one."""
    value, beyond = float(fitted.predict(inputs)[0]), float(fitted.beyond(inputs)[0])
    basis = f"{fitted.law.formula}, {fitted.n_configurations} configurations, {fitted.status}"
    basis = "; ".join([basis, *(f"{name} not resolved: {why}" for name, why in fitted.unresolved.items())])
    worst = max((abs(row.error_percent) for row in _backtest(fitted)), default=None)
    answer = Answer(quantity, unit, value, beyond=beyond, hold_out_percent=worst, basis=basis)
    try:
        low, high = (float(end[0]) for end in fitted.prediction_interval(inputs, kind="new"))
    except FitRefused as refusal:
        return replace(answer, basis=f"{basis}; no interval: {refusal}")
    if not (math.isfinite(low) and math.isfinite(high)):
        return replace(answer, basis=f"{basis}; the interval has no end")
    return replace(answer, low=low, high=high)


def _backtest(fitted: Fit) -> Sequence[Forecast]:
    return rolling_backtest(Trend(fitted))


# --- from results ----------------------------------------------------------------------------------------------------


def predict_results(path: Path, params: float, tokens: float | None, where: str | None) -> Prediction:
    """Predict from the trials of one study that differ in size, length and seed only. Raises ``InputError``."""
    one = one_series(path, where)
    recipe = Recipe.of(one.usable)
    if tokens is not None and recipe.unit != "tokens":
        raise InputError([f"{path}: these trials count samples, not tokens: leave --tokens out"])
    amount = recipe.amount(params) if tokens is None else tokens
    step = cost_answer(one.trials[one.trials["timed"]], STEP_TIME, params, "step time", "s")
    flops = cost_answer(one.usable, "flops_per_step", params, "compute", "FLOP")
    loss, backtest = loss_answer(one, recipe, params, amount)
    steps = amount / recipe.per_step if amount and recipe.per_step else None
    answers = (
        loss,
        step,
        over_steps(step, steps, "training time", "s"),
        memory_answer(one, params),
        over_steps(flops, steps, "compute", "FLOP"),
        _data(recipe, amount, asked=tokens is not None),
        storage(one.usable, params),
    )
    return Prediction(params, amount, answers, backtest)


def one_series(path: Path, where: str | None) -> Series:
    """Return the analysed trials, refusing a mixture of studies, devices, implementations and the like."""
    results = read_results(path)
    if len(results.studies) > 1:
        named = ", ".join(str(path / name) for name in results.studies)
        raise InputError([f"{path}: holds {len(results.studies)} studies; name one: {named}"])
    study = of_any_length(next(iter(results.studies.values())))
    found = list(series_of(chosen_trials(path, results, where), study))
    if len(found) > 1:
        labels = "; ".join(one.label for one in found)
        example = "--where \"implementation == 'sdpa'\""
        raise InputError([f"{path}: holds {len(found)} series: {labels}; choose one, as in {example}"])
    return found[0]


def chosen_trials(path: Path, results: Results, where: str | None) -> pd.DataFrame:
    """Return the valid trials that fulfil a condition, prepared for the laws. Raises ``InputError`` when none does."""
    frame = select_rows(path, results.frame, where)
    prepared = prepare(frame[frame["workload"] != "inference"] if "workload" in frame else frame)
    if not prepared["valid"].any():
        chosen = f" that --where {where!r} selects" if where else ""
        raise InputError([f"{path}: no trial{chosen} ended ok with valid numbers"])
    return prepared[prepared["valid"]]


def of_any_length(study: Mapping[str, Any]) -> dict[str, Any]:
    """Return a study whose lengths of training are no axes that split it."""
    axes = {name: values for name, values in (study.get("axes") or {}).items() if name not in LENGTH_AXES}
    return {**study, "axes": axes}


def differing(path: Path, where: str | None) -> list[str]:
    """Return the columns, sizes and lengths aside, in which the chosen trials of results folders differ."""
    results = read_results(path)
    trials = chosen_trials(path, results, where)
    found = [name for study in results.studies.values() for name in split_columns(trials, of_any_length(study))]
    return list(dict.fromkeys(["study"] * (trials["study"].nunique() > 1) + found))


def loss_answer(
    one: Series, recipe: Recipe, params: float, amount: float | None
) -> tuple[Answer, tuple[Forecast, ...]]:
    """Return the loss with its backtest: by size along the recipe, or by size and data where both were varied."""
    nats = ("validation loss", "nats")
    if amount is None:
        return Answer(*nats, reason="the trials vary size and data: give --tokens"), ()
    if recipe.fits(params, amount):
        answer = cost(one.loss_all, params, *nats)
        return replace(answer, basis=f"{answer.basis}; along the recipe of the trials"), tuple(one.backtest)
    if recipe.fixed is not None or recipe.per_parameter is not None:
        rule = (
            f"{recipe.fixed:.4g} {recipe.unit}"
            if recipe.fixed
            else f"{recipe.per_parameter:.4g} {recipe.unit} a parameter"
        )
        return Answer(*nats, reason=f"every trial saw {rule}: add trials with other lengths, or leave --tokens out"), ()
    points = one.usable[[N, "tokens_seen", LOSS]].dropna().set_axis(["params", "tokens", "loss"], axis=1)
    try:
        fitted = fit_law(points, "chinchilla")
    except FitRefused as refusal:
        return Answer(*nats, reason=str(refusal)), ()
    at = {"params": np.array([params]), "tokens": np.array([amount])}
    return law_answer(fitted, at, *nats), tuple(_backtest(fitted))


def cost(trend: Trend, params: float, quantity: str, unit: str) -> Answer:
    """Return a trend of the size alone at one size, or why there is none."""
    if trend.fit is None:
        return Answer(quantity, unit, reason=trend.reason)
    return law_answer(trend.fit, {"x": np.array([params])}, quantity, unit)


def cost_answer(frame: pd.DataFrame, column: str, params: float, quantity: str, unit: str) -> Answer:
    """Return a cost at one size by the law of costs that predicted the larger sizes best, or why there is none."""
    known = frame.assign(**{column: numeric(frame, column)})
    law, why = cost_law(known, column)
    answer = cost(trend_of(known, column, law), params, quantity, unit)
    return replace(answer, basis="; ".join(filter(None, (answer.basis, why)))) if answer.value is not None else answer


def cost_law(frame: pd.DataFrame, column: str) -> tuple[str, str]:
    """Return the law of a cost chosen by hold-out error, and why; the simpler one where they are not told apart."""
    simple, other = COST_LAWS
    kept = frame[frame[column] > 0]
    try:
        found = choose({"x": kept[N].to_numpy(), "y": kept[column].to_numpy()}, COST_LAWS, by="x")
    except FitRefused:  # too few sizes to hold any out; what they do support is said with the answer
        return simple, ""
    errors = {one.law: one.error_percent for one in found.ranking}
    if len(errors) < len(COST_LAWS):
        return found.best, ""
    tied = any(one.tied for one in found.ranking) or errors[simple] < NEGLIGIBLE_PERCENT
    law = simple if tied else found.best
    told = f"not told apart from {other}" if tied else f"not {other if law == simple else simple}"
    return law, f"{law}, {told}, by hold-out error: {', '.join(f'{k} {v:.2g} %' for k, v in errors.items())}"


def memory_answer(one: Series, params: float) -> Answer:
    """Return the peak memory at one size."""
    if one.memory_column is None:
        return Answer("memory", "B", reason=one.memory.reason)
    return cost_answer(one.usable, one.memory_column, params, "memory", "B")


def over_steps(answer: Answer, steps: float | None, quantity: str, unit: str) -> Answer:
    """Return what a whole training takes, from what a step takes."""
    if steps is None:
        return Answer(quantity, unit, reason="the number of steps is open: give --tokens, or trials of one batch size")
    return answer.times(steps, quantity, unit, f"{steps:,.0f} steps of it; {answer.basis}" if answer.value else "")


def _data(recipe: Recipe, amount: float | None, *, asked: bool) -> Answer:
    if amount is None:
        return Answer("data", recipe.unit, reason="the trials vary size and data: give --tokens")
    each = (
        "as many as every trial saw"
        if recipe.fixed
        else f"{recipe.per_parameter or 0:.4g} per parameter, as the trials"
    )
    return Answer("data", recipe.unit, amount, basis="as asked" if asked else each)


def storage(usable: pd.DataFrame, params: float) -> Answer:
    """Return the bytes of a checkpoint, linear in all parameters: those asked for and the embeddings of that size.

    Embeddings grow with the width alone, so that they are a straight line in log-log, which the trials give.
    """
    total, size = numeric(usable, "params").fillna(usable[N]), usable[N]
    rest = (total - size).where(total > size)
    asked = params
    if rest.notna().any() and size[rest.notna()].nunique() > 1:
        known = rest.notna()
        slope, height = np.polyfit(np.log(size[known]), np.log(rest[known]), 1)
        asked = params + float(np.exp(height) * params**slope)
    frame = usable.assign(**{N: total, "checkpoint_bytes": numeric(usable, "checkpoint_bytes")})
    if frame["checkpoint_bytes"].isna().all():
        return Answer("checkpoint", "B", reason="checkpoint sizes were not measured")
    answer = cost_answer(frame, "checkpoint_bytes", asked, "checkpoint", "B")
    return replace(answer, basis=f"{asked:.4g} parameters with embeddings; {answer.basis}") if answer.value else answer
