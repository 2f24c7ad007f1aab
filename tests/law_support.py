"""Points with known laws, and published ones, that several tests of `scalebench.laws` fit."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
from support import reference_data

SIZES = np.geomspace(1e3, 1e5, 6)


def power_points(E=1.7, A=30.0, alpha=0.35, *, sizes=SIZES, noise=0.0, seeds=1, seed=0):
    """Losses L = E + A N^-alpha with lognormal noise, ``seeds`` of each size."""
    params = np.repeat(sizes, seeds)
    scatter = noise * np.random.default_rng(seed).standard_normal(len(params))
    return {"params": params, "loss": (E + A * params**-alpha) * np.exp(scatter)}


def least_squares_line(x, y):
    """The line through points [n] by least squares, with the standard errors of its slope and intercept, by numpy."""
    (slope, intercept), covariance = np.polyfit(x, y, 1, cov=True)
    stderr, intercept_stderr = np.sqrt(np.diag(covariance))
    return SimpleNamespace(slope=slope, intercept=intercept, stderr=stderr, intercept_stderr=intercept_stderr)


def epoch_points(dropped=5):
    """The points of Hoffmann et al. 2022 as Besiroglu et al. 2024 read them from its figure, with D = C / 6N."""
    table = pd.read_csv(reference_data("epoch_chinchilla/svg_extracted_data.csv")).sort_values("loss")
    table = table.iloc[: len(table) - dropped]
    tokens = table["Training FLOP"] / 6 / table["Model Size"]
    return pd.DataFrame({"params": table["Model Size"], "tokens": tokens, "loss": table["loss"]})


# One set of inputs and parameters for each law that has no data of its own: (inputs, parameters).
_N, _D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
_ONE = np.geomspace(1e5, 1e10, 30)
_BITS = np.tile([3.0, 4.0, 6.0, 8.0], 9)
_UNIQUE = np.repeat([1e9, 1e10, 1e11], 36)
_REPEATED = np.maximum(np.tile(np.geomspace(1e9, 3e12, 6).repeat(6), 3), _UNIQUE)
MUENNIGHOFF = {
    "E": np.exp(0.6254804),
    "A": np.exp(6.255414),
    "alpha": 0.3526596,
    "B": np.exp(7.3049974),
    "beta": 0.3526596,
    "R_N": 5.309743,
    "R_D": 15.387756,
}
_STUDENT, _SHOWN, _TAUGHT = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e8, 8e9, 3), np.geomspace(4e9, 5e11, 3),
                                                                 np.linspace(1.7, 2.9, 4)))  # fmt: skip
# Of the order of those that Frantar et al. 2023 fit to T5 on C4.
FRANTAR = {"E": 0.651, "a": 16.8, "c": 45.0, "B": 6.90e8**0.203, "b": 0.722, "alpha": 0.245, "beta": 0.203}
_DENSITY, _LEFT, _SEEN = (axis.ravel() for axis in np.meshgrid([0.125, 0.25, 0.5, 1.0], np.geomspace(1e6, 1e8, 4),
                                                               np.geomspace(1e9, 1e11, 3)))  # fmt: skip
PLANTED = {
    "skaling": ({"params": _N, "tokens": _D}, {"E": 1.7, "A": 480, "alpha": 0.4, "B": 2100, "beta": 0.42, "k": 0.8}),
    "kaplan": ({"params": _N, "tokens": _D}, {"N_c": 8.8e13, "alpha_N": 0.076, "D_c": 5.4e13, "alpha_D": 0.095}),
    "overtraining": ({"params": _N, "tokens": _D}, {"E": 1.8, "a": 50, "b": 60, "eta": 0.17}),
    "broken": ({"params": _ONE}, {"E": 1.5, "A": 40, "alpha": 0.2, "c": 0.25, "N_b": 3e7, "f": 0.5}),
    "offset_power": ({"x": _ONE}, {"c0": 0.02, "c1": 1e-9, "p": 1.1}),
    "roofline": (
        {"flops": np.geomspace(1e9, 1e14, 36), "bytes": np.tile(np.geomspace(1e6, 1e10, 6), 6)},
        {"t0": 1e-4, "F": 3e14, "W": 2e12},
    ),
    "precision": (
        {"params": _N, "tokens": _D, "bits": _BITS},
        {"C": 0.06, "gamma_D": 0.5, "gamma_N": 0.35, "gamma": 0.6},
    ),
    "sparsity": ({"density": _DENSITY, "params": _LEFT, "tokens": _SEEN}, FRANTAR),
    "sparsity_one_length": (
        {"density": _DENSITY[::3], "params": _LEFT[::3]},
        {name: value for name, value in FRANTAR.items() if name not in ("B", "beta")},
    ),
    "transfer": ({"params": _N, "tokens": _D}, {"k": 1.9e4, "a": 0.18, "b": 0.38}),  # as published, text to Python
    "data_constrained": ({"params": np.tile(_N, 3), "tokens": _REPEATED, "unique_tokens": _UNIQUE}, MUENNIGHOFF),
}
# Apart from the others: a fit of its nine parameters takes seconds.
DISTILLED = (
    {
        "params": _STUDENT,
        "tokens": _SHOWN,
        "teacher_loss": _TAUGHT,
        "supervised_loss": 1.2 + 406 * _STUDENT**-0.34 + 410 * _SHOWN**-0.28,
    },
    # A, B and their exponents as published; a wider bend, of which four teachers show something.
    {
        "c0": 1.5,
        "c1": 20.0,
        "d1": 1.3,
        "f1": 0.2,
        "A": 2243.0,
        "alpha": 0.321,
        "B": 24181.0,
        "beta": 0.637,
        "gamma": 0.764,
    },
)
