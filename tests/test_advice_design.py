"""What to run next against the textbook, exhaustive search and simulation."""

import itertools
import json

import numpy as np
import pytest
from law_support import least_squares_line
from scipy.special import stdtrit

from scalebench.advice.design import best_set, next_trial
from scalebench.laws import FitRefused, fit

X = np.array([1.0, 3.0, 5.0, 8.0, 10.0, 14.0])
Y = 5.0 + 2.0 * X + np.random.default_rng(2).normal(0, 0.1, 6)
SURFACE = {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37}
TARGET = {"params": 7e9, "tokens": 1e12}


@pytest.fixture(scope="module")
def fitted():
    """The law of the surface, to read only."""
    return fit(surface_points(np.random.default_rng(0)), "chinchilla", loss="squares")


def line():
    return fit({"x": X, "y": Y}, "offset_linear", loss="squares", space="raw")


def leverage(x, at):
    rows = np.stack([np.ones(len(x)), x], axis=1)
    return np.array([1, at]) @ np.linalg.inv(rows.T @ rows) @ np.array([1, at])


def surface_loss(params, tokens):
    return 1.8 + 480.0 * np.asarray(params) ** -0.35 + 2100.0 * np.asarray(tokens) ** -0.37


def surface_points(rng, noise=0.002):
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 3e8, 4), np.geomspace(1e9, 3e10, 4)))
    loss = surface_loss(params, tokens) * np.exp(noise * rng.standard_normal(16))
    return {"params": params, "tokens": tokens, "loss": loss}


def surface_candidates(n=12, seed=0):
    rng = np.random.default_rng(seed)
    return {"params": np.exp(rng.uniform(np.log(1e7), np.log(3e9), n)), "tokens": np.exp(rng.uniform(20.7, 26, n))}


def test_intervals_and_narrowing_of_a_line_are_the_textbook_ones():
    candidates = np.array([2.0, 12.0, 40.0, 100.0])
    trial = next_trial(line(), {"x": candidates}, {"x": 60.0})
    book = least_squares_line(X, Y)
    scale = np.sqrt(np.sum((Y - book.intercept - book.slope * X) ** 2) / 4)
    half = stdtrit(4, 0.975) * scale * np.sqrt(leverage(X, 60.0))
    centre = book.intercept + 60 * book.slope
    assert trial.interval_now == pytest.approx((centre - half, centre + half), rel=1e-6)
    after = [leverage(np.append(X, x), 60.0) for x in candidates]
    ratio = stdtrit(5, 0.975) / stdtrit(4, 0.975) * np.sqrt(np.array(after) / leverage(X, 60.0))
    assert [c.row for c in trial.ranking] == list(np.argsort(ratio))
    assert [c.narrowing for c in trial.ranking] == pytest.approx(sorted(ratio), rel=1e-6)
    assert trial.chosen[0].row == int(np.argmin(ratio))
    assert trial.narrowing == pytest.approx(ratio.min(), rel=1e-6)
    low, high = trial.interval_after
    assert (high - low) / 2 == pytest.approx(half * ratio.min(), rel=1e-6)
    # A line's design does not depend on its parameters.
    assert trial.narrowing_interval == pytest.approx((trial.narrowing, trial.narrowing), rel=1e-6)
    assert trial.flops is None


def test_expected_interval_now_is_that_of_the_bootstrap(fitted):
    design = next_trial(fitted, surface_candidates(), {"params": 6e8, "tokens": 6e10})
    (low,), (high,) = fitted.bootstrap(1000, 0).prediction_interval({"params": [6e8], "tokens": [6e10]})
    now = np.log(design.interval_now[1] / design.interval_now[0])
    # A percentile bootstrap of 16 configurations is narrower than Student t with 11 degrees of freedom, and skewed.
    assert 0.6 < np.log(high / low) / now < 1.4


