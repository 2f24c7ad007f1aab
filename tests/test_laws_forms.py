"""Every law against planted parameters, published predictions, finite differences, and a change of units."""

import numpy as np
import pytest
from law_support import MUENNIGHOFF, PLANTED

from scalebench.laws import LAWS, FitRefused, fit
from scalebench.laws.points import read_points
from scalebench.laws.posing import pose
from scalebench.laws.solver import polish
from scalebench.laws.starts import starts

N, D = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))


def planted(name, noise=0.0, **units):
    """Columns with the planted response; inputs given in other units."""
    inputs, parameters = PLANTED[name]
    y = LAWS[name].predict(parameters, {key: np.log(value) for key, value in inputs.items()})[0]
    y = y * np.exp(noise * np.random.default_rng(0).standard_normal(len(y)))
    return {**{key: value / units.get(key, 1.0) for key, value in inputs.items()}, LAWS[name].response: y}


@pytest.mark.parametrize("name", PLANTED)
def test_planted_parameters_are_recovered(name):
    fitted = fit(planted(name), name)
    assert fitted.status == "converged"
    assert fitted.parameters == pytest.approx(PLANTED[name][1], rel=1e-6)


@pytest.mark.parametrize("name", PLANTED)
def test_gradient_and_newton_matrix_match_finite_differences(name):
    points = read_points(LAWS[name], planted(name, 0.01))
    problem = pose(LAWS[name], points, "log", np.ones(len(points.response)), {}, "huber")
    theta = polish(problem, starts(problem)[:4], 1e-3)[0][:1] * 1.03  # of a few starts: any optimum will do
    gradient, newton, _ = problem.derivatives(theta, np.inf)
    width = 1e-6 * np.abs(theta[0])
    step = np.diag(width)
    central = (problem.value(theta + step, np.inf) - problem.value(theta - step, np.inf)) / (2 * width)
    scale = np.sqrt(np.diag(newton[0]))  # parameters differ in size: compare in units of their own curvature
    np.testing.assert_allclose(gradient[0] / scale, central / scale, rtol=1e-6, atol=1e-8)
    ahead, behind = (problem.derivatives(theta + sign * step, np.inf)[0] for sign in (1, -1))
    rows = (ahead - behind) / (2 * width[:, None])
    both = scale[:, None] * scale
    np.testing.assert_allclose(newton[0] / both, rows / both, rtol=1e-5, atol=1e-7)


def test_muennighoff_predictions():
    # Two losses computed from the published parameters by the published code, in double precision.
    inputs = {"params": [6.34e9, 8.67e9], "tokens": [242e9, 178e9], "unique_tokens": [25e9, 25e9]}
    logs = {key: np.log(value) for key, value in inputs.items()}
    expected = [2.2256440889984477, 2.2269634075087867]
    np.testing.assert_allclose(LAWS["data_constrained"].predict(MUENNIGHOFF, logs)[0], expected, rtol=1e-12)


def test_without_repetition_data_constrained_is_chinchilla():
    p = MUENNIGHOFF
    logs = {"params": np.log([1e8]), "tokens": np.log([5e9]), "unique_tokens": np.log([1e12])}
    expected = p["E"] + p["A"] * 1e8 ** -p["alpha"] + p["B"] * 5e9 ** -p["beta"]
    assert LAWS["data_constrained"].predict(p, logs)[0, 0] == pytest.approx(expected, rel=1e-14)


def test_overtraining_is_chinchilla_with_tied_exponents():
    p = PLANTED["overtraining"][1]
    A, B = p["a"] * 6 ** -p["eta"], p["b"] * 6 ** -p["eta"]
    tied = {"E": p["E"], "A": A, "alpha": 2 * p["eta"], "B": B, "beta": 2 * p["eta"]}
    logs = {"params": np.log(N), "tokens": np.log(D)}
    np.testing.assert_allclose(
        LAWS["overtraining"].predict(p, logs), LAWS["chinchilla"].predict(tied, logs), rtol=1e-13
    )


