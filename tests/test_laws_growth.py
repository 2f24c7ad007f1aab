"""Noise that grows with size: it is seen, it is in the intervals, and equal noise stays as it is."""

from __future__ import annotations

import numpy as np
import pytest
from coverage_designs import Scenario, beyond
from coverage_laws import study

from scalebench.laws import fit
from scalebench.laws.intervals.growth import ALLOWED, Axes, Scatter, estimate_growth
from scalebench.laws.intervals.noise import estimate_noise
from scalebench.laws.intervals.simulation import _left_of, simulate

SIZES = np.geomspace(1e3, 1e5, 8)


def power(factor, *, sizes=SIZES, seeds=3, seed=0):
    """A power law with a noise of 0.5 % in the middle of the sizes, which grows by `factor` over them."""
    params = np.repeat(sizes, seeds)
    place = np.log(params / sizes[0]) / np.log(sizes[-1] / sizes[0]) - 0.5
    noise = 0.005 * factor**place * np.random.default_rng(seed).standard_normal(len(params))
    return {"params": params, "loss": (1.7 + 30.0 * params**-0.35) * np.exp(noise)}


@pytest.mark.parametrize(("factor", "verb"), [(10.0, "grows"), (0.1, "shrinks")])
def test_a_new_run_has_the_noise_of_its_size(factor, verb):
    points = power(factor)
    boot = fit(points).bootstrap(150, 0)
    assert boot.method == f"parametric bootstrap, t with 5 degrees of freedom, noise that {verb} with size"
    low, high = boot.prediction_interval({"params": SIZES[[0, -1]]}, kind="new")
    first, last = np.log(high / low)
    assert 4 < (last / first) ** np.sign(np.log(factor)) < 16  # 10 without the error of the law
    plain = fit(points).bootstrap(150, 0, "parametric")
    assert plain.method == "parametric bootstrap, t with 5 degrees of freedom"  # a method that is named
    low, high = plain.prediction_interval({"params": SIZES[[0, -1]]}, kind="new")
    assert 0.5 < np.ptp(np.log([low[1], high[1]])) / np.ptp(np.log([low[0], high[0]])) < 2


def test_noise_grows_on_beyond_the_sizes_but_does_not_shrink_on():
    far = {"params": [SIZES[-1], 10 * SIZES[-1]]}
    for factor, ratio in ((10.0, 10**0.5), (0.1, 1.0)):
        fitted = fit(power(factor, seeds=60))
        growth = estimate_noise(fitted).growth
        at_end, beyond_it = growth.chance @ np.log(growth.factors_at({"params": np.log(far["params"])}))
        assert growth.chance @ growth.rate == pytest.approx(np.log(factor), abs=0.2)
        assert beyond_it - at_end == pytest.approx(np.log(ratio), abs=0.1)
    low, high = fit(power(10.0)).bootstrap(200, 0).prediction_interval({"params": [1e90]}, kind="new")
    assert 0 < low[0] < high[0] < np.inf


def test_simulated_studies_have_the_noise_of_each_size():
    fitted = fit(power(10.0, seeds=60))
    noise = estimate_noise(fitted)
    for residuals in (False, True):
        targets, drawn = simulate(fitted, noise, 200, np.random.default_rng(0), residuals)
        scatter = targets - (fitted.problem.target - fitted.residuals)
        spread = scatter.reshape(200, 8, 60).std(axis=(0, 2))
        np.testing.assert_allclose(spread, 0.005 * 10 ** np.linspace(-0.5, 0.5, 8), rtol=0.15)
        assert len(np.unique(drawn.rates)) > 2
        assert drawn.factor.shape == (200,)