@pytest.mark.slow
def test_chosen_trial_beats_random_ones_in_simulation():
    candidates = surface_candidates(8)
    errors = {"chosen": [], "random": []}
    for seed in range(40):
        rng = np.random.default_rng([1, seed])
        points = surface_points(rng)
        chosen = next_trial(fit(points, "chinchilla", loss="squares"), candidates, TARGET).chosen[0].row
        picks = {"chosen": chosen, "random": int(rng.integers(8))}
        noise = 0.002 * rng.standard_normal()
        for name, row in picks.items():
            size, tokens = candidates["params"][row], candidates["tokens"][row]
            measured = surface_loss(size, tokens) * np.exp(noise)
            added = {"params": size, "tokens": tokens, "loss": measured}
            grown = fit({k: np.append(points[k], added[k]) for k in points}, "chinchilla", loss="squares")
            errors[name].append(np.log(grown.predict({k: [v] for k, v in TARGET.items()})[0] / surface_loss(**TARGET)))
    chosen, random = (np.square(errors[name]) for name in ("chosen", "random"))
    assert chosen.mean() < 0.7 * random.mean()
    # Paired by study, so that the difference is not luck: beyond two standard errors.
    difference = random - chosen
    assert difference.mean() > 2 * difference.std(ddof=1) / np.sqrt(40)


@pytest.mark.usefixtures("few_refits")
def test_best_set_is_near_the_exhaustive_one_and_within_budget(fitted):
    ratios = []
    for seed in range(8):
        candidates = surface_candidates(8, seed)
        flops = 6 * candidates["params"] * candidates["tokens"]
        budget = 0.4 * flops.sum()
        design = best_set(fitted, candidates, TARGET, budget, most=None)
        rows = tuple(c.row for c in design.chosen)
        assert len(set(rows)) == len(rows)
        assert design.flops == pytest.approx(flops[list(rows)].sum())
        assert design.flops <= budget
        ratios.append(_spreads(fitted, candidates, [rows])[0] / _exhaustive(fitted, candidates, flops, budget))
    assert max(ratios) < 1.05
    assert np.median(ratios) < 1.0 + 1e-6


@pytest.mark.usefixtures("few_refits")
@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_set_of_a_handful_is_near_the_exhaustive_one(fitted, most):
    ratios = []
    for seed in range(4):
        candidates = surface_candidates(8, seed)
        flops = 6 * candidates["params"] * candidates["tokens"]
        budget = 0.3 * flops.sum()
        design = best_set(fitted, candidates, TARGET, budget, most=most)
        rows = [c.row for c in design.chosen]
        assert len(set(rows)) == len(rows) <= most
        assert design.flops <= budget
        ratios.append(_spreads(fitted, candidates, [rows])[0] / _exhaustive(fitted, candidates, flops, budget, most))
    assert max(ratios) < 1.03
    assert np.median(ratios) < 1.0 + 1e-6


@pytest.mark.slow
def test_what_more_trials_would_do_is_what_they_do(fitted):
    candidates = surface_candidates(40)
    few, all_ = (best_set(fitted, candidates, TARGET, 1e22, most=most) for most in (5, None))
    count, narrowing = few.unlimited
    assert len(few.chosen) == 5 < count
    assert all_.unlimited is None
    assert all_.narrowing <= narrowing * (1 + 1e-6)  # exchanged as well
    assert narrowing < 0.98 * few.narrowing
    assert best_set(fitted, candidates, TARGET, 1e22, most=100).unlimited is None
    assert len(best_set(fitted, candidates, TARGET, 1e22).chosen) == 5


def test_a_set_spreads_over_what_each_trial_adds():
    x, flops = np.array([100.0, 99.0, 98.0, 97.0, 0.1]), np.array([1.0, 1.0, 1.0, 1.0, 1.0])
    points = {"x": np.array([4.0, 5.0, 6.0, 12.5]), "y": 5.0 + 2.0 * np.array([4.0, 5.0, 6.0, 12.5])}
    points["y"] += [0.1, -0.1, 0.1, -0.1]
    near = fit(points, "offset_linear", loss="squares", space="raw")
    design = best_set(near, {"x": x, "flops": flops}, {"x": 0.2}, 2.0)
    pairs = list(itertools.combinations(range(5), 2))
    spread = [leverage(np.append(points["x"], x[list(pair)]), 0.2) for pair in pairs]
    assert sorted(c.row for c in design.chosen) == list(pairs[int(np.argmin(spread))])
    assert 4 in {c.row for c in design.chosen}


