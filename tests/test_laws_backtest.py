"""Rolling hold-out against fits by hand, coverage in simulation, and a choice that in-sample error gets wrong."""

import json

import numpy as np
import pandas as pd
import pytest

from scalebench.laws import LAWS, FitRefused, Law, choose, fit

SIZES = np.geomspace(1e3, 1e6, 10)


def power_points(rng, *, noise=0.0, seeds=2, E=1.7, sizes=SIZES):
    params = np.repeat(sizes, seeds)
    return {"params": params, "loss": (E + 30.0 * params**-0.35) * np.exp(noise * rng.standard_normal(len(params)))}


def surface_points(noise=0.0):
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
    loss = 1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37
    scatter = np.exp(noise * np.random.default_rng(0).standard_normal(36))
    return {"params": params, "tokens": tokens, "loss": loss * scatter}


def beyond(points, law="power", by="params", *, cuts=8, intervals=True, seed=0):
    """Every configuration above each of several cuts, predicted."""
    return fit(points, law).backtest("beyond", by, points, cuts=cuts, intervals=intervals, seed=seed)


def two_powers(log, shape):
    """A falling and a rising power: more freedom than the data of one power fill."""
    return -shape["a"] * log["params"], shape["b"] * log["params"]


FLEXIBLE = Law(
    "flexible", "L = p N^-a + q N^b", "any", "test", ("params",), "loss", ("p", "q"),
    {"a": (0.01, 2.0), "b": (0.01, 2.0)}, two_powers,
)  # fmt: skip
BARE = Law(
    "bare", "L = A N^-alpha", "any", "test", ("params",), "loss", ("A",), {"alpha": (0.01, 3.0)},
    lambda log, shape: (-shape["alpha"] * log["params"],),
)  # fmt: skip


@pytest.mark.slow
def test_forecasts_are_those_of_a_fit_by_hand():
    points = power_points(np.random.default_rng(0), noise=0.01)
    backtest = beyond(points, "power")
    cut = SIZES[5]
    smaller = fit({name: values[points["params"] <= cut * 1.001] for name, values in points.items()})
    at_cut = [f for f in backtest.forecasts if f.cut == pytest.approx(cut)]
    assert [f.distance for f in at_cut] == pytest.approx(list(SIZES[6:] / cut))
    measured = points["loss"].reshape(10, 2).mean(axis=1)[6:]
    predicted = smaller.predict(params=SIZES[6:])
    assert [f.measured for f in at_cut] == pytest.approx(list(measured))
    assert [f.predicted for f in at_cut] == pytest.approx(list(predicted), rel=1e-6)
    assert [f.error_percent for f in at_cut] == pytest.approx(list(100 * (predicted / measured - 1)), abs=1e-4)
    assert [f.row for f in at_cut] == [12, 14, 16, 18]
    for f in at_cut:
        low, high = f.interval
        assert f.error_in_widths == pytest.approx(2 * np.log(f.predicted / f.measured) / np.log(high / low))
        assert f.inside_interval == (low <= f.measured <= high)


@pytest.mark.slow
def test_every_cut_that_carries_the_law_is_used_and_the_last_size_is_never_fitted():
    points = power_points(np.random.default_rng(0), noise=0.01, seeds=1)
    backtest = beyond(points, "power", cuts=20)
    assert sorted({f.cut for f in backtest.forecasts}) == pytest.approx(list(SIZES[2:-1]))
    assert all(f.interval is None and f.error_in_widths is None for f in backtest.forecasts if f.cut < SIZES[2] * 1.01)
    (only,) = {f.cut for f in beyond(points, "power", cuts=1).forecasts}
    assert only == pytest.approx(SIZES[2])


def test_sizes_within_one_percent_are_never_predicted_from_each_other():
    exact = power_points(np.random.default_rng(0), noise=0.01)
    read_off = {**exact, "params": exact["params"] * np.tile([1.0, 1.004], 10)}
    far, near = (beyond(points, intervals=False).forecasts for points in (exact, read_off))
    assert min(f.distance for f in near) > 2
    assert sorted({round(f.cut) for f in near}) == pytest.approx(sorted({f.cut for f in far}), rel=0.005)


