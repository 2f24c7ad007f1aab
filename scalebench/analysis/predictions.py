"""What a size will need and reach, by the trends of a series: each quantity with the 95 % interval of a new run.

Report and `predict` take their numbers from here. What the trials cannot support is refused with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scalebench.analysis.recipe import SAME_RECIPE, Recipe
from scalebench.analysis.series import Series
from scalebench.analysis.surfaces import Surface
from scalebench.analysis.trends import Trend, trend_by
from scalebench.analysis.trials import DATA, N, total_params
from scalebench.analysis.whole_steps import whole_steps

if TYPE_CHECKING:
    from scalebench.laws import Fit, Forecast

STREAKS = "residuals run in streaks: the law has another shape than the trials, its interval may be too narrow"
NATS = ("validation loss", "nats")
OPEN_DATA = "the trials vary size and data: give --tokens"


@dataclass(frozen=True)
class PredictedQuantity:
    """One predicted quantity in SI units, or the reason why there is none.

    ``low`` and ``high`` are the 95 % interval of ``interval``, always a new run; ``beyond`` is how many times outside
    the data the prediction lies, 1 inside; ``basis`` is what it rests on, ``trend`` the fitted law. A figure that is
    ``counted`` has neither interval nor law.
    """

    quantity: str
    unit: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = "new run"
    beyond: float | None = None
    basis: str = ""
    reason: str = ""
    counted: bool = False
    trend: Trend | None = field(default=None, repr=False)

    @property
    def by(self) -> str | None:
        """How the value comes about: ``counted``, by a ``law``, or None for neither (the data, or a refusal)."""
        if self.value is None:
            return None
        return "counted" if self.counted else "law" if self.trend else None

    @property
    def hold_out_percent(self) -> float | None:
        """The largest error, in percent, of the law when it predicted the larger sizes from the smaller ones."""
        rows = self.trend.backtest if self.trend else ()
        return max((abs(row.error_percent) for row in rows), default=None)

    def times(self, factor: float, quantity: str, unit: str, basis: str) -> PredictedQuantity:
        """Return a quantity that is a known multiple of this one; a refusal stays one."""
        value, low, high = (end if end is None else end * factor for end in (self.value, self.low, self.high))
        return replace(self, quantity=quantity, unit=unit, basis=basis, value=value, low=low, high=high)

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, with ``hold_out_percent`` and ``by``."""
        names = ("quantity", "unit", "value", "by", "low", "high", "interval", "beyond", "hold_out_percent")
        return {name: getattr(self, name) for name in (*names, "basis", "reason")}


@dataclass(frozen=True, repr=False)
class SizePrediction:
    """The predicted quantities of one size, or of other inputs ``at``; the backtest of its law is of ``held_out``."""

    params: float | None
    tokens: float | None
    quantities: tuple[PredictedQuantity, ...]
    backtest: Sequence[Forecast]
    place: str = ""
    held_out: str = "the loss"

    def __repr__(self) -> str:
        place = self.place if self.params is None else f"{self.params:.6g} parameters"
        known = (each for each in self.quantities if each.value is not None)
        return f"SizePrediction at {place}: {'; '.join(map(_in_short, known)) or 'nothing'}; .quantities has the rest"


def _in_short(predicted: PredictedQuantity) -> str:
    """Return a quantity in SI units with its interval, for a Python prompt."""
    interval = (
        "" if predicted.low is None or predicted.high is None else f" ({predicted.low:.4g} to {predicted.high:.4g})"
    )
    return f"{predicted.quantity} {predicted.value:.4g} {predicted.unit}".rstrip() + interval


