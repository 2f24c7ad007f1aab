"""Optima of sweeps against planted ones: vertices, edges refused, and laws of learning rate and batch with coverage."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from law_support import least_squares_line
from scipy.special import stdtrit

from scalebench.advice.censored import Beyond, censored
from scalebench.advice.optima import optimum_law
from scalebench.advice.regression import regress, vertex_variances
from scalebench.advice.vertex import joint_optimum
from scalebench.laws import FitRefused

SIZES = np.geomspace(1e6, 1e9, 7)


def quadratic_optimum(x, loss, neighbours):
    """Optimum of a sweep of one column."""
    return joint_optimum(np.asarray(x)[:, None], loss, ("x",), neighbours)[0]


def sweeps(rng, *, noise=0.0, constant=3.0, exponent=-0.35, wide=2.0, points=7, sizes=SIZES, **tokens):
    """One learning-rate sweep a size, centred a little off its optimum: loss 0.1 (ln lr - ln lr*)^2 above 2."""
    rows = []
    for size in sizes:
        best = constant * size**exponent
        grid = best * np.exp(np.linspace(-wide, wide, points) + 0.2 * rng.uniform(-1, 1))
        loss = 2 + 0.1 * np.log(grid / best) ** 2 + noise * rng.standard_normal(points)
        rows += [{"params": size, "learning_rate": lr, "loss": value} for lr, value in zip(grid, loss, strict=True)]
    return pd.DataFrame(rows)


def test_vertex_of_an_exact_parabola():
    x = np.geomspace(1e-4, 1e-2, 6)
    vertex = quadratic_optimum(x, 1.5 + 0.3 * np.log(x / 7e-4) ** 2, None)
    assert (vertex.x, vertex.loss, vertex.curvature) == pytest.approx((7e-4, 1.5, 0.6), rel=1e-9)
    assert vertex.degrees_of_freedom == 3


def test_only_neighbours_of_the_best_enter():
    x = np.geomspace(1e-5, 1e-1, 9)
    loss = 1 + 0.2 * np.log(x / 1.2e-3) ** 2
    loss[[0, 8]] += 5.0  # divergence far from the optimum
    assert quadratic_optimum(x, loss, 2).x == pytest.approx(1.2e-3, rel=1e-9)
    assert quadratic_optimum(x, loss, None).x != pytest.approx(1.2e-3, rel=1e-3)


def test_many_rates_drawn_at_random_show_the_law_through_noise():
    rng, rows = np.random.default_rng(1), []
    for size in SIZES:
        best = 3.0 * size**-0.35
        for rate in best * np.exp(rng.uniform(-2.5, 2.5, 50)):
            loss = 2 + 0.05 * np.log(rate / best) ** 2 + 0.01 * rng.standard_normal()
            rows.append({"params": size, "learning_rate": rate, "loss": loss})
    law = optimum_law(pd.DataFrame(rows))
    assert law.refused == ()  # of 5 values about the best, which lie within 20 %, no parabola can be told
    low, high = law.interval("params")
    assert low < -0.35 < high
    assert high - low < 0.06


@pytest.mark.slow
def test_gain_is_the_scatter_of_the_vertex_per_unit_noise():
    x, rng = np.geomspace(1e-4, 1e-2, 9), np.random.default_rng(0)
    clean, noise = 1.5 + 0.3 * np.log(x / 2.5e-4) ** 2, 0.01  # off centre: noise in the bend counts too
    draws = [np.log(quadratic_optimum(x, clean + noise * rng.standard_normal(9), None).x) for _ in range(2000)]
    # Standard error of a standard deviation from 2000 draws: 1.6 %; second-order terms of the vertex: below 1 %.
    assert np.std(draws) == pytest.approx(noise * quadratic_optimum(x, clean, None).gain, rel=0.06)


@pytest.mark.parametrize(
    ("x", "loss", "message"),
    [
        ([1, 2], [1.0, 2.0], "2 values of x for a parabola; it needs at least 3"),
        ([1, 2, 4, 8], [1.0, 2.0, 3.0, 4.0], "at the lowest of 4 values, x = 1; .* add values below"),
        ([1, 2, 4, 8], [4.0, 3.0, 2.0, 1.0], "at the highest of 4 values, x = 8; .* add values above"),
        ([1, 2, 4, 8, 16], [0.0, -0.1, 2.0, 2.0, 0.1], "bends down"),
        ([1, 2, 4, 8], [1.0, 0.999, 1.5, 1.9], "lies outside the values fitted"),
    ],
)
def test_what_is_no_interior_minimum_is_refused(x, loss, message):
    with pytest.raises(FitRefused, match=message) as refusal:
        quadratic_optimum(x, loss, None)
    assert "\n" not in str(refusal.value)


def test_law_recovers_planted_exponent_and_constant():
    law = optimum_law(sweeps(np.random.default_rng(0)))
    assert law.exponents == pytest.approx({"params": -0.35}, rel=1e-9)
    assert law.constant == pytest.approx(3.0, rel=1e-8)
    assert law.predict(params=7e9) == pytest.approx(3.0 * 7e9**-0.35, rel=1e-8)


def test_law_of_two_sizes_recovers_both_exponents():
    frames = []
    for tokens in (1e9, 4e9, 3e10):
        frame = sweeps(np.random.default_rng(1), constant=0.02 * tokens**0.25, sizes=SIZES[::3])
        frames.append(frame.assign(tokens=tokens))
    law = optimum_law(pd.concat(frames), against=("params", "tokens"))
    assert law.exponents == pytest.approx({"params": -0.35, "tokens": 0.25}, rel=1e-8)
    assert law.constant == pytest.approx(0.02, rel=1e-6)


@pytest.mark.slow
def test_intervals_cover_exponent_constant_and_prediction():
    studies, covered = 300, dict.fromkeys(("params", "constant", "far"), 0)
    truth = {"params": -0.35, "constant": 3.0, "far": 3.0 * 1e10**-0.35}
    for seed in range(studies):
        law = optimum_law(sweeps(np.random.default_rng([1, seed]), noise=0.01))
        ends = {name: law.interval(name) for name in ("params", "constant")}
        ends["far"] = law.prediction_interval(params=1e10)
        for name, (low, high) in ends.items():
            covered[name] += low <= truth[name] <= high
    # 95 % of 300 within three standard errors of the simulation (1.26 %): 91.2 % to 98.8 %.
    assert all(0.912 <= count / studies <= 0.988 for count in covered.values()), covered


def test_noise_of_the_parabolas_sets_the_weights_until_the_vertices_scatter_more():
    frames = [
        sweeps(np.random.default_rng([2, i]), noise=0.01, sizes=[size], wide=wide, points=15)
        for i, (size, wide) in enumerate(zip(SIZES, [2.0, 2.0, 2.0, 2.0, 0.8, 0.8, 0.8], strict=True))
    ]
    optima = [quadratic_optimum(frame["learning_rate"], frame["loss"], None) for frame in frames]
    design = np.stack([np.ones(7), np.log(SIZES)], axis=1)
    variances = vertex_variances(optima, design)
    noise = sum(o.residual_squares for o in optima) / sum(o.degrees_of_freedom for o in optima)
    assert noise == pytest.approx(0.01**2, rel=0.35)  # 84 degrees of freedom: standard error 15 %
    assert variances == pytest.approx([noise * o.gain**2 for o in optima], rel=0.5)
    assert variances[-1] > 5 * variances[0]
    shaken = [dataclasses.replace(o, x=o.x * factor) for o, factor in zip(optima, [2, 0.5] * 3 + [2], strict=True)]
    common = vertex_variances(shaken, design)
    assert common == pytest.approx(np.full(7, np.log(2) ** 2 * 7 / 5), rel=0.5)


def test_sweeps_with_the_best_at_an_edge_are_left_out_and_listed():
    points = sweeps(np.random.default_rng(3))
    points = points[~((points["params"] == SIZES[2]) & (points["learning_rate"] > 3.0 * SIZES[2] ** -0.35))]
    law = optimum_law(points)
    assert [refused.group for refused in law.refused] == [{"params": pytest.approx(SIZES[2])}]
    assert "add values above" in law.refused[0].reason
    assert law.exponents["params"] == pytest.approx(-0.35, rel=1e-9)
    assert len(law.optima) == 6


def fixed_grid(rng, noise, sizes=SIZES, edge=0.0):
    """Sweeps of one grid at all sizes; the optimum of the largest lies `edge` steps above the lowest value."""
    grid = 1e-2 * 2.0 ** np.arange(6)
    size, rate = (axis.ravel() for axis in np.meshgrid(sizes, grid, indexing="ij"))
    best = grid[0] * 2.0**edge * (size / sizes[-1]) ** -0.2
    loss = 2 + 0.1 * np.log(rate / best) ** 2 + noise * rng.standard_normal(len(rate))
    return {"params": size, "learning_rate": rate, "loss": loss}


def test_a_censored_line_is_that_of_all_points():
    rng = np.random.default_rng(0)
    design = np.stack([np.ones(400), rng.uniform(0, 1, 400)], axis=1)
    target = design @ [0.0, 2.0] + rng.normal(0, 0.5, 400)
    seen = target < 1.0
    beyond = Beyond(design[~seen], np.ones((~seen).sum()), np.ones((~seen).sum()), np.ones((~seen).sum()))
    coefficients, covariance = censored(design[seen], target[seen], np.ones(seen.sum()), beyond)
    errors = np.sqrt(np.diag(covariance))
    assert (np.abs(coefficients - [0.0, 2.0]) < 3 * errors).all()
    assert (errors < 0.12).all()
    alone = regress(design[seen], target[seen], np.ones(seen.sum()))
    assert alone.interval([0, 1])[1] < 1.6  # the points left out are those above the limit
    exact = censored(design[seen], design[seen] @ [0.0, 2.0], np.ones(seen.sum()), beyond)
    assert exact is None


def test_an_optimum_at_the_edge_bends_the_law_towards_it():
    """The largest size has its optimum below the grid, and the line through the others has it 27 % inside."""
    grid, limit = 1e-2 * 2.0 ** np.arange(8), 1e-2 * np.sqrt(2)
    best = 1.1 * limit * 2.0 ** np.arange(6)[::-1] * np.exp([0.2, -0.2, 0.2, -0.2, 0.2, -1.0])
    loss = 2 + 0.1 * np.log(grid / best[:, None]) ** 2
    points = pd.DataFrame({"params": np.repeat(SIZES[:6], 8), "learning_rate": np.tile(grid, 6), "loss": loss.ravel()})
    law, others = optimum_law(points), optimum_law(points[points["params"] < 0.99 * SIZES[5]])
    (refused,) = law.refused
    assert refused.group == {"params": pytest.approx(SIZES[5])}
    assert "add values below. The line counts the best learning_rate as below 0.0141" in refused.reason
    assert (refused.use, law.to_dict()["refused"][0]["counted"]) == ("counted as beyond its edge", True)
    assert limit < others.predict(params=SIZES[5]) < 1.3 * limit
    assert law.predict(params=SIZES[5]) < 0.95 * others.predict(params=SIZES[5])
    assert law.prediction_interval(params=SIZES[5])[0] < others.prediction_interval(params=SIZES[5])[0]


def test_an_edge_that_noise_cannot_explain_does_not_bend_the_law():
    points = sweeps(np.random.default_rng(3), noise=0.001)
    largest = points["params"] > 0.99 * SIZES[-1]
    lost = largest & (points["learning_rate"] == points["learning_rate"][largest].max())  # a loss that is no loss
    bent = optimum_law(points.assign(loss=points["loss"].where(~lost, 0.1)))
    assert "add values above" in bent.refused[0].reason
    assert "counts" not in bent.refused[0].reason
    assert (bent.refused[0].use, bent.to_dict()["refused"][0]["counted"]) == ("left out", False)
    assert bent.exponents == pytest.approx(optimum_law(points[~largest]).exponents, rel=1e-9)


@pytest.mark.slow
def test_intervals_hold_the_truth_with_optima_at_the_edge():
    """Through the sweeps with an optimum alone, 89 % of these intervals of the exponent hold it."""
    studies = 300
    covered = sum(
        low <= -0.2 <= high
        for seed in range(studies)
        for low, high in [optimum_law(fixed_grid(np.random.default_rng([4, seed]), 0.03)).interval("params")]
    )
    assert covered / studies >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies)


def test_too_few_optima_are_refused_with_the_reason_of_the_first():
    points = sweeps(np.random.default_rng(3), sizes=SIZES[:3])
    points = points[points["learning_rate"] > 3.0 * points["params"] ** -0.35]
    with pytest.raises(FitRefused, match=r"0 of 3 sweeps .* need 3: .*the lowest loss is at the lowest"):
        optimum_law(points)
    with pytest.raises(FitRefused, match=r"column 'batch_size' is missing; columns given: params, learning_rate, loss"):
        optimum_law(points, "batch_size")
    with pytest.raises(FitRefused, match=r"column 'loss', row 1 .* is nan"):
        optimum_law({"params": [1, 1], "learning_rate": [1, 2], "loss": [1, np.nan]})


def test_sizes_tied_to_each_other_are_refused():
    points = sweeps(np.random.default_rng(0)).assign(tokens=lambda t: 20 * t["params"])
    with pytest.raises(FitRefused, match="7 optima do not determine 2 exponents"):
        optimum_law(points, against=("params", "tokens"))


def test_regression_interval_is_the_textbook_one_and_its_draws_agree():
    x = np.array([1.0, 3.0, 5.0, 8.0, 10.0, 14.0])
    y = 5.0 + 2.0 * x + np.random.default_rng(2).normal(0, 0.1, 6)
    line = regress(np.stack([np.ones(6), x], axis=1), y, np.ones(6))
    book = least_squares_line(x, y)
    half = stdtrit(4, 0.975) * book.stderr
    assert line.interval([0, 1]) == pytest.approx((book.slope - half, book.slope + half), rel=1e-9)
    low, high = np.quantile(line.draws(20_000, 0)[:, 1], [0.025, 0.975])
    # Monte-Carlo error of a 2.5 % quantile of t_4 from 20,000 draws: about 2 % of it.
    assert (low, high) == pytest.approx((book.slope - half, book.slope + half), abs=0.06 * half)


def test_to_dict_survives_json_and_names_are_checked():
    law = optimum_law(sweeps(np.random.default_rng(0), noise=0.01))
    summary = law.to_dict()
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert summary["intervals"]["params"] == list(law.interval("params"))
    with pytest.raises(
        FitRefused, match="'depth' is not a parameter; those of the learning_rate law are constant, par"
    ):
        law.interval("depth")
    with pytest.raises(FitRefused, match="sizes given: depth; needed: params"):
        law.predict(depth=2)
    with pytest.raises(FitRefused, match="params 0: a positive finite number is needed"):
        law.predict(params=0.0)
