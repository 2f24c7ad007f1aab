"""Scaling-law fits against planted parameters, the published optimum on public data, and what must not change them."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from law_support import SIZES, epoch_points, power_points

from scalebench.laws import LAWS, FitRefused, Law, fit
from scalebench.laws.problem import Problem

exponent = st.floats(0.2, 0.7)


def chinchilla_points(*, E=1.8, A=480.0, alpha=0.35, B=2100.0, beta=0.37, noise=0.0):
    params, tokens = (a.ravel() for a in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    scatter = noise * np.random.default_rng(1).standard_normal(len(params))
    return {"params": params, "tokens": tokens, "loss": (E + A * params**-alpha + B * tokens**-beta) * np.exp(scatter)}


@pytest.mark.slow
@settings(max_examples=50, deadline=None)
@given(E=st.floats(0.1, 3.0), share=st.floats(0.5, 5.0), alpha=exponent)
def test_power_recovers_planted_parameters(E, share, alpha):
    A = share * E * SIZES[0] ** alpha
    fitted = fit(power_points(E, A, alpha))
    assert fitted.status == "converged"
    assert fitted.parameters == pytest.approx({"E": E, "A": A, "alpha": alpha}, rel=1e-6)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(
    E=st.floats(0.5, 3.0), of_params=st.floats(0.3, 2.0), of_tokens=st.floats(0.3, 2.0), alpha=exponent, beta=exponent
)
def test_chinchilla_recovers_planted_parameters(E, of_params, of_tokens, alpha, beta):
    planted = {"E": E, "A": of_params * 1e7**alpha, "alpha": alpha, "B": of_tokens * 1e9**beta, "beta": beta}
    assert fit(chinchilla_points(**planted), "chinchilla").parameters == pytest.approx(planted, rel=1e-6)


@pytest.mark.parametrize("loss", ["huber", "squares", "absolute"])
@pytest.mark.parametrize("space", ["log", "raw"])
def test_offset_linear_recovers_planted_parameters(loss, space):
    x = np.array([1e4, 3e4, 2e5, 1e6, 7e6])
    fitted = fit({"x": x, "y": 0.013 + 4.1e-9 * x}, "offset_linear", loss=loss, space=space)
    assert fitted.parameters == pytest.approx({"c0": 0.013, "c1": 4.1e-9}, rel=1e-6)


def test_one_outlier_does_not_move_a_huber_fit():
    points = power_points(sizes=np.geomspace(1e3, 1e6, 12))
    points["loss"][5] *= 1.3
    assert fit(points).parameters["alpha"] == pytest.approx(0.35, rel=0.01)
    assert fit(points, loss="squares").parameters["alpha"] != pytest.approx(0.35, rel=0.05)


def test_objective_is_the_sum_of_huber_losses():
    points = power_points(noise=0.01, seeds=3)
    fitted = fit(points, delta=2e-3)
    residual = np.log(points["loss"] / fitted.predict(params=points["params"]))
    size = np.abs(residual)
    assert fitted.objective == pytest.approx(
        np.where(size <= 2e-3, size**2 / 2, 2e-3 * (size - 1e-3)).sum(), rel=1e-9, abs=0
    )
    np.testing.assert_allclose(fitted.residuals, residual, atol=1e-12)
    twice = fit({name: np.tile(values, 2) for name, values in points.items()}, delta=2e-3)
    assert twice.objective == pytest.approx(2 * fitted.objective, rel=1e-9)


def test_weights_count_as_repeated_points():
    points = power_points(noise=0.01, seeds=2)
    counts = np.arange(1, 13)
    weighted = fit(points, weights=counts)
    repeated = fit({name: np.repeat(values, counts) for name, values in points.items()})
    assert weighted.objective == pytest.approx(repeated.objective, rel=1e-9)
    assert weighted.parameters == pytest.approx(repeated.parameters, rel=1e-5)


# Objective and parameters at high precision: an independent fit of the same points; for other delta likewise.
@pytest.mark.parametrize(
    ("options", "dropped", "objective", "parameters"),
    [
        ({}, 5, 1.01827403e-3, (1.817218, 477.8242, 2143.418, 0.347310, 0.367172)),
        ({"delta": 1e-4}, 5, 1.11778749e-4, (1.815824, 478.69, 2065.41, 0.347409, 0.365385)),
        ({"delta": 1e-2}, 5, 4.69622489e-3, (1.838079, 538.75, 2905.60, 0.354416, 0.381538)),
        ({"loss": "squares"}, 5, 5.730943505e-3, (1.864550, 593.32, 4875.64, 0.360253, 0.405883)),
        ({"loss": "squares", "space": "raw"}, 5, 0.08320382 / 2, (1.882814, 567.805, 7581.85, 0.357615, 0.427621)),
        ({}, 0, 1.826010524e-3, (1.891338, 495.73, 12845.6, 0.349313, 0.453049)),
    ],
)
def test_epoch_data_reach_the_optimum(options, dropped, objective, parameters):
    fitted = fit(epoch_points(dropped), "chinchilla", **options)
    assert fitted.n_points == 245 - dropped
    assert fitted.objective <= objective
    assert fitted.status == "converged"
    assert fitted.starts_agreeing == fitted.starts
    expected = dict(zip(("E", "A", "B", "alpha", "beta"), parameters, strict=True))
    assert fitted.parameters == pytest.approx(expected, rel=1e-3)


def test_no_start_elsewhere_does_better():
    points = chinchilla_points(noise=0.01)
    fitted = fit(points, "chinchilla")
    rng = np.random.default_rng(0)
    for _ in range(200):  # random directions and lengths about the optimum
        nearby = fitted.theta * np.exp(10.0 ** rng.uniform(-6, -1) * rng.standard_normal(5))
        assert fitted.problem.value(nearby[None], 1e-3)[0] >= fitted.objective * (1 - 1e-12)


@pytest.mark.parametrize("space", ["log", "raw"])
@pytest.mark.parametrize("width", [1e-3, np.inf])
def test_gradient_and_newton_matrix_match_finite_differences(space, width):
    problem: Problem = fit(chinchilla_points(noise=0.02), "chinchilla", space=space).problem
    theta = np.array([[1.6, 0.5, 0.4, 0.4, 0.3]])
    gradient, newton, _ = problem.derivatives(theta, width)
    step = 1e-6 * np.eye(5)
    central = (problem.value(theta + step, width) - problem.value(theta - step, width)) / 2e-6
    np.testing.assert_allclose(gradient[0], central, rtol=1e-6, atol=1e-9)
    rows = (problem.derivatives(theta + step, width)[0] - problem.derivatives(theta - step, width)[0]) / 2e-6
    np.testing.assert_allclose(newton[0], rows, rtol=1e-5, atol=1e-7)


def test_units_rescale_coefficients_and_nothing_else():
    points = chinchilla_points(noise=0.01)
    fitted = fit(points, "chinchilla")
    other = fit({**points, "params": points["params"] / 1e6, "tokens": points["tokens"] / 1e9}, "chinchilla")
    p = fitted.parameters
    expected = {**p, "A": p["A"] * 1e6 ** -p["alpha"], "B": p["B"] * 1e9 ** -p["beta"]}
    assert other.parameters == pytest.approx(expected, rel=1e-6)
    assert other.objective == pytest.approx(fitted.objective, rel=1e-10)


def test_order_does_not_matter():
    points = chinchilla_points(noise=0.01)
    order = np.random.default_rng(3).permutation(25)
    shuffled = fit({name: values[order] for name, values in points.items()}, "chinchilla")
    fitted = fit(points, "chinchilla")
    assert shuffled.parameters == pytest.approx(fitted.parameters, rel=1e-6)
    assert shuffled.objective == pytest.approx(fitted.objective, rel=1e-10)


def test_frame_mapping_and_short_names_agree():
    points = power_points(noise=0.01)
    fitted = fit(points)
    assert fit(pd.DataFrame(points)).parameters == fitted.parameters
    assert fit({"x": points["params"], "y": points["loss"]}).parameters == fitted.parameters
    np.testing.assert_array_equal(fitted.predict({"x": [2e5]}), fitted.predict(params=[2e5]))


def test_bound_on_the_offset_is_reported():
    sizes = SIZES
    fitted = fit({"params": sizes, "loss": 30 * sizes**-0.35 - 0.05})  # best E is negative
    assert fitted.status == "at_bound"
    assert fitted.bounds_hit == ("E",)
    assert fitted.parameters["E"] == 0.0


def test_offset_stays_below_the_lowest_mean_and_three_standard_errors():
    rng = np.random.default_rng(5)
    params = np.repeat(SIZES, 2)
    loss = (2.0 + 1e6 * params**-2.5) * np.exp(0.01 * rng.standard_normal(12))  # at its floor from the second size on
    fitted = fit({"params": params, "loss": loss}, fixed={"alpha": 2.5})
    mean = loss.reshape(6, 2).mean(axis=1)
    spread = loss.reshape(6, 2) / mean[:, None] - 1
    ceiling = mean.min() * (1 + 3 * np.sqrt((spread**2).sum() / 6) / np.sqrt(2))
    assert fitted.problem.upper[0] == pytest.approx(ceiling, rel=1e-12)
    assert mean.min() < ceiling < mean.max()
    assert fitted.parameters["E"] <= ceiling


def test_pinned_parameters_stay_and_the_rest_is_optimal():
    points = power_points(noise=0.01, seeds=2)
    free = fit(points, loss="squares")
    for name, value in free.parameters.items():
        pinned = fit(points, loss="squares", fixed={name: value})
        assert pinned.parameters[name] == value
        assert pinned.parameters == pytest.approx(free.parameters, rel=1e-4)
        assert pinned.degrees_of_freedom == free.degrees_of_freedom + 1
    assert fit(points, fixed={"E": 1.6}).objective > fit(points).objective


def test_a_term_the_data_do_not_show_is_degenerate():
    params = np.repeat(SIZES, 2)
    rising = 2 + 1e-3 * np.log(params) + np.tile([-0.02, 0.02], 6)  # loss grows with size: A is 0, alpha is anything
    fitted = fit({"params": params, "loss": rising}, loss="squares")
    assert fitted.status == "degenerate"
    assert "A" in fitted.bounds_hit


def test_a_new_form_needs_one_function():
    def two_powers(log, shape):
        return -shape["a"] * log["x"], shape["b"] * log["x"]

    law = Law(
        "two_powers",
        "y = p x^-a + q x^b",
        "any",
        "test",
        ("x",),
        "y",
        ("p", "q"),
        {"a": (0.1, 2), "b": (0.1, 2)},
        two_powers,
    )
    x = np.geomspace(1, 1e4, 12)
    fitted = fit({"x": x, "y": 3 * x**-0.5 + 0.02 * x**0.8}, law)
    assert fitted.parameters == pytest.approx({"p": 3, "q": 0.02, "a": 0.5, "b": 0.8}, rel=1e-6)


GOOD = power_points()


@pytest.mark.parametrize(
    ("points", "options", "message"),
    [
        (power_points(sizes=[1e3, 1e5]), {}, r"2 configurations for 3 free parameters"),
        (power_points(sizes=np.linspace(1e3, 2.9e3, 6)), {}, r"params varies by a factor of 2\.9 "),
        (power_points(sizes=np.full(6, 1e3)), {}, r"1 configuration for 3"),
        ({**GOOD, "loss": [1, 2, np.nan, 4, 5, 6]}, {}, r"'loss', row 2 .* is nan"),
        ({**GOOD, "loss": [1, 2, 3, np.inf, 5, 6]}, {}, r"'loss', row 3 .* is inf"),
        ({**GOOD, "params": [1, 0, 3, 4, 5, 6]}, {}, r"'params', row 1 .* is 0"),
        ({**GOOD, "params": [1, 2, 3, 4, 5, -6.5]}, {}, r"'params', row 5 .* is -6\.5"),
        ({**GOOD, "loss": ["1", "2", "3", "4", "5", "six"]}, {}, r"'loss', row 5 .* is six"),
        ({"parms": [1], "loss": [1]}, {}, r"'params' is missing; columns given: parms, loss"),
        ({"params": [1, 2, 3], "loss": [1, 2]}, {}, r"params 3, loss 2"),
        ({"params": [], "loss": []}, {}, r"no points"),
        ({**GOOD, "config": ["a", "b"]}, {}, r"'config'"),
        (GOOD, {"law": "pwoer"}, r"'pwoer' is not known; choose one of power, chinchilla"),
        (GOOD, {"loss": "hubert"}, r"choose one of huber, squares, absolute"),
        (GOOD, {"space": "linear"}, r"choose one of log, raw"),
        (GOOD, {"delta": 0.0}, r"delta is 0\.0"),
        (GOOD, {"weights": [1, 2]}, r"weights have shape \(2,\)"),
        (GOOD, {"fixed": {"e": 1.0}}, r"'e'; parameters of power are E, A, alpha"),
        (GOOD, {"fixed": {"A": -1.0}}, r"fixed A is -1"),
        (GOOD, {"fixed": {"E": 2.5}}, r"fixed E is 2\.5, more than 3 standard errors above"),
    ],
)
def test_refusals_say_what_was_given(points, options, message):
    with pytest.raises(FitRefused, match=message) as refusal:
        fit(points, **options)
    assert "\n" not in str(refusal.value)


def test_tokens_tied_to_params_are_refused():
    points = chinchilla_points()
    with pytest.raises(FitRefused, match="one line in log space"):
        fit({**points, "tokens": 20 * points["params"]}, "chinchilla")


def test_duplicate_headers_are_refused():
    table = pd.DataFrame(np.ones((6, 3)), columns=["params", "loss", "loss"])
    with pytest.raises(FitRefused, match="two columns of that name"):
        fit(table)


def test_to_dict_survives_json():
    for points in (power_points(noise=0.01, seeds=2), power_points(sizes=SIZES[::2])):  # the second: no interval
        fitted = fit(points)
        summary = fitted.to_dict()
        assert json.loads(json.dumps(summary, allow_nan=False)) == summary
        assert summary["parameters"] == fitted.parameters
        assert summary["objective"] == fitted.objective
    assert summary["intervals"] == {"E": None, "A": None, "alpha": None}
    assert "zero degrees of freedom" in summary["interval_method"]


def test_every_law_is_documented():
    for name, law in LAWS.items():
        assert law.name == name
        assert law.formula
        assert law.units
        assert law.source
        assert law.log_terms.__doc__
