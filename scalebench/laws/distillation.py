"""The law of distilled students: Busbridge et al. 2025, "Distillation Scaling Laws" (2502.08606), equation 8.

L_S = L_T + L_T^-c0 * (1 + (L_T / (d1 * L~_S))^(1/f1))^(-c1 * f1) * (A * N^-alpha + B * D^-beta)^gamma

L_S is the loss of a student of N parameters distilled on D tokens, L_T its teacher's loss and L~_S the loss of the same
student trained on as many tokens without a teacher. Here the response is how much worse the student is than its
teacher, L_S - L_T, which by this law is positive: a student better than its teacher lies outside of it.

The middle factor is a power of L_T / L~_S that breaks where the teacher is d1 times as bad as the student could be on
its own: a teacher far better than that is one that the student cannot follow (the capacity gap).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scalebench.laws.forms import Law, Naming, log_sum

Values = Mapping[str, Any]


def distillation(log: Values, shape: Values) -> Sequence[Any]:
    """Loss added to the teacher's, L_T^-c0 (1 + (L_T / (d1 L~_S))^(1/f1))^(-c1 f1) (A N^-alpha + B D^-beta)^gamma."""
    worse = (log["teacher_loss"] - log["supervised_loss"] - shape["log_d1"]) / shape["f1"]
    gap = -shape["c1"] * shape["f1"] * log_sum(0.0, worse)
    capacity = log_sum(-shape["alpha"] * log["params"], shape["mix"] - shape["beta"] * log["tokens"])
    return (-shape["c0"] * log["teacher_loss"] + gap + shape["gamma"] * capacity,)


def _usual(c: Values, centre: Mapping[str, float]) -> dict[str, Any]:
    root = (c["scale"] * np.exp(c["c0"] * centre["teacher_loss"])) ** (1 / c["gamma"])
    A = root * np.exp(c["alpha"] * centre["params"])
    B = root * np.exp(c["mix"] + c["beta"] * centre["tokens"])
    own = {"c0": c["c0"], "c1": c["c1"], "d1": np.exp(c["log_d1"]), "f1": c["f1"]}
    return {**own, "A": A, "alpha": c["alpha"], "B": B, "beta": c["beta"], "gamma": c["gamma"]}


def _coordinates(p: Values) -> dict[str, Any]:
    return {**p, "log_d1": np.log(p["d1"]), "scale": p["A"] ** p["gamma"], "mix": np.log(p["B"] / p["A"])}


DISTILLATION = Law(
    name="distillation",
    formula="L_S - L_T = L_T^-c0 * (1 + (L_T / (d1 * L~_S))^(1/f1))^(-c1 * f1) * (A * N^-alpha + B * D^-beta)^gamma",
    units="L_S, L_T and L~_S in nats, N in parameters, D in tokens; A and B in nats^((1 + c0) / gamma) * their "
    "input^exponent",
    source="Busbridge et al. 2025, arXiv 2502.08606, equation 8",
    inputs=("params", "tokens", "teacher_loss", "supervised_loss"),
    response="loss_added",
    coefficients=("scale",),
    exponents={
        "c0": (0.01, 10.0), "c1": (0.01, 1e3), "log_d1": (-1.0, 1.0), "f1": (0.01, 3.0),
        "alpha": (0.01, 3.0), "beta": (0.01, 3.0), "gamma": (0.1, 5.0), "mix": (-12.0, 12.0),
    },
    log_terms=distillation,
    same_unit={"supervised_loss": "teacher_loss"},
    narrow=("teacher_loss",),
    naming=Naming(
        ("c0", "c1", "d1", "f1", "A", "alpha", "B", "beta", "gamma"), _usual, _coordinates, logs={"log_d1": "d1"}
    ),
)  # fmt: skip
