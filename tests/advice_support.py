"""Surfaces of loss over size and data with known optima, for the tests of advice."""

from __future__ import annotations

import numpy as np

BUDGETS = np.geomspace(1e18, 1e21, 7)
SURFACE = {"E": 1.8, "A": 480.0, "alpha": 0.34, "B": 2100.0, "beta": 0.44}


def loss_at(surface, params, tokens):
    reducible = surface["A"] * params ** -surface["alpha"] + surface["B"] * tokens ** -surface["beta"]
    return surface["E"] + reducible


def truth(surface):
    """a and the constant of N*, from the textbook formula (Hoffmann et al. 2022, equation 4)."""
    total = surface["alpha"] + surface["beta"]
    G = (surface["alpha"] * surface["A"] / (surface["beta"] * surface["B"])) ** (1 / total)
    return surface["beta"] / total, G * 6 ** -(surface["beta"] / total)


def isoflop_points(surface, *, width=1.0, centre=0.0, drift=0.0, points=9, noise=0.0, seed=0):
    """Grids of exp(±width) about exp(centre + drift * ln C / C0) times the optimal size of every budget."""
    a, constant = truth(surface)
    offsets = np.linspace(-width, width, points) + centre + drift * np.log(BUDGETS / BUDGETS[0])[:, None]
    params = constant * BUDGETS[:, None] ** a * np.exp(offsets)
    tokens = BUDGETS[:, None] / 6 / params
    scatter = noise * np.random.default_rng(seed).standard_normal(params.shape)
    loss = loss_at(surface, params, tokens) + scatter
    return {"params": params.ravel(), "tokens": tokens.ravel(), "loss": loss.ravel()}


def ladder(noise: float, seed: int) -> dict[str, np.ndarray]:
    """Nine sizes, the same at every budget, from about the optimum of the smallest to that of the largest."""
    a, constant = truth(SURFACE)
    optimum = constant * BUDGETS**a
    params = np.tile(np.geomspace(0.8 * optimum[0], 1.25 * optimum[-1], 9), (7, 1))
    tokens = BUDGETS[:, None] / 6 / params
    kept = tokens > 0.05 * params
    loss = loss_at(SURFACE, params, tokens) + noise * np.random.default_rng(seed).standard_normal(params.shape)
    return {"params": params[kept], "tokens": tokens[kept], "loss": loss[kept]}
