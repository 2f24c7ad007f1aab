"""What a change was worth: how many times less compute the changed recipe needs to reach the same loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.advice.compute_optimal import closed_form
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array, FitRefused

SURFACE = ("A", "alpha", "B", "beta")
LEVELS = 4000  # of ln C between REACH below and above the data: interpolation error below 1e-5
REACH = np.log(1e6)


@dataclass(frozen=True)
class ComputeMultiplier:
    """Compute of the baseline over compute of the changed study at equal `loss`: above 1, the change saves compute.

    `unreached` is the share of replicates in which one of the studies does not come down to the loss within 1e6 times
    its data: they count as infinite, an end of `interval` among them is None, and those where neither does are left
    out.
    `beyond` is how many times the needed compute lies beyond the data, for the (baseline, changed) study.
    """

    loss: float
    multiplier: float
    interval: tuple[float | None, float | None]
    baseline_flops: float
    changed_flops: float
    unreached: float
    beyond: tuple[float, float]
    method: str

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe fields by name."""
        named = dict(vars(self))
        return {**named, "interval": list(self.interval), "beyond": list(self.beyond)}


def compute_multiplier(
    baseline: Fit,
    changed: Fit,
    loss: float | None = None,
    *,
    level: float = 0.95,
    n: int | None = None,
    seed: int | None = None,
) -> ComputeMultiplier:
    """Compute multiplier at `loss` (that of the fits), by default the lowest loss that both studies have measured.

    Each fit is a law of one input that is training FLOPs, or of params and tokens, which are then taken to be compute-
    optimal under C = 6ND. Intervals: independent bootstraps of both, as the `refits` of each say, `n` and `seed` but
    where given. Raises FitRefused where a fit has another input, no degrees of freedom, or never reaches the loss.
    """
    fits = baseline, changed
    target = max(float(fit.points.response.min()) for fit in fits) if loss is None else float(loss)
    if not (np.isfinite(target) and target > 0):
        raise FitRefused(f"loss is {target}; it needs a positive finite number in the unit of the fits")
    if not 0 < level < 1:
        raise FitRefused(f"level is {level}; it needs a number between 0 and 1, such as 0.95")
    needed = [_needed(fit, name, target) for fit, name in zip(fits, ("baseline", "changed"), strict=True)]
    seeds = [(fit.refits.seed if seed is None else seed) + i for i, fit in enumerate(fits)]
    draws = max(fit.refits.n for fit in fits) if n is None else n
    boots = [fit.bootstrap(draws, one) for fit, one in zip(fits, seeds, strict=True)]
    drawn = [_flops_at(fit, boot.samples, target) for fit, boot in zip(fits, boots, strict=True)]
    reached = np.isfinite(drawn[0]) | np.isfinite(drawn[1])
    if not reached.any():
        raise FitRefused(f"no replicate of either study comes down to loss {target:.6g}; choose a higher loss")
    logs = drawn[0][reached] - drawn[1][reached]
    low, high = np.quantile(logs, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return ComputeMultiplier(
        loss=target,
        multiplier=float(np.exp(needed[0] - needed[1])),
        interval=(_finite(low), _finite(high)),
        baseline_flops=float(np.exp(needed[0])),
        changed_flops=float(np.exp(needed[1])),
        unreached=float(1 - np.mean(np.isfinite(drawn[0]) & np.isfinite(drawn[1]))),
        beyond=(_beyond(baseline, needed[0]), _beyond(changed, needed[1])),
        method="; ".join(boot.method for boot in boots),
    )


def _finite(log: float) -> float | None:
    return float(np.exp(log)) if np.isfinite(log) else None


def _needed(fit: Fit, name: str, loss: float) -> float:
    """ln C at which the fitted law reaches the loss. Raises FitRefused where it does not."""
    if len(fit.law.inputs) != 1 and set(fit.parameters) != {"E", *SURFACE}:
        raise FitRefused(
            f"the {name} fit is {fit.law.name} of {', '.join(fit.law.inputs)}; compute at equal loss needs a law of "
            "FLOPs alone, or chinchilla"
        )
    log = float(_flops_at(fit, {key: np.array([value]) for key, value in fit.parameters.items()}, loss)[0])
    if not np.isfinite(log):
        floor = fit.parameters.get(fit.law.offset or "", 0.0)
        raise FitRefused(
            f"loss {loss:.6g} is not crossed by the {name} fit within 1e6 times its data (its floor is {floor:.6g}); "
            "choose a loss that both studies come down to"
        )
    return log


def _flops_at(fit: Fit, parameters: Mapping[str, ArrayLike], loss: float) -> Array:
    """ln C at which each replicate falls to `loss`, [batch]; inf where never, -inf where it starts below."""
    seen = _log_flops(fit)
    levels = np.linspace(seen.min() - REACH, seen.max() + REACH, LEVELS)
    curves = _losses(fit, parameters, levels)
    crossed: NDArray[np.bool_] = curves <= loss
    after = np.where(crossed.any(axis=1), crossed.argmax(axis=1), LEVELS)
    inner = np.clip(after, 1, LEVELS - 1)
    rows = np.arange(len(curves))
    above, below = np.log(curves[rows, inner - 1]), np.log(curves[rows, inner])
    share = (above - np.log(loss)) / np.where(above > below, above - below, 1.0)
    found = levels[inner - 1] + share * (levels[1] - levels[0])
    return np.asarray(np.where(after == 0, -np.inf, np.where(after == LEVELS, np.inf, found)))


def _losses(fit: Fit, parameters: Mapping[str, ArrayLike], levels: Array) -> Array:
    """Lowest loss at each compute, [batch, levels]."""
    if len(fit.law.inputs) == 1:
        return fit.law.predict(parameters, {fit.law.inputs[0]: levels})
    log_size, a, log_tokens, b = (column[:, None] for column in closed_form(parameters).T)
    E, A, alpha, B, beta = (np.asarray(parameters[name])[:, None] for name in ("E", *SURFACE))
    terms = A * np.exp(-alpha * (log_size + a * levels)) + B * np.exp(-beta * (log_tokens + b * levels))
    return np.asarray(E + terms)


def _log_flops(fit: Fit) -> Array:
    logs = fit.points.logs
    if len(fit.law.inputs) == 1:
        return logs[fit.law.inputs[0]]
    return np.asarray(np.log(FLOPS_PER_PARAMETER_TOKEN) + logs["params"] + logs["tokens"])


def _beyond(fit: Fit, log: float) -> float:
    """How many times beyond the compute of its points, 1 inside."""
    seen = _log_flops(fit)
    return float(np.exp(max(log - seen.max(), seen.min() - log, 0.0)))
