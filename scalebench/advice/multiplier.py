"""Compute multiplier: how many times less compute a changed recipe needs to reach the same loss."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scalebench.advice.closed_form import closed_form
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.bootstrap import tails

SURFACE = ("A", "alpha", "B", "beta")
LEVELS = 4000  # of ln C, from REACH below the data to REACH above: interpolation error below 1e-5
REACH = np.log(1e6)


@dataclass(frozen=True, repr=False)
class ComputeMultiplier:
    """Compute of the baseline over compute of the changed study at equal `loss`; above 1, the change saves compute.

    `unreached` is the share of bootstrap replicates in which a study does not reach the loss within 1e6 times its
    compute. Such replicates count as infinite, an infinite end of `interval` is None, and replicates in which neither
    study reaches it are dropped. `beyond`: how many times outside the data the needed compute lies, for the
    (baseline, changed) study, and `below` whether that is below its smallest compute.
    """

    loss: float
    multiplier: float
    interval: tuple[float | None, float | None]
    baseline_flops: float
    changed_flops: float
    unreached: float
    beyond: tuple[float, float]
    below: tuple[bool, bool]
    method: str

    def __repr__(self) -> str:
        """Return one line: the multiplier with its interval, and the loss that it holds at."""
        low, high = self.interval
        ends = f"{0.0 if low is None else low:.4g} to {np.inf if high is None else high:.4g}"
        return f"ComputeMultiplier: {self.multiplier:.4g} (95 %: {ends}) at loss {self.loss:.4g}"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe fields by name."""
        return {**vars(self), "interval": list(self.interval), "beyond": list(self.beyond), "below": list(self.below)}


def compute_multiplier(
    baseline: Fit,
    changed: Fit,
    loss: float | None = None,
    *,
    level: float = 0.95,
    n: int | None = None,
    seed: int | None = None,
) -> ComputeMultiplier:
    """Compute multiplier at `loss`, in the unit of the fits; by default the lowest loss that both studies measured.

    Each fit is a law of training FLOPs, or chinchilla, which is then evaluated at the compute-optimal N and D under
    C = 6ND. Intervals come from independent bootstraps of both fits by their `refits`; `n` and `seed` override them.
    Raises FitRefused for a fit of another law, without degrees of freedom, or that never reaches the loss.
    """
    fits = baseline, changed
    target = max(float(fit.points.response.min()) for fit in fits) if loss is None else float(loss)
    if not (np.isfinite(target) and target > 0):
        raise FitRefused(f"loss is {target}; it needs a positive finite number in the unit of the fits")
    ends = tails(level)
    needed = [_needed(fit, name, target) for fit, name in zip(fits, ("baseline", "changed"), strict=True)]
    seeds = [(fit.refits.seed if seed is None else seed) + i for i, fit in enumerate(fits)]
    draws = max(fit.refits.n for fit in fits) if n is None else n
    boots = [fit.bootstrap(draws, own_seed) for fit, own_seed in zip(fits, seeds, strict=True)]
    drawn = [_flops_at(fit, boot.samples, target) for fit, boot in zip(fits, boots, strict=True)]
    reached = np.isfinite(drawn[0]) | np.isfinite(drawn[1])
    if not reached.any():
        raise FitRefused(f"no replicate of either study comes down to loss {target:.6g}; choose a higher loss")
    logs = drawn[0][reached] - drawn[1][reached]
    low, high = np.quantile(logs, ends, method="inverted_cdf")
    return ComputeMultiplier(
        loss=target,
        multiplier=float(np.exp(needed[0] - needed[1])),
        interval=(_finite(low), _finite(high)),
        baseline_flops=float(np.exp(needed[0])),
        changed_flops=float(np.exp(needed[1])),
        unreached=float(1 - np.mean(np.isfinite(drawn[0]) & np.isfinite(drawn[1]))),
        beyond=(_beyond(baseline, needed[0]), _beyond(changed, needed[1])),
        below=(_below(baseline, needed[0]), _below(changed, needed[1])),
        method="; ".join(boot.method for boot in boots),
    )


def _finite(log: float) -> float | None:
    return float(np.exp(log)) if np.isfinite(log) else None


def _needed(fit: Fit, name: str, loss: float) -> float:
    """ln C at which the fitted law reaches the loss. Raises FitRefused if it never does."""
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
    """ln C at which each replicate falls to `loss`, [batch]; inf if never, -inf if it is below from the start."""
    logs = _log_flops(fit)
    levels = np.linspace(logs.min() - REACH, logs.max() + REACH, LEVELS)
    curves = _losses(fit, parameters, levels)
    crossed: NDArray[np.bool_] = curves <= loss
    after = np.where(crossed.any(axis=1), crossed.argmax(axis=1), LEVELS)
    inner = np.clip(after, 1, LEVELS - 1)
    rows = np.arange(len(curves))
    above, below = np.log(curves[rows, inner - 1]), np.log(curves[rows, inner])
    share = (above - np.log(loss)) / np.where(above > below, above - below, 1.0)
    crossing = levels[inner - 1] + share * (levels[1] - levels[0])
    return np.asarray(np.where(after == 0, -np.inf, np.where(after == LEVELS, np.inf, crossing)))


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


def _below(fit: Fit, log: float) -> bool:
    return bool(log < _log_flops(fit).min())


def _beyond(fit: Fit, log: float) -> float:
    """How many times outside the compute of its points, 1 inside."""
    logs = _log_flops(fit)
    return float(np.exp(max(log - logs.max(), logs.min() - log, 0.0)))
