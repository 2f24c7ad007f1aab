"""Approach 2 where budgets have their minimum at an edge of one ladder of sizes, and where noise hides minima."""

from __future__ import annotations

import numpy as np
import pytest
from advice_support import SURFACE, isoflop_points, ladder, truth

from scalebench.advice.compute_optimal import isoflop
from scalebench.advice.optima import lines_through, sweep_optima

A, CONSTANT = truth(SURFACE)


def test_the_line_counts_a_minimum_at_an_edge_as_beyond_it_and_says_so() -> None:
    points = ladder(0.003, 2)
    law = isoflop(points)
    reasons = [refused.reason for refused in law.refused]
    assert len(law.optima) + len(reasons) == 7
    assert any("add values below. The line counts the best params as below" in reason for reason in reasons)
    columns = {**points, "flops": np.exp(np.round(np.log(6 * points["params"] * points["tokens"]), 6))}
    sweeps, _ = sweep_optima(columns, ("params",), ("flops",), None)
    (without,), _ = lines_through(sweeps, [], ("params",), ("flops",))
    assert law.a > without.coefficients[1] + 0.003
    assert law.a + law.b == pytest.approx(1.0, abs=1e-6)  # tokens mirror sizes, also beyond the edges


def test_noise_that_hides_the_minima_is_named() -> None:
    assert len(isoflop(isoflop_points(SURFACE, noise=0.003)).notes) == 1
    notes = isoflop(isoflop_points(SURFACE, noise=0.02, seed=1)).notes
    assert len(notes) == 2
    assert notes[1].startswith("noise moves the minimum at ")


@pytest.mark.parametrize(("noise", "same"), [(0.003, False), (0.02, True)])
def test_where_noise_hides_the_minima_every_budget_has_the_same_weight(noise: float, same: bool) -> None:
    """Errors of minima that are themselves noise are no weights: 91 % of 900 lines of five budgets held a, now 94 %."""
    points = isoflop_points(SURFACE, noise=noise, seed=1)
    law, equal = isoflop(points), isoflop(points, weighted=False)
    assert (law.a == equal.a) == same
    assert (law.interval("a") == equal.interval("a")) == same


@pytest.mark.slow
def test_minima_at_the_edges_leave_the_exponent_unbiased_and_its_intervals_hold_it() -> None:
    studies = 60
    laws = [isoflop(ladder(0.01, seed)) for seed in range(studies)]
    errors = np.array([law.a - A for law in laws])
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(studies)
    held = np.mean([low <= A <= high for low, high in (law.interval("a") for law in laws)])
    assert held >= 0.95 - 0.084  # three standard errors of the simulation