def predict_size(
    series: Series, params: float, tokens: float | None = None, surface: Surface | None = None
) -> SizePrediction:
    """Predict all quantities of N = ``params``, trained on ``tokens`` or as the trials of the series were.

    ``surface`` is the loss of series that vary size and data.
    """
    recipe = series.recipe
    by_recipe = recipe.amount(params) if tokens is None else tokens
    loss, step = predict_loss(series, params, by_recipe, surface), predict_step_time(series, params)
    data, steps = training_of(series, params, tokens)
    quantities = (
        loss,
        step,
        _over_steps(step, steps, "training time", "s"),
        predict_memory(series, params),
        predict_compute(series, params, steps),
        _data(recipe, data, requested=tokens is not None),
        predict_checkpoint(series, params),
        _over_steps(predicted(series.energy, params, "energy", "J"), steps, "energy", "J"),
    )
    return SizePrediction(params, data, quantities, loss.trend.backtest if loss.trend else ())


def predict_fit(fitted: Fit, inputs: Mapping[str, float], response: str) -> SizePrediction:
    """Predict the response of one fitted law from its inputs by name; nothing about costs."""
    law, params, tokens = fitted.law, inputs.get("params", inputs.get("x")), inputs.get("tokens")
    loss = predicted(trend_by(fitted), inputs, response, "")
    data = PredictedQuantity("data", "tokens", reason=f"{law.name} does not depend on tokens")
    if tokens is not None:
        data = PredictedQuantity("data", "tokens", tokens, basis="as requested")
    refused = [
        PredictedQuantity(quantity, unit, reason="a fit has no times, bytes or FLOPs: give a results folder")
        for quantity, unit in (
            ("step time", "s"),
            ("memory", "B"),
            ("compute", "FLOP"),
            ("checkpoint", "B"),
            ("energy", "J"),
        )
    ]
    place = ", ".join(f"{name} {value:g}" for name, value in inputs.items())
    return SizePrediction(
        params, tokens, (loss, data, *refused), loss.trend.backtest if loss.trend else (), place, response
    )


def predicted(trend: Trend, at: float | Mapping[str, float], quantity: str, unit: str) -> PredictedQuantity:
    """Return a trend's prediction for a new run at a size, or at inputs by name; the reason where there is no fit."""
    if trend.fit is None:
        return PredictedQuantity(quantity, unit, reason=trend.reason)
    fit, inputs = trend.fit, at if isinstance(at, Mapping) else {"x": at}
    beyond = float(fit.beyond({name: np.array([size]) for name, size in inputs.items()})[0])
    if trend.flat and beyond > 1:
        return PredictedQuantity(quantity, unit, reason=trend.flat)
    value, low, high = trend.predict_at(inputs)
    basis = [f"{fit.law.formula}, {fit.n_configurations} configurations, {fit.status}"]
    basis += [f"{name} not resolved: {reason}" for name, reason in fit.unresolved.items()]
    finite = math.isfinite(low) and math.isfinite(high)
    if not finite:
        basis.append(f"no interval: {trend.no_interval}" if trend.no_interval else "the interval is not finite")
    if fit.streaks and fit.streaks.flagged:
        basis.append(STREAKS)
    if trend.choice:
        basis.append(trend.choice)
    result = PredictedQuantity(quantity, unit, value, beyond=beyond, basis="; ".join(basis), trend=trend)
    return replace(result, low=low, high=high) if finite else result


def predict_loss(
    series: Series, params: float, data: float | None, surface: Surface | None = None
) -> PredictedQuantity:
    """Return the loss: along the recipe of the trials, or by size and data where both were varied."""
    recipe = series.recipe
    if series.x is DATA and data is not None:
        return _loss_by_data(series, params, data)
    if data is None and recipe.known:
        return PredictedQuantity(*NATS, reason=OPEN_DATA)
    if data is None or recipe.fits(params, data):
        loss = predicted(series.loss_all, params, *NATS)
        return replace(loss, basis=f"{loss.basis}; along the recipe of the trials") if loss.trend else loss
    if recipe.varies and surface:
        return predicted(surface.trend, {"params": params, "tokens": data}, *NATS)
    reason = f"every trial saw {recipe}: add trials with other lengths, or leave --tokens out"
    return PredictedQuantity(*NATS, reason="size and data do not vary independently" if recipe.varies else reason)


def _loss_by_data(series: Series, params: float, data: float) -> PredictedQuantity:
    size = float(series.trials[N].iloc[0])
    if abs(params / size - 1) > SAME_RECIPE:
        return PredictedQuantity(*NATS, reason=f"every trial has {size:.4g} parameters: add trials of other sizes")
    return predicted(series.loss_all, data, *NATS)


