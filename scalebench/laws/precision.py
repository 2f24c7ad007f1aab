"""The law of post-training quantisation: what storing trained weights in few bits adds to the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scalebench.laws.forms import Law

Values = Mapping[str, Any]


def precision(log: Values, shape: Values) -> Sequence[Any]:
    """Loss added by P bits after training, delta = C * D^gamma_D * N^-gamma_N * exp(-P / gamma): Kumar et al. 2024.

    With gamma_D = gamma_N it depends on tokens per parameter alone: models trained longer for their size lose more.
    """
    return (shape["gamma_D"] * log["tokens"] - shape["gamma_N"] * log["params"] - np.exp(log["bits"]) / shape["gamma"],)


EXPONENT = (-3.0, 3.0)  # of either sign: that larger models lose less is a finding, not an assumption
PRECISION = Law(
    name="precision",
    formula="delta = C * D^gamma_D * N^-gamma_N * exp(-P / gamma)",
    units="delta in nats added by quantisation, N in parameters, D in tokens, P and gamma in bits, C in nats * "
    "parameters^gamma_N / tokens^gamma_D",
    source="Kumar et al. 2024, arXiv 2411.04330, equation 2: the term of post-training quantisation",
    inputs=("params", "tokens", "bits"),
    response="loss_added",
    coefficients=("C",),
    exponents={"gamma_D": EXPONENT, "gamma_N": EXPONENT, "gamma": (0.05, 50.0)},
    log_terms=precision,
    by_difference=("bits",),
)
