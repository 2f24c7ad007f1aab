"""Intervals against their promise: Student-t in the linear case, coverage on simulated studies, backtests by hand."""

import numpy as np
import pytest
from law_support import least_squares_line
from scipy.special import stdtrit

from scalebench.laws import FitRefused, Forecast, fit
from scalebench.laws.intervals.noise import estimate_noise
from scalebench.laws.solver import polish
from scalebench.laws.starts import starts

SIZES = np.geomspace(1e3, 1e5, 6)
TRUTH = {"E": 1.7, "A": 30.0, "alpha": 0.35}


def study(rng, sizes=SIZES, seeds=2, noise=0.005, lack=0.0):
    """A simulated power study: log noise of each run, and of each size (`lack`)."""
    params = np.repeat(sizes, seeds)
    scatter = noise * rng.standard_normal(len(params)) + np.repeat(lack * rng.standard_normal(len(sizes)), seeds)
    return {"params": params, "loss": (1.7 + 30.0 * params**-0.35) * np.exp(scatter)}


@pytest.mark.slow
@pytest.mark.parametrize(("lack", "studies"), [(0.0, 200), (0.01, 60)])
def test_intervals_cover_the_truth(lack, studies):
    far = {"params": [4 * SIZES[-1]]}
    expected = 1.7 + 30.0 * far["params"][0] ** -0.35
    covered = dict.fromkeys(("E", "A", "alpha", "mean", "new"), 0)
    for seed in range(studies):
        rng = np.random.default_rng([0, seed])
        boot = fit(study(rng, lack=lack)).bootstrap(200, seed)
        intervals = {name: boot.interval(name) for name in TRUTH}
        for name, (low, high) in intervals.items():
            covered[name] += low <= TRUTH[name] <= high
        new = expected * np.exp(0.005 * rng.standard_normal() + lack * rng.standard_normal())
        for kind, value in (("mean", expected), ("new", new)):
            (low,), (high,) = boot.prediction_interval(far, kind=kind)
            covered[kind] += low <= value <= high
    # Three standard errors of the simulation below 95 %: 4.6 % of 200 studies, 8.4 % of 60.
    assert all(count / studies >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies) for count in covered.values()), covered


def test_linear_law_gets_student_t_intervals():
    x = np.array([1.0, 3.0, 5.0, 8.0, 10.0, 14.0])
    y = 5.0 + 2.0 * x + np.random.default_rng(2).normal(0, 0.1, 6)
    fitted = fit({"x": x, "y": y}, "offset_linear", loss="squares", space="raw")
    line = least_squares_line(x, y)
    half = stdtrit(4, 0.975) * line.stderr
    assert fitted.parameters["c1"] == pytest.approx(line.slope, rel=1e-9)
    low, high = fitted.bootstrap(20_000, 0).interval("c1")
    # Monte-Carlo error of a 2.5 % quantile from 20,000 draws of t_4: about 2 % of it.
    assert (low, high) == pytest.approx((line.slope - half, line.slope + half), abs=0.06 * half)


