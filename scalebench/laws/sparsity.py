"""The law of sparse models: Frantar et al. 2023, "Scaling Laws for Sparsely-Connected Foundation Models" (2309.08520).

Equation 1: L(S, N, D) = (a_S (1 - S)^b_S + c_S) (1 / N)^b_N + (a_D / D)^b_D + c, with S the sparsity (share of weights
that are zero), N the number of weights that are not, D the tokens seen, for models that are pruned while they are
trained. Here the density d = 1 - S is the input, and the parameters are named as those of the other laws:
a = a_S, b = b_S, c = c_S, alpha = b_N, B = a_D^b_D, beta = b_D, E = c.

At a fixed number of weights that remain, a sparser model is the better one (b > 0): its weights were chosen among more.
The law is for models trained while or after they are pruned; a model that is pruned in one shot and left alone loses
far more at low density, where no power of the density describes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalebench.laws.forms import Law

SOURCE = "Frantar et al. 2023, arXiv 2309.08520, equation 1"
EXPONENTS = {"b": (0.01, 5.0), "alpha": (0.01, 3.0)}


def sparsity(log: Mapping[str, Any], shape: Mapping[str, Any]) -> Sequence[Any]:
    """Loss against density, remaining parameters and tokens, L = E + (a * d^b + c) * N^-alpha + B * D^-beta."""
    capacity = -shape["alpha"] * log["params"]
    return 0.0, shape["b"] * log["density"] + capacity, capacity, -shape["beta"] * log["tokens"]


def sparsity_of_one_length(log: Mapping[str, Any], shape: Mapping[str, Any]) -> Sequence[Any]:
    """The same at one number of tokens, whose term is then part of E: L = E + (a * d^b + c) * N^-alpha."""
    capacity = -shape["alpha"] * log["params"]
    return 0.0, shape["b"] * log["density"] + capacity, capacity


SPARSITY = Law(
    name="sparsity",
    formula="L = E + (a * d^b + c) * N^-alpha + B * D^-beta",
    units="L and E in nats, density d a share, N in parameters that remain, D in tokens, a and c in nats * "
    "parameters^alpha, B in nats * tokens^beta",
    source=SOURCE,
    inputs=("density", "params", "tokens"),
    response="loss",
    coefficients=("E", "a", "c", "B"),
    exponents={**EXPONENTS, "beta": (0.01, 3.0)},
    log_terms=sparsity,
    offset="E",
)
SPARSITY_OF_ONE_LENGTH = Law(
    name="sparsity_one_length",
    formula="L = E + (a * d^b + c) * N^-alpha",
    units="L and E in nats, density d a share, N in parameters that remain, a and c in nats * parameters^alpha",
    source=f"{SOURCE}, at one number of tokens",
    inputs=("density", "params"),
    response="loss",
    coefficients=("E", "a", "c"),
    exponents=EXPONENTS,
    log_terms=sparsity_of_one_length,
    offset="E",
)
