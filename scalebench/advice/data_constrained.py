"""Compute-optimal training on limited data, from the law of Muennighoff et al. 2023 (arXiv 2305.16264).

The law is `data_constrained` in the catalogue: repeats of U unique tokens are worth less each time, and so are
parameters beyond those that are compute-optimal for U tokens. Its minimum at a budget C = 6ND has no closed form.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalebench.laws.catalogue import LAWS
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.laws.fit import Fit
from scalebench.laws.forms import Array, FitRefused

LAW = LAWS["data_constrained"]
GRID = 2001  # of ln N, from 1 parameter to 1 token; its vertex is within 1e-4 of the optimum
QUANTITIES = ("params", "tokens", "epochs", "loss")


@dataclass(frozen=True)
class DataConstrainedOptimum:
    """The lowest loss at `flops` = 6ND with `unique_tokens`.

    `tokens` count repeats, `epochs` are tokens over unique tokens. `intervals` are 95 % ones by quantity from the
    bootstrap of the fit; empty where `method` gives the reason why there are none.
    """

    flops: float
    unique_tokens: float
    params: float
    tokens: float
    epochs: float
    loss: float
    intervals: dict[str, tuple[float, float]]
    method: str

    def to_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return asdict(self)


def data_constrained_optimum(fit: Fit, flops: float, unique_tokens: float) -> DataConstrainedOptimum:
    """Lowest loss of a fit of the law data_constrained at a budget in FLOPs and a number of unique tokens.

    Raises FitRefused for another law, for numbers that are not positive, and where a term of the law is switched off.
    """
    if fit.law.name != LAW.name:
        raise FitRefused(f"law {fit.law.name} has no repeated data; fit {LAW.name} to params, tokens and unique_tokens")
    best = {name: float(value[0]) for name, value in lowest_loss(fit.parameters, flops, unique_tokens).items()}
    intervals: dict[str, tuple[float, float]] = {}
    try:
        boot = fit.bootstrap()
        drawn, method = lowest_loss(boot.samples, flops, unique_tokens), boot.method
        for name, values in drawn.items():
            low, high = np.quantile(values[np.isfinite(values)], [0.025, 0.975])
            intervals[name] = float(low), float(high)
    except FitRefused as reason:
        method = str(reason)
    return DataConstrainedOptimum(flops, unique_tokens, **best, intervals=intervals, method=method)


def lowest_loss(parameters: Mapping[str, ArrayLike], flops: float, unique_tokens: float) -> dict[str, Array]:
    """`QUANTITIES` at the lowest loss over N at D = flops / 6N, each [batch], for parameters by name, each [batch].

    Raises FitRefused for numbers that are not positive, and for a single set of parameters that are not.
    """
    if not (flops > 0 and unique_tokens > 0):
        raise FitRefused(f"flops is {flops}, unique_tokens is {unique_tokens}; both need a positive number")
    columns = {name: np.atleast_1d(np.asarray(parameters.get(name, 0.0), dtype=np.float64)) for name in LAW.parameters}
    wrong = [name for name, values in columns.items() if len(values) == 1 and not values > 0]
    if wrong:
        raise FitRefused(
            f"parameters {', '.join(wrong)} are missing or not positive; the data-constrained law needs "
            f"{', '.join(LAW.parameters)}"
        )
    product = np.log(flops / FLOPS_PER_PARAMETER_TOKEN)
    levels = np.linspace(0.0, product, GRID)
    log_params, loss = _vertex(columns, levels, product, unique_tokens)
    if len(log_params) == 1:  # again on a finer grid; draws need none
        step = levels[1] - levels[0]
        levels = np.linspace(max(log_params[0] - step, 0.0), min(log_params[0] + step, product), GRID)
        log_params, loss = _vertex(columns, levels, product, unique_tokens)
    params, tokens = np.exp(log_params), np.exp(product - log_params)
    return {"params": params, "tokens": tokens, "epochs": tokens / unique_tokens, "loss": loss}


def _logs(log_params: Array, product: float, unique_tokens: float) -> dict[str, Array]:
    """Inputs of the law along the budget."""
    tokens = product - log_params
    return {"params": log_params, "tokens": tokens, "unique_tokens": np.full_like(tokens, np.log(unique_tokens))}


def _vertex(columns: Mapping[str, Array], levels: Array, product: float, unique_tokens: float) -> tuple[Array, Array]:
    """ln N of the lowest loss and that loss, [batch]: the vertex of a parabola through the best of even `levels`."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a refit may switch a term off: its optimum is not finite
        curves = LAW.predict(columns, _logs(levels, product, unique_tokens))
    best, rows = np.clip(curves.argmin(axis=1), 1, len(levels) - 2), np.arange(len(curves))
    below, lowest, above = (curves[rows, best + side] for side in (-1, 0, 1))
    bend = below - 2 * lowest + above
    shift = np.clip(np.where(bend > 0, (below - above) / (2 * np.where(bend > 0, bend, 1.0)), 0.0), -1, 1)
    return levels[best] + shift * (levels[1] - levels[0]), lowest - shift * (below - above) / 4