def _gradients(params, tokens):
    """Of ln L by (E, A, B, alpha, beta) at the planted surface, analytically, [n, 5]."""
    N, D = np.asarray(params), np.asarray(tokens)
    terms = np.stack([480.0 * N**-0.35, 2100.0 * D**-0.37])
    rows = [1 + 0 * N, terms[0], terms[1], -terms[0] * np.log(N), -terms[1] * np.log(D)]
    return np.stack(rows, axis=1) / surface_loss(N, D)[:, None]


def _spreads(fitted, candidates, sets):
    """The standard error of the prediction at the target with each of the sets of candidates, over the noise."""
    base = _gradients(np.exp(fitted.points.logs["params"]), np.exp(fitted.points.logs["tokens"]))
    added = _gradients(candidates["params"], candidates["tokens"])
    goal = _gradients([TARGET["params"]], [TARGET["tokens"]])[0]
    grown = (np.concatenate([base, added[list(rows)]]) for rows in sets)
    return [np.linalg.norm(np.linalg.lstsq(each.T, goal, rcond=None)[0]) for each in grown]  # sqrt of g (J'J)^-1 g'


def _exhaustive(fitted, candidates, flops, budget, most=8):
    sets = itertools.chain.from_iterable(itertools.combinations(range(8), size) for size in range(1, most + 1))
    return min(_spreads(fitted, candidates, [rows for rows in sets if flops[list(rows)].sum() <= budget]))


def test_narrowing_has_an_interval_and_a_set_narrows_more_than_one(fitted):
    candidates = surface_candidates()
    single = next_trial(fitted, candidates, TARGET)
    low, high = single.narrowing_interval
    assert low <= single.narrowing <= high
    assert low < high
    assert single.narrowing == pytest.approx(single.ranking[0].narrowing)
    several = best_set(fitted, candidates, TARGET, 1e30, most=None)
    assert len(several.chosen) == 12
    assert several.narrowing < single.narrowing < 1


def test_pinned_parameters_are_known_and_leave_less_to_learn():
    points = surface_points(np.random.default_rng(0))
    free = next_trial(fit(points, "chinchilla", loss="squares"), surface_candidates(), TARGET)
    pinned = next_trial(fit(points, "chinchilla", loss="squares", fixed={"E": 1.8}), surface_candidates(), TARGET)
    widths = [np.diff(np.log(design.interval_now))[0] for design in (free, pinned)]
    assert widths[1] < 0.8 * widths[0]


def test_refusals():
    fitted = line()
    with pytest.raises(FitRefused, match="no column 'flops', nor params and tokens"):
        best_set(fitted, {"x": [1.0, 2.0]}, {"x": 60.0}, 1e20)
    with pytest.raises(FitRefused, match=r"budget of 1 FLOPs; the cheapest candidate costs 3: raise it"):
        best_set(fitted, {"x": [1.0, 2.0], "flops": [4.0, 3.0]}, {"x": 60.0}, 1.0)
    with pytest.raises(FitRefused, match="at most 0 trials; a set needs at least 1"):
        best_set(fitted, {"x": [1.0, 2.0], "flops": [4.0, 3.0]}, {"x": 60.0}, 10.0, most=0)
    with pytest.raises(FitRefused, match="2 targets; a design narrows one prediction"):
        next_trial(fitted, {"x": [1.0, 2.0]}, {"x": [60.0, 70.0]})
    exact = fit({"x": X[:2], "y": Y[:2]}, "offset_linear", loss="squares", space="raw", fixed=None)
    with pytest.raises(FitRefused, match="zero degrees of freedom"):
        next_trial(exact, {"x": [1.0]}, {"x": 60.0})


@pytest.mark.usefixtures("few_refits")
def test_to_dict_survives_json(fitted):
    summary = best_set(fitted, surface_candidates(), TARGET, 1e21).to_dict()
    assert json.loads(json.dumps(summary, allow_nan=False))["target"] == pytest.approx(TARGET)
