"""Allocation where data are limited: the published losses and optima, and those of a fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
from advice_support import SURFACE, isoflop_points, loss_at

from scalebench.advice.closed_form import closed_form
from scalebench.advice.data_constrained import data_constrained_optimum, lowest_loss
from scalebench.laws import LAWS, FitRefused, Refits, fit

# Muennighoff et al. 2023, as their code prints them: logs of E, A and B.
REPEATED = {"E": np.exp(0.6254804), "A": np.exp(6.255414), "B": np.exp(7.3049974)}
REPEATED |= {"alpha": 0.3526596, "beta": 0.3526596, "R_D": 15.387756, "R_N": 5.309743}


def repeated_loss(params, tokens, unique_tokens):
    columns = np.broadcast_arrays(*np.atleast_1d(params, tokens, unique_tokens))
    logs = dict(zip(("params", "tokens", "unique_tokens"), np.log(columns), strict=True))
    return LAWS["data_constrained"].predict(REPEATED, logs)[0]


def test_data_constrained_loss_to_all_digits():
    loss = repeated_loss([6.34e9, 8.67e9], [242e9, 178e9], 25e9)
    np.testing.assert_allclose(loss, [2.2256440889984477, 2.2269634075087867], rtol=0, atol=1e-12)


def test_data_constrained_loss_without_repeats_is_the_plain_one():
    log_size, a, _, _ = closed_form(REPEATED)[0]
    params = np.exp(log_size + a * np.log(1e20))
    tokens = 1e20 / 6 / params
    plain = loss_at(REPEATED, params, tokens)
    assert repeated_loss(params, tokens, tokens) == pytest.approx(plain, rel=1e-12)
    assert repeated_loss(params, tokens, tokens / 4) > plain


def test_data_constrained_optimum_is_below_the_printed_one():
    best = {name: value[0] for name, value in lowest_loss(REPEATED, 1e22, 25e9).items()}
    assert best["loss"] < repeated_loss(7022364735.88, 237336955477.55, 25e9)
    assert best["tokens"] == pytest.approx(2.37209e11, rel=1e-5)
    assert best["params"] == pytest.approx(7.02616e9, rel=1e-5)
    assert best["epochs"] == pytest.approx(best["tokens"] / 25e9)
    sizes = best["params"] * np.exp(np.linspace(-0.5, 0.5, 1001))
    assert repeated_loss(sizes, 1e22 / 6 / sizes, 25e9).min() >= best["loss"] * (1 - 1e-14)


def test_data_constrained_optima_of_a_batch_are_those_one_by_one():
    decays = np.array([5.0, 15.387756, 40.0])
    together = lowest_loss({**{k: np.full(3, v) for k, v in REPEATED.items()}, "R_D": decays}, 1e22, 25e9)
    for i, decay in enumerate(decays):
        alone = lowest_loss({**REPEATED, "R_D": decay}, 1e22, 25e9)
        # A batch stays on the grid, whose step is 0.025 in ln N: the vertex of a parabola is far closer.
        assert together["params"][i] == pytest.approx(alone["params"][0], rel=1e-3)
        assert together["loss"][i] == pytest.approx(alone["loss"][0], rel=1e-7)


def test_data_constrained_optimum_with_enough_data_is_the_plain_one():
    best = lowest_loss(REPEATED, 1e20, 1e15)
    log_size, a, _, _ = closed_form(REPEATED)[0]
    # Loss is flat at its minimum: rounding of 1e-16 in loss is about 1e-7 in ln N.
    assert best["params"][0] == pytest.approx(np.exp(log_size + a * np.log(1e20)), rel=1e-5)


def test_data_constrained_optimum_of_a_fit_holds_the_true_one():
    U, epochs, params = (axis.ravel() for axis in np.meshgrid([1e9, 1e10], [1, 4, 16, 60], np.geomspace(1e8, 1e10, 6)))
    loss = repeated_loss(params, epochs * U, U) * np.exp(0.002 * np.random.default_rng(2).standard_normal(48))
    columns = {"params": params, "tokens": epochs * U, "unique_tokens": U, "loss": loss}
    best = data_constrained_optimum(replace(fit(columns, "data_constrained"), refits=Refits(n=200)), 1e22, 25e9)
    for name, value in lowest_loss(REPEATED, 1e22, 25e9).items():
        low, high = best.intervals[name]
        assert low < value[0] < high
        assert low < getattr(best, name) < high
    assert "48 configurations" in best.method
    json.dumps(best.to_dict(), allow_nan=False)


def test_data_constrained_refusals():
    with pytest.raises(FitRefused, match="parameters R_N are missing"):
        lowest_loss({k: v for k, v in REPEATED.items() if k != "R_N"}, 1e22, 1e9)
    with pytest.raises(FitRefused, match="unique_tokens is -1"):
        lowest_loss(REPEATED, 1e22, -1)
    with pytest.raises(FitRefused, match="law chinchilla has no repeated data"):
        data_constrained_optimum(fit(isoflop_points(SURFACE), "chinchilla"), 1e22, 1e9)
