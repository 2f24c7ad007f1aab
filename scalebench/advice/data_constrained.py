"""Training on repeated data: the loss of Muennighoff et al. 2023 (arXiv 2305.16264) and its compute-optimal point.

L = E + A / N'^alpha + B / D'^beta with D' = U + U R_D* (1 - exp(-R_D / R_D*)), R_D = D / U - 1 repeats of the U unique
tokens, and N' likewise: parameters beyond U_N, those that are compute-optimal for U tokens, count for less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike

from scalebench.advice.compute_optimal import closed_form
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.laws.forms import Array, FitRefused

NEEDED = ("E", "A", "alpha", "B", "beta", "R_D", "R_N")


@dataclass(frozen=True)
class DataConstrainedOptimum:
    """The lowest loss at `flops` = 6ND with `unique_tokens`: parameters, tokens (repeats included), epochs, loss."""

    flops: float
    unique_tokens: float
    params: float
    tokens: float
    epochs: float
    loss: float

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


def data_constrained_loss(
    parameters: Mapping[str, float], params: ArrayLike, tokens: ArrayLike, unique_tokens: ArrayLike
) -> Array:
    """Loss in the unit of E at N, D and U (parameters, tokens, tokens; broadcast together), equation 5 of the paper.

    `parameters`: E, A, alpha, B, beta and the decay constants R_D, R_N (repeats at which returns have fallen to 1/e).
    Raises FitRefused for one that is missing or not positive.
    """
    _check(parameters)
    N, D, U = (np.asarray(values, dtype=np.float64) for values in (params, tokens, unique_tokens))
    sized = _saturating(N, np.minimum(_params_for(parameters, U), N), parameters["R_N"])
    seen = _saturating(D, np.minimum(U, D), parameters["R_D"])
    terms = parameters["A"] * sized ** -parameters["alpha"] + parameters["B"] * seen ** -parameters["beta"]
    return np.asarray(parameters["E"] + terms)


def data_constrained_optimum(
    parameters: Mapping[str, float], flops: float, unique_tokens: float
) -> DataConstrainedOptimum:
    """Lowest loss over N at D = flops / 6N, numerically: a grid in ln N, then a bounded search about its best.

    Raises FitRefused for parameters or budgets that are not positive.
    """
    from scipy.optimize import minimize_scalar  # lazily: slow to import

    if not (flops > 0 and unique_tokens > 0):
        raise FitRefused(f"flops is {flops}, unique_tokens is {unique_tokens}; both need a positive number")

    product = flops / FLOPS_PER_PARAMETER_TOKEN

    def loss(log_params: float) -> float:
        params = np.exp(log_params)
        return float(data_constrained_loss(parameters, params, product / params, unique_tokens))

    grid = np.linspace(0.0, np.log(product), 2001)
    best = int(data_constrained_loss(parameters, np.exp(grid), product / np.exp(grid), unique_tokens).argmin())
    ends = float(grid[max(best - 1, 0)]), float(grid[min(best + 1, len(grid) - 1)])
    found = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
    params = float(np.exp(found.x))
    tokens = product / params
    return DataConstrainedOptimum(flops, unique_tokens, params, tokens, tokens / unique_tokens, loss(float(found.x)))


def _saturating(amount: Array, unique: Array, decay: float) -> Array:
    """What an amount is worth: the unique part, plus repeats of falling value."""
    return np.asarray(unique * (1 + decay * -np.expm1(-(amount / unique - 1) / decay)))


def _params_for(parameters: Mapping[str, float], tokens: Array) -> Array:
    """Parameters for which `tokens` are compute-optimal without repeats."""
    log_params, a, log_tokens, b = closed_form(parameters)[0]
    return np.asarray(np.exp(log_params + a * (np.log(tokens) - log_tokens) / b))


def _check(parameters: Mapping[str, float]) -> None:
    wrong = [name for name in NEEDED if not parameters.get(name, 0.0) > 0]
    if wrong:
        raise FitRefused(
            f"parameters {', '.join(wrong)} are missing or not positive; the data-constrained law needs "
            f"{', '.join(NEEDED)}"
        )