def test_rows_of_one_configuration_are_predicted_at_their_own_inputs():
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 6), np.geomspace(1e9, 1e11, 6)))
    curves = {**surface_points(noise=0.005), "config": [f"run {size:.0f}" for size in params]}  # one run per size
    (largest,) = fit(curves, "chinchilla").backtest("largest").forecasts
    rows = params == params.max()
    smaller = fit({name: np.asarray(values)[~rows] for name, values in curves.items()}, "chinchilla")
    at = {"params": params[rows], "tokens": tokens[rows]}
    assert largest.predicted == pytest.approx(smaller.predict(at).mean(), rel=1e-9)
    assert largest.measured == pytest.approx(curves["loss"][rows].mean())
    assert largest.naive == pytest.approx(curves["loss"][params == np.unique(params)[-2]].mean())


@pytest.mark.slow
@pytest.mark.parametrize("by", ["params", "tokens", "flops"])
def test_exact_points_are_forecast_exactly_whatever_the_cut(by):
    points = surface_points()
    backtest = beyond(points, "chinchilla", by)
    axis = 6 * points["params"] * points["tokens"] if by == "flops" else points[by]
    assert len({f.cut for f in backtest.forecasts}) > 2
    for f in backtest.forecasts:
        assert abs(f.error_percent) < 1e-4
        assert f.distance == pytest.approx(axis[f.row] / f.cut, rel=1e-6)
    with_flops = beyond({**points, "flops": 7 * points["params"] * points["tokens"]}, "chinchilla", "flops")
    assert with_flops.forecasts[0].cut == pytest.approx(
        7 / 6 * beyond(points, "chinchilla", "flops").forecasts[0].cut, rel=1e-6
    )


@pytest.mark.slow
def test_table_by_distance_is_the_summary_of_the_forecasts():
    backtest = beyond(surface_points(noise=0.005), "chinchilla", "flops")
    frame = pd.DataFrame([f.to_dict() for f in backtest.forecasts])
    table = backtest.by_distance()
    assert sum(row["n"] for row in table) == len(frame)
    for row in table:
        upper = row["distance_up_to"] or np.inf
        part = frame[(frame["distance"] > row["distance_above"]) & (frame["distance"] <= upper)]
        assert row["n"] == len(part)
        assert row["median_absolute_error_percent"] == pytest.approx(part["error_percent"].abs().median())
        assert row["median_absolute_error_in_widths"] == pytest.approx(part["error_in_widths"].abs().median())
        assert row["coverage"] == pytest.approx(part["inside_interval"].dropna().astype(float).mean())


@pytest.mark.slow
def test_intervals_of_forecasts_cover_what_was_held_out():
    inside = []
    for seed in range(25):
        test = beyond(power_points(np.random.default_rng([2, seed]), noise=0.01), "power", cuts=2, seed=seed)
        inside.append(np.mean([f.inside_interval for f in test.forecasts if f.inside_interval is not None]))
    # Forecasts of one study move together: the standard error is taken between the 25 studies.
    assert np.mean(inside) == pytest.approx(0.95, abs=3 * np.std(inside) / np.sqrt(25) + 0.01)


def test_a_law_that_does_not_hold_misses_more_the_farther():
    params = np.repeat(SIZES, 2)
    noise = np.exp(1e-3 * np.random.default_rng(0).standard_normal(20))
    points = {"params": params, "loss": 40 * params**-0.3 * (1 + params / 3e4) ** 0.2 * noise}
    table = beyond(points, BARE, cuts=3).by_distance()
    errors = [row["median_absolute_error_percent"] for row in table]
    assert errors == sorted(errors)
    assert errors[-1] > 20
    assert table[-1]["coverage"] < 0.5