def predict_loss_at(series: Series, size: float) -> PredictedQuantity:
    """Return the loss at a place on the x axis of a series: at a size by its recipe, or at an amount of data."""
    if series.x is DATA:
        return _loss_by_data(series, float(series.trials[N].iloc[0]), size)
    return predict_loss(series, size, series.recipe.amount(size))


def predict_step_time(series: Series, params: float) -> PredictedQuantity:
    """Return the median time of a training step."""
    return predicted(series.step_time, params, "step time", "s")


def predict_memory(series: Series, params: float) -> PredictedQuantity:
    """Return the peak memory."""
    return predicted(series.memory, params, "memory", "B")


def training_of(series: Series, params: float, tokens: float | None = None) -> tuple[float | None, int | None]:
    """Return the data and the whole steps of a size, by the recipe of the trials as a plan has them; or of ``tokens``.

    None for what is not known.
    """
    recipe, data = series.recipe, tokens
    if data is None:
        built = series.counting.at(params) if recipe.budget else None
        data = recipe.budget * built.active if recipe.budget and built and built.active else recipe.amount(params)
    if not (data and recipe.per_step):
        return data, None
    steps = whole_steps(data, recipe.per_step)
    return (steps * recipe.per_step if tokens is None else tokens), steps


def predict_compute(series: Series, params: float, steps: float | None) -> PredictedQuantity:
    """Return the FLOPs of ``steps`` training steps: those of the model that the family builds at this size.

    Where it cannot be counted it is that of the law, and the basis says why.
    """
    built = series.counting.at(params)
    if built is None:
        compute = _over_steps(predicted(series.flops, params, "compute", "FLOP"), steps, "compute", "FLOP")
        why = series.counting.reason or f"no model of {params:.4g} parameters can be counted"
        return replace(compute, basis=f"by the law, not counted ({why}): {compute.basis}") if compute.value else compute
    step = PredictedQuantity("compute", "FLOP", built.flops_per_step, counted=True)
    model = f"a {built.family} with {built.params:,.0f} parameters, which params = {built.setting:.6g} gives"
    basis = f"counted: a step of {model}, times {steps or 0:,.0f} steps"
    return replace(_over_steps(step, steps, "compute", "FLOP"), basis=basis if steps else "")


def predict_checkpoint(series: Series, params: float) -> PredictedQuantity:
    """Return the bytes of a checkpoint, by all parameters: ``params`` and the embeddings of that size.

    Embeddings grow with the width alone, so they are a straight line in log-log, which the trials give.
    """
    total, size = total_params(series.usable), series.usable[N]
    embeddings, all_params = (total - size)[total > size], params
    if size[embeddings.index].nunique() > 1:
        slope, height = np.polyfit(np.log(size[embeddings.index]), np.log(embeddings), 1)
        all_params += float(np.exp(height) * params**slope)
    result = predicted(series.checkpoint, all_params, "checkpoint", "B")
    return (
        replace(result, basis=f"{all_params:,.0f} parameters with embeddings; {result.basis}")
        if result.value
        else result
    )


def _over_steps(step: PredictedQuantity, steps: float | None, quantity: str, unit: str) -> PredictedQuantity:
    """Return what a whole training takes, from what a step takes."""
    if steps is None:
        reason = "the number of steps is open: give --tokens, or trials of one batch size (their parents included)"
        return PredictedQuantity(quantity, unit, reason=reason)
    return step.times(
        steps, quantity, unit, f"that of a step, times {steps:,.0f} steps; {step.basis}" if step.value else ""
    )


def _data(recipe: Recipe, amount: float | None, *, requested: bool) -> PredictedQuantity:
    if amount is None:
        return PredictedQuantity("data", recipe.unit, reason=OPEN_DATA)
    basis = "as requested" if requested else f"as in the trials: {recipe}"
    return PredictedQuantity("data", recipe.unit, amount, basis=basis)