@pytest.mark.parametrize(("count", "seeds"), [(10, 12), (36, 1), (70, 1)])  # parametric, residuals, resample
def test_the_interval_of_a_new_run_is_as_wide_as_the_noise_there(count, seeds):
    sizes = np.geomspace(1e3, 1e5, count)
    fitted = fit(power(10.0, sizes=sizes, seeds=seeds))
    low, high = fitted.bootstrap(300, 0).prediction_interval({"params": sizes[[1, -2]]}, kind="new")
    widths = np.log(high / low) / (2 * 1.96 * 0.005)  # 0.32 and 3.2 at these ends
    # The rate has an error of 0.4 with 36 runs, which cancels in the mean; that of the scale is 12 %.
    assert np.sqrt(widths.prod()) == pytest.approx(1.0, rel=0.25)
    assert widths[1] > 3 * widths[0]


def test_noise_is_taken_for_equal_where_it_may_be():
    few = fit(power(10.0, sizes=SIZES[:6], seeds=1))
    assert estimate_noise(few).growth is None
    assert "3 degrees of freedom do not show whether noise grows with size" in few.bootstrap(20).reason
    assert few.bootstrap(20, method="parametric").reason == "as requested"
    assert estimate_noise(fit(power(1.0))).growth is None
    exact = {"params": SIZES, "loss": 1.7 + 30.0 * SIZES**-0.35}
    assert estimate_noise(fit(exact)).growth is None
    curves = power(10.0)  # points of one configuration at several sizes, as those of a training curve
    assert estimate_noise(fit({**curves, "config": np.arange(24) % 6})).growth is None


def test_noise_may_grow_with_one_of_two_inputs():
    params, tokens = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    noise = 0.005 * (tokens / 1e10) ** 0.5 * np.random.default_rng(2).standard_normal(25)
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(noise)
    growth = estimate_noise(fit({"params": params, "tokens": tokens, "loss": loss}, "chinchilla")).growth
    assert growth.axes.inputs == (("params",), ("tokens",), ("params", "tokens"))
    assert str(growth) == "noise that grows with tokens"
    assert growth.chance.sum() == pytest.approx(1.0)
    budget = {"params": np.log(params), "tokens": np.log(1e20 / params)}
    assert Axes.of(budget).inputs == (("params",), ("tokens",))  # their product is the same everywhere


def test_equal_noise_looks_as_if_it_grew_as_often_as_the_p_value_says():
    x, studies = np.linspace(-0.5, 0.5, 9), 60
    design, rng = np.stack([np.ones(9), x], axis=1), np.random.default_rng(0)
    seen = 0
    for _ in range(studies):
        means, squares = rng.standard_normal(9), rng.chisquare(1, 9)
        seen += estimate_growth(Scatter(design, means, squares, np.full(9, 2), np.ones(9)), {"x": x}) is not None
    assert abs(seen / studies - ALLOWED) < 3 * np.sqrt(ALLOWED * (1 - ALLOWED) / studies)


def test_residuals_of_unequal_noise_have_the_size_of_the_hat_matrix():
    from scalebench.laws.intervals.noise import design_by_config, group

    fitted = fit(power(10.0, seeds=2), loss="squares")
    groups, noise = group(fitted), np.geomspace(1, 10, 8)
    design = design_by_config(fitted, groups)
    left = np.eye(8) - design @ np.linalg.pinv(design)
    np.testing.assert_allclose(_left_of(noise, fitted, groups), np.sqrt((left**2 * noise**2).sum(axis=1)), rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("growth", [10.0, 0.1])
def test_intervals_hold_the_truth_where_noise_grows(growth):
    """With equal noise, the interval of a new run 10 times beyond the sizes holds it in 45 % where noise grows."""
    studies = 60
    scenario = Scenario("power", (8,), 3, 100.0, 0.005, growth=growth)
    intervals = [each["auto"] for each in study(scenario, range(studies))]
    assert set(beyond(scenario)) == {"params"}
    for name in intervals[0]:
        covered = sum(low <= truth <= high for low, high, truth in (each[name] for each in intervals))
        assert covered / studies >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies), name