def test_the_right_law_is_chosen_and_the_wrong_one_told_apart():
    choice = choose(power_points(np.random.default_rng(1), noise=0.005), [BARE, "power"])
    assert choice.best == "power"
    assert [ranked.law for ranked in choice.ranking] == ["power", "bare"]
    worst = choice.ranking[1]
    assert worst.behind_percent == pytest.approx(worst.error_percent - choice.ranking[0].error_percent)
    assert not worst.tied
    assert "worse than the best" in worst.reason


@pytest.mark.slow
def test_the_law_that_fits_best_inside_the_data_is_not_the_one_chosen():
    chosen = []
    for seed in range(6):
        points = power_points(np.random.default_rng([4, seed]), noise=0.02, E=0.0, seeds=1)
        inside = {law.name: fit(points, law).objective for law in (BARE, FLEXIBLE)}
        assert inside["flexible"] <= inside["bare"] * (1 + 1e-6)
        chosen.append(choose(points, [FLEXIBLE, BARE], cuts=4).best)
    assert chosen.count("bare") >= 5


@pytest.mark.slow
def test_ranking_is_over_the_forecasts_that_all_laws_made():
    points = power_points(np.random.default_rng(1), noise=0.005)
    tests = {name: beyond(points, law) for name, law in (("power", "power"), ("bare", BARE))}
    keys = [{(f.cut, f.row) for f in test.forecasts} for test in tests.values()]
    shared = set.intersection(*keys)
    choice = choose(points, ["power", BARE])
    assert choice.n_forecasts == len(shared)
    for ranked in choice.ranking:
        errors = [
            abs(np.log(f.predicted / f.measured)) for f in tests[ranked.law].forecasts if (f.cut, f.row) in shared
        ]
        assert ranked.error_percent == pytest.approx(100 * np.mean(errors))


def test_laws_that_cannot_be_fitted_are_refused_with_reasons():
    points = power_points(np.random.default_rng(1), noise=0.005)
    choice = choose(points, ["power", "chinchilla"])
    assert list(choice.refused) == ["chinchilla"]
    assert "'tokens' is missing" in choice.refused["chinchilla"]
    with pytest.raises(FitRefused, match=r"none of 1 laws can be fitted; chinchilla: column 'tokens' is missing"):
        choose(points, ["chinchilla"])
    with pytest.raises(FitRefused, match=r"column 'depth' is missing"):
        beyond(points, "power", "depth")
    with pytest.raises(FitRefused, match=r"'steps' has one value; a hold-out needs at least 2"):
        beyond({**points, "steps": np.full(20, 5)}, "power", "steps")


def test_a_cut_that_leaves_too_little_is_listed():
    sizes = np.array([1e3, 1.5e3, 2e3, 2.5e3, 1e5, 3e5])
    backtest = beyond(power_points(np.random.default_rng(0), sizes=sizes), "power")
    assert [cut for cut, _ in backtest.refused] == pytest.approx([1.5e3, 2e3, 2.5e3])
    assert "configurations for 3" in backtest.refused[0][1]
    assert "varies by a factor of 2.5" in backtest.refused[2][1]
    assert backtest.forecasts


def test_one_configuration_held_out_tells_nothing_apart():
    points = power_points(np.random.default_rng(1), noise=0.005, sizes=SIZES[:4])
    choice = choose(points, ["power", BARE])
    assert choice.n_configurations == 1
    assert choice.ranking[1].tied
    assert choice.ranking[1].behind_se_percent is None
    json.dumps(choice.to_dict(), allow_nan=False)


@pytest.mark.slow
def test_to_dict_survives_json():
    points = power_points(np.random.default_rng(1), noise=0.005)
    backtest = [f.to_dict() for f in beyond(points, "power").forecasts]
    assert json.loads(json.dumps(backtest, allow_nan=False))[0]["distance"] == pytest.approx(SIZES[3] / SIZES[2])
    choice = choose(points, ["power", BARE])
    assert json.loads(json.dumps(choice.to_dict(), allow_nan=False))["by"] == "params"
    assert LAWS["power"].name == choice.best
