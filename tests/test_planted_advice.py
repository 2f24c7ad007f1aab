"""Advice against planted truth, where the method that gives it is biased."""

import numpy as np
import pytest

from scalebench.advice import isoflop, optimum_law
from scalebench.advice.closed_form import closed_form

SURFACE = {"E": 1.8, "A": 2000.0, "alpha": 0.5, "B": 400.0, "beta": 0.25}


@pytest.fixture(scope="module")
def budgets() -> dict[str, np.ndarray]:
    """Five budgets of nine sizes from 1/20 to 20 times a centre three times the optimum, noise of 0.05 %."""
    level, a, _, _ = closed_form(SURFACE)[0]
    flops = np.repeat(np.geomspace(1e18, 1e21, 5), 9)
    params = 3 * np.exp(level) * flops**a * np.tile(np.geomspace(1 / 20, 20, 9), 5)
    tokens = flops / 6 / params
    loss = SURFACE["E"] + SURFACE["A"] * params ** -SURFACE["alpha"] + SURFACE["B"] * tokens ** -SURFACE["beta"]
    noise = np.exp(5e-4 * np.random.default_rng(0).standard_normal(45))
    return {"params": params, "tokens": tokens, "flops": flops, "loss": loss * noise}


def test_the_interval_of_approach_2_holds_the_optimum_despite_its_bias(budgets: dict[str, np.ndarray]) -> None:
    """The parabolas are biased by 15 % at 1e23 FLOPs; the interval from their scatter, 4 % wide, never held it."""
    level, a, _, _ = closed_form(SURFACE)[0]
    allocation = isoflop(budgets)
    for flops in (1e21, 1e23):
        optimum = np.exp(level) * flops**a
        (low,), (high,) = allocation.params_interval(flops)
        assert low <= optimum <= high
        (fewest,), (most,) = allocation.tokens_interval(flops)
        assert fewest <= flops / 6 / optimum <= most
        assert high < 1.4 * low
    assert abs(allocation.params(1e21)[0] / (np.exp(level) * 1e21**a) - 1) > 0.05  # still the published method's value
    low, high = allocation.interval("a")
    assert low <= a <= high < low + 0.02


def test_the_interval_of_a_best_rate_holds_it_where_losses_rise_faster_above_it() -> None:
    """lr* = 2 N^-0.4, losses with a cubic term: parabolas are 17 % low, and their interval is 3 % wide."""
    sizes, rates = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e5, 1e8, 6), 1e-3 * 2.0 ** np.arange(-5, 9)))
    away = np.log(rates / (2 * sizes**-0.4))
    noise = 1e-3 * np.random.default_rng(0).standard_normal(len(sizes))
    loss = 2 + 0.05 * (away**2 + 0.2 * away**3) + noise
    law = optimum_law({"params": sizes, "learning_rate": rates, "loss": loss})
    low, high = law.prediction_interval(params=1e8)
    assert law.predict(params=1e8) / (2 * 1e8**-0.4) == pytest.approx(0.84, abs=0.06)
    assert low <= 2 * 1e8**-0.4 <= high < 1.5 * low
    low, high = law.interval("params")
    assert low <= -0.4 <= high