@pytest.mark.parametrize(
    ("name", "units", "rescaled"),
    [
        ("skaling", {"params": 1e6, "tokens": 1e9}, lambda p: {"A": 1e6 ** -p["alpha"], "B": 1e9 ** -p["beta"]}),
        ("kaplan", {"params": 1e6, "tokens": 1e9}, lambda p: {"N_c": 1e-6, "D_c": 1e-9}),
        pytest.param(
            "broken", {"params": 1e6}, lambda p: {"A": 1e6 ** -p["alpha"], "N_b": 1e-6}, marks=pytest.mark.slow
        ),
        ("roofline", {"flops": 1e12, "bytes": 1e9}, lambda p: {"F": 1e-12, "W": 1e-9}),
    ],
)
def test_units_rescale_what_they_should(name, units, rescaled):
    fitted, other = fit(planted(name, 0.003), name), fit(planted(name, 0.003, **units), name)
    expected = {key: value * rescaled(fitted.parameters).get(key, 1.0) for key, value in fitted.parameters.items()}
    assert other.parameters == pytest.approx(expected, rel=1e-6)
    assert other.objective == pytest.approx(fitted.objective, rel=1e-10)


def test_pins_reach_what_the_fit_can_hold():
    points = planted("skaling")
    assert fit(points, "skaling", fixed={"k": 0.8}).parameters == pytest.approx(PLANTED["skaling"][1], rel=1e-6)
    with pytest.raises(FitRefused, match="A of skaling cannot be fixed; those that can are E, alpha, beta, k"):
        fit(points, "skaling", fixed={"A": 480.0})


def test_a_rate_without_traffic_to_resolve_it_is_infinite_and_has_a_lowest_value():
    flops, moved = (axis.ravel() for axis in np.meshgrid(np.geomspace(1e9, 1e12, 4), np.geomspace(1e6, 1e9, 4)))
    time = (1e-4 + flops / 1e12) * np.exp(0.01 * np.random.default_rng(0).standard_normal(16))
    fitted = fit({"flops": flops, "bytes": moved, "time": time}, "roofline")
    assert fitted.parameters["W"] == np.inf
    assert (fitted.bounds_hit, list(fitted.unresolved)) == (("W",), ["W"])
    low, high = fitted.interval("W")
    samples = fitted.bootstrap().samples["W"]
    assert high == np.inf
    assert 1 / low == pytest.approx(np.quantile(1 / samples, 0.975), rel=1e-12)
    assert np.isinf(samples).mean() > 0.2
    assert fitted.predict(flops=1e12, bytes=1e9) == pytest.approx(fitted.predict(flops=1e12, bytes=1.0), rel=1e-12)


@pytest.mark.parametrize("fixed", [("F",), ("W",), ("t0",), ("F", "t0"), ("F", "W")])
def test_rates_of_a_roofline_can_be_pinned(fixed):
    points, truth = planted("roofline", 0.003), PLANTED["roofline"][1]
    fitted = fit(points, "roofline", fixed={name: truth[name] for name in fixed})
    assert {name: fitted.parameters[name] for name in fixed} == pytest.approx({n: truth[n] for n in fixed}, rel=1e-12)
    assert fitted.parameters == pytest.approx(truth, rel=0.05)
    free = fit(points, "roofline")
    again = fit(points, "roofline", fixed={name: free.parameters[name] for name in fixed})
    assert again.parameters == pytest.approx(free.parameters, rel=1e-4)  # the optimum is flat to half the digits
    assert again.objective == pytest.approx(free.objective, rel=1e-9)
    with pytest.raises(FitRefused, match=r"fixed F is 0.*; a rate needs a positive number"):
        fit(points, "roofline", fixed={"F": 0.0})


def test_one_amount_of_unique_tokens_is_enough():
    points = {key: value[:36] for key, value in planted("data_constrained").items()}
    fitted = fit(points, "data_constrained")
    np.testing.assert_allclose(fitted.predict(points), points["loss"], rtol=1e-9)


@pytest.mark.parametrize(
    "law", ["kaplan", "skaling", pytest.param("data_constrained", marks=pytest.mark.slow), "overtraining", "chinchilla"]
)
def test_sizes_as_people_have_them_overflow_nowhere(law: str) -> None:
    """Params to 1e13 and tokens to 1e15; a warning is an error in these tests."""
    n, d = np.tile(np.geomspace(1e7, 1e13, 6), 6), np.repeat(np.geomspace(1e9, 1e15, 6), 6)
    loss = 1.7 + 400 * n**-0.34 + 410 * d**-0.28
    fitted = fit({"params": n, "tokens": d, "unique_tokens": d, "loss": loss}, law)
    assert np.isfinite(list(fitted.parameters.values())).all()
    assert fitted.residuals.std() < 0.2
