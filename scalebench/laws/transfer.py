"""The law of transfer: how much data from scratch earlier training is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from scalebench.laws.forms import Law

Values = Mapping[str, Any]
EXPONENT = (-3.0, 3.0)  # of either sign: that larger models transfer more is a finding, not an assumption


def transfer(log: Values, shape: Values) -> Sequence[Any]:
    """Effective data transferred to N parameters fine-tuned on D_F, D_T = k * D_F^a * N^b: Hernandez et al. 2021.

    D_T = D_E - D_F, where D_E is the data with which training from scratch reaches the loss of the fine-tuned model.
    """
    return (shape["a"] * log["tokens"] + shape["b"] * log["params"],)


TRANSFER = Law(
    name="transfer",
    formula="D_T = k * D_F^a * N^b",
    units="D_T and D_F in tokens, N in parameters, k in tokens^(1 - a) / parameters^b",
    source="Hernandez et al. 2021, arXiv 2102.01293, equation 1.1",
    inputs=("params", "tokens"),
    response="transferred",
    coefficients=("k",),
    exponents={"a": EXPONENT, "b": EXPONENT},
    log_terms=transfer,
)