def test_prediction_interval_of_a_line_matches_the_textbook():
    x = np.array([1.0, 3.0, 5.0, 8.0, 10.0, 14.0])
    y = 5.0 + 2.0 * x + np.random.default_rng(2).normal(0, 0.1, 6)
    boot = fit({"x": x, "y": y}, "offset_linear", loss="squares", space="raw").bootstrap(20_000, 0)
    scale = np.sqrt(np.sum((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2) / 4)
    leverage = 1 / 6 + (30 - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)
    for kind, variance in (("mean", leverage), ("new", 1 + leverage)):
        (low,), (high,) = boot.prediction_interval({"x": [30.0]}, kind=kind)
        assert high - low == pytest.approx(2 * stdtrit(4, 0.975) * scale * np.sqrt(variance), rel=0.06)


def test_lack_of_fit_widens_what_replicates_alone_would_hide():
    rng = np.random.default_rng(4)
    points = study(rng, seeds=4, noise=1e-4, lack=0.02)
    noise = estimate_noise(fit(points))
    assert noise.seed == pytest.approx(1e-4, rel=0.5)
    assert noise.lack > 5e-3


@pytest.mark.slow
def test_noise_scales_are_unbiased():
    squares = [
        [noise.seed**2, (noise.means**2).mean()]
        for seed in range(100)
        for noise in [estimate_noise(fit(study(np.random.default_rng([1, seed])), loss="squares"))]
    ]
    seeds, means = np.mean(squares, axis=0)
    assert seeds == pytest.approx(0.005**2, rel=0.2)  # chi-squared, 6 x 100 degrees of freedom: standard error 5.8 %
    assert means == pytest.approx(0.005**2 / 2, rel=0.25)  # 3 x 100: 8.2 %


def test_method_is_stated():
    rng = np.random.default_rng(0)
    assert fit(study(rng)).bootstrap(50, 0).method == "parametric bootstrap, t with 3 degrees of freedom"
    many = fit(study(rng, sizes=np.geomspace(1e3, 1e6, 60)))
    assert many.bootstrap(50, 0).method == "bootstrap of 60 configurations, percentile"
    assert many.bootstrap(50, 0, "parametric").method == "parametric bootstrap, t with 57 degrees of freedom"


def test_bootstrap_repeats_by_seed():
    fitted = fit(study(np.random.default_rng(0)))
    first, again, other = (fitted.bootstrap(100, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.samples["alpha"], again.samples["alpha"])
    assert not np.array_equal(first.samples["alpha"], other.samples["alpha"])


@pytest.mark.parametrize("method", ["parametric", "resample"])
def test_neither_rows_nor_labels_have_an_order(method):
    rng = np.random.default_rng(5)
    points = study(rng, sizes=np.geomspace(1e3, 1e6, 15))
    labels = np.repeat([f"size {i}" for i in range(15)], 2)
    moved = rng.permutation(30)
    renamed = dict(zip(np.unique(labels), rng.permutation(15), strict=True))
    other = {name: values[moved] for name, values in points.items()}
    other["config"] = [str(renamed[label]) for label in labels[moved]]
    first, second = (fit(table).bootstrap(60, 1, method) for table in ({**points, "config": labels}, other))
    for name in TRUTH:  # the sums have other orders of addition, and the objective is flat at its minimum
        np.testing.assert_allclose(first.samples[name], second.samples[name], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("count", [6, 14])
def test_refits_reach_the_optimum_of_a_multi_start(count):
    fitted = fit(study(np.random.default_rng(3), sizes=np.geomspace(1e3, 1e5, count)))
    rng = np.random.default_rng(0)
    target = fitted.problem.target + 0.01 * rng.standard_normal((40, fitted.n_points))
    refitted = fitted.refit(target, fitted.problem.weights)
    for i, row in enumerate(target):
        alone = fit({"params": np.exp(fitted.points.logs["params"]), "loss": np.exp(row)})
        size = np.abs(np.log(alone.law.predict({k: v[i] for k, v in refitted.items()}, fitted.points.logs)[0]) - row)
        reached = np.where(size <= 1e-3, size**2 / 2, 1e-3 * (size - 5e-4)).sum()
        assert reached <= alone.objective * (1 + 1e-6)


def test_polish_agrees_from_every_start():
    fitted = fit(study(np.random.default_rng(8)))
    _, values, done = polish(fitted.problem, starts(fitted.problem), 1e-3)
    assert done.all()
    assert values.min() == pytest.approx(fitted.objective, rel=1e-12)


def test_as_many_configurations_as_parameters_fit_but_have_no_interval():
    fitted = fit(study(np.random.default_rng(0), sizes=SIZES[::2]))
    assert fitted.degrees_of_freedom == 0
    with pytest.raises(FitRefused, match="zero degrees of freedom"):
        fitted.interval("alpha")
    with pytest.raises(FitRefused, match="zero degrees of freedom"):
        fitted.prediction_interval({"params": [1e6]})


def test_config_column_sets_the_clusters():
    points = study(np.random.default_rng(0))
    fitted = fit({**points, "config": [f"size {i // 2}" for i in range(12)]})
    assert fitted.n_configurations == 6
    assert fit({**points, "config": np.arange(12)}).n_configurations == 12


@pytest.mark.usefixtures("few_refits")
def test_unknown_questions_are_refused():
    fitted = fit(study(np.random.default_rng(0)))
    with pytest.raises(FitRefused, match="'gamma' is not a parameter; those of power are E, A, alpha"):
        fitted.interval("gamma")
    with pytest.raises(FitRefused, match=r"level is 1\.5"):
        fitted.interval("E", 1.5)
    with pytest.raises(FitRefused, match="choose one of mean, new"):
        fitted.prediction_interval({"params": [1e6]}, kind="old")
    with pytest.raises(FitRefused, match="a bootstrap of 1 refits"):
        fitted.bootstrap(1)


def test_backtest_predicts_the_largest_size_from_the_smaller():
    points = study(np.random.default_rng(6))
    (forecast,) = fit(points).backtest("largest").forecasts
    smaller = fit({name: values[:-2] for name, values in points.items()})
    measured = points["loss"][-2:].mean()
    assert isinstance(forecast, Forecast)
    assert forecast.size == pytest.approx(1e5)
    assert forecast.measured == measured
    assert forecast.predicted == pytest.approx(smaller.predict(params=[1e5])[0], rel=1e-9)
    assert forecast.error_percent == pytest.approx(100 * (forecast.predicted / measured - 1))
    assert forecast.naive_error_percent == pytest.approx(100 * (points["loss"][-4:-2].mean() / measured - 1))
    assert forecast.inside_interval is True
    assert forecast.interval[0] < forecast.measured < forecast.interval[1]


@pytest.mark.usefixtures("few_refits")
def test_rolling_backtest_stops_where_too_few_sizes_are_left():
    forecasts = fit(study(np.random.default_rng(6))).backtest("rolling").forecasts
    np.testing.assert_allclose([h.size for h in forecasts], SIZES[3:])  # three smaller sizes carry three parameters
    assert [h.inside_interval is None for h in forecasts] == [True, False, False]


@pytest.mark.slow
@pytest.mark.usefixtures("few_refits")
def test_sizes_that_differ_by_rounding_are_held_out_together():
    rng = np.random.default_rng(0)
    sizes = np.geomspace(1e6, 1e9, 8)
    exact, read_off = sizes.repeat(3), sizes.repeat(3) * np.exp(rng.uniform(-0.004, 0.004, 24))
    loss = (1.7 + 40 * exact**-0.3) * np.exp(0.002 * rng.standard_normal(24))
    exact_rows, rounded_rows = (
        fit({"params": x, "loss": loss}).backtest("rolling").forecasts for x in (exact, read_off)
    )
    assert [row.size for row in rounded_rows] == pytest.approx([row.size for row in exact_rows], rel=0.005)
    assert [row.measured for row in rounded_rows] == [row.measured for row in exact_rows]
    assert [row.naive_error_percent for row in rounded_rows] == pytest.approx(
        [row.naive_error_percent for row in exact_rows]
    )
    assert [row.predicted for row in rounded_rows] == pytest.approx([row.predicted for row in exact_rows], rel=0.02)


@pytest.mark.slow
def test_backtest_of_sizes_without_a_gap_holds_out_a_hundredth_at_a_time():
    sizes = np.geomspace(1e6, 2e7, 1500)
    points = {"params": sizes, "loss": 1.7 + 40 * sizes**-0.3}
    forecasts = fit(points).backtest("rolling").forecasts
    assert len(forecasts) == 8
    assert np.diff(np.log([row.size for row in forecasts])) == pytest.approx(0.01, rel=0.3)


def test_backtest_misses_what_the_law_does_not_hold_for():
    points = study(np.random.default_rng(6), noise=1e-3)
    points["loss"][-2:] *= 1.2  # the largest size breaks the trend
    (forecast,) = fit(points).backtest("largest").forecasts
    assert forecast.inside_interval is False
    assert forecast.error_percent < -10


def test_backtest_needs_a_smaller_design_and_a_known_name():
    with pytest.raises(FitRefused, match="2 configurations"):
        fit(study(np.random.default_rng(0), sizes=SIZES[::2])).backtest("largest")
    with pytest.raises(FitRefused, match="choose one of largest, rolling, beyond"):
        fit(study(np.random.default_rng(0))).backtest("smallest")


def test_beyond_says_how_far_the_data_reach():
    fitted = fit(study(np.random.default_rng(0)))
    np.testing.assert_allclose(fitted.beyond({"params": [1e4, 4e5, 1e2]}), [1, 4, 10])


def line_below_zero(n):
    """A line whose offset is negative, so that a fitted one lies on its bound 0."""
    x = np.geomspace(1e6, 1e9, n)
    return {"x": x, "y": (4e-9 * x - 9e-4) * np.exp(0.02 * np.random.default_rng(0).standard_normal(n))}


@pytest.mark.parametrize(("n", "method"), [(6, "auto"), (14, "auto"), (50, "auto"), (50, "resample")])
def test_an_interval_at_a_bound_is_one_sided_and_not_a_point(n, method):
    fitted = fit(line_below_zero(n), "offset_linear")
    assert fitted.bounds_hit == ("c0",)
    boot = fitted.bootstrap(400, 0, method)
    low, high = boot.interval("c0")
    assert low == 0.0
    # As far as the offset of the line could be told from 0: 1.96 standard errors of weighted least squares in y / x.
    x = fitted.points.logs["x"]
    design = np.stack([np.exp(-x), np.ones(n)], axis=1) / np.exp(np.log(fitted.predict(x=np.exp(x))) - x)[:, None]
    error = np.sqrt(np.linalg.inv(design.T @ design)[0, 0]) * np.sqrt((fitted.least_squares_residuals() ** 2).sum() / n)
    assert 0.8 * error < high < 5 * error
    if method == "resample":  # every resample ends on the bound, and would say that it is known exactly
        assert np.ptp(np.quantile(boot.samples["c0"], [0.025, 0.975])) == 0.0
    elif n >= 12:
        assert "c0 at a bound" in boot.reason


def test_why_the_method_was_chosen_is_said():
    rng = np.random.default_rng(0)
    few, some, many = (fit(study(rng, sizes=np.geomspace(1e3, 1e6, n))).bootstrap(20) for n in (6, 12, 60))
    assert (few.drawn, some.drawn, many.drawn) == ("parametric", "residuals", "resample")
    assert some.method == "bootstrap of the residuals of 12 configurations, t with 9 degrees of freedom"
    assert few.reason == "6 configurations, and resampling needs 12"
    assert some.reason == "12 configurations; resampling fewer than 60 often drops the extreme sizes"
    assert few.fit.bootstrap(20, method="wild").reason == "as requested"


@pytest.mark.parametrize("method", ["residuals", "wild"])
def test_refits_of_a_line_spread_as_least_squares_does(method):
    rng = np.random.default_rng(3)
    x = np.repeat(np.linspace(1, 30, 40), 2)
    y = 5 + 2 * x + rng.normal(0, 0.2, 80)
    fitted = fit({"x": x, "y": y, "config": np.repeat(np.arange(40), 2)}, "offset_linear", loss="squares", space="raw")
    mean = y.reshape(-1, 2).mean(axis=1)
    line = least_squares_line(x[::2], mean)  # configurations are the units
    boot = fitted.bootstrap(4000, 0, method)
    # Student-t of 38 degrees of freedom has a variance of 38 / 36. Of wild: as HC3, which weighs residuals by leverage.
    centred = x[::2] - x.mean()
    leverage = 1 / 40 + centred**2 / (centred**2).sum()
    left = mean - line.intercept - line.slope * x[::2]
    robust = np.sqrt((centred**2 * (left / (1 - leverage)) ** 2).sum()) / (centred**2).sum()
    expected = {"residuals": line.stderr, "wild": robust}[method] * np.sqrt(38 / 36)
    assert boot.samples["c1"].std() == pytest.approx(expected, rel=0.05)  # 4,000 draws: standard error 1.1 %
    assert boot.samples["c1"].mean() == pytest.approx(fitted.parameters["c1"], abs=0.06 * expected)


@pytest.mark.slow
def test_residuals_at_the_ends_are_not_taken_for_small_noise():
    """The pool has unit variance because each residual is divided by what its leverage left of it."""
    from scalebench.laws.intervals.noise import _split, group

    shares = []
    for seed in range(200):
        fitted = fit(study(np.random.default_rng([2, seed]), sizes=np.geomspace(1e3, 1e5, 12), seeds=1), loss="squares")
        mean, _, share = _split(fitted, group(fitted))
        shares.append([mean**2 / 0.005**2, share])
    squares, share = np.mean(shares, axis=0)
    assert share[0] < 0.5  # the smallest size pulls the curve to itself
    np.testing.assert_allclose(squares, share, atol=0.25)  # chi-squared, 200 studies: standard error 0.1
