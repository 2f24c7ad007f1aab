"""Speed of point fits and of the bootstrap: `pytest experiments/bench_laws.py --benchmark-enable`."""

import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize

from scalebench.laws import fit
from scalebench.laws.intervals.bootstrap import resample
from scalebench.laws.solver import polish

REFERENCE = Path(
    os.environ.get("SCALEBENCH_REFERENCE_DATA", Path(__file__).parents[1] / ".." / "shared" / "reference-data")
)


def chinchilla_points():
    """240 points: the public ones where they are, else simulated of that number, range and noise."""
    path = REFERENCE / "epoch_chinchilla" / "svg_extracted_data.csv"
    if path.exists():
        table = pd.read_csv(path).sort_values("loss").iloc[:-5]
        params = table["Model Size"].to_numpy()
        return {"params": params, "tokens": table["Training FLOP"] / 6 / params, "loss": table["loss"]}
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(np.log([[4e7], [1e9]]), np.log([[2e10], [1e12]]), (2, 240)))
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(0.005 * rng.standard_t(3, 240))
    return {"params": params, "tokens": tokens, "loss": loss}


def power_points():
    params = np.geomspace(1e3, 1e5, 6).repeat(2)
    loss = (1.7 + 30 * params**-0.35) * np.exp(0.005 * np.random.default_rng(0).standard_normal(12))
    return {"params": params, "loss": loss}


def test_point_fit_of_chinchilla(benchmark):
    points = chinchilla_points()
    fitted = benchmark(lambda: fit(points, "chinchilla"))
    assert fitted.status == "converged"


def test_1000_bootstraps_of_power(benchmark):
    fitted = fit(power_points())
    boot = benchmark(lambda: fitted.bootstrap(1000, 0))
    assert boot.n == 1000


def test_1000_bootstraps_of_chinchilla(benchmark):
    fitted = fit(chinchilla_points(), "chinchilla")
    boot = benchmark.pedantic(lambda: fitted.bootstrap(1000, 0), rounds=3)
    assert boot.n == 1000


def test_4000_bootstraps_of_chinchilla(benchmark):
    fitted = fit(chinchilla_points(), "chinchilla")
    boot = benchmark.pedantic(lambda: fitted.bootstrap(4000, 0), rounds=1)
    assert boot.n == 4000


def log_sum_exp_objective(problem, weights, delta=1e-3):
    """Huber loss of chinchilla in (log A, log B, log E, alpha, beta) with its analytic gradient, as published fits."""
    logs = np.stack([problem.logs["params"], problem.logs["tokens"]])

    def objective(theta):
        terms = np.stack(
            [theta[0] - theta[3] * logs[0], theta[1] - theta[4] * logs[1], np.full(logs.shape[1], theta[2])]
        )
        top = terms.max(axis=0)
        shares = np.exp(terms - top)
        total = shares.sum(axis=0)
        residual = top + np.log(total) - problem.target
        near = np.clip(residual, -delta, delta)
        pull = weights * near * shares / total
        gradient = np.array([*pull.sum(axis=1), -(pull[0] @ logs[0]), -(pull[1] @ logs[1])])
        return float((weights * near * (residual - near / 2)).sum()), gradient

    return objective


def test_bootstraps_against_scipy_bfgs(benchmark):
    """Refits of the same resamples from the same start, in one run: objectives no worse, and times side by side."""
    fitted = fit(chinchilla_points(), "chinchilla")
    weights = resample(fitted, 1000, np.random.default_rng(0))
    problem = replace(fitted.problem, weights=weights)
    p = fitted.parameters
    start = np.array([np.log(p["A"]), np.log(p["B"]), np.log(p["E"]), p["alpha"], p["beta"]])
    objectives = [log_sum_exp_objective(fitted.problem, row) for row in weights[:40]]
    began = time.perf_counter()
    theirs = [minimize(objective, start, jac=True, method="BFGS").fun for objective in objectives]
    each = (time.perf_counter() - began) / 40
    _, ours, done = benchmark.pedantic(lambda: polish(problem, np.tile(fitted.theta, (1000, 1)), 1e-3), rounds=3)
    assert done.all()
    assert (ours[:40] <= np.array(theirs) * (1 + 1e-9)).all()
    if benchmark.stats:
        ratio = each * 1000 / benchmark.stats.stats.median
        benchmark.extra_info["times faster than SciPy BFGS"] = round(ratio, 1)
        print(f"SciPy BFGS {1e3 * each:.1f} ms a refit, {ratio:.1f} times ours")


def log_huber(measured, predicted, delta=1e-3):
    residual = np.log(predicted) - np.log(measured)
    size = np.abs(residual)
    return np.where(size <= delta, residual**2 / 2, delta * (size - delta / 2))


def chinchilla_package(points, folder, grid_points):
    """Parameters by the PyPI package from its own parallel grid of starts, its mean of the same loss, and seconds."""
    package = pytest.importorskip("chinchilla", reason="the package chinchilla is compared with where it is installed")
    axes = {"e": (-1, 1), "a": (0, 25), "b": (0, 25), "alpha": (0, 2), "beta": (0, 2)}  # as Hoffmann et al. 2022
    grid = {name: np.linspace(*ends, grid_points) for name, ends in axes.items()}
    study = package.Chinchilla(str(folder), param_grid=grid, loss_fn=log_huber, log_level=60)
    for params, tokens, loss in zip(*points.values(), strict=True):
        study.append(N=params, D=tokens, loss=loss)
    began = time.perf_counter()
    study.fit(parallel=True)
    seconds = time.perf_counter() - began
    return {name: float(getattr(study, name)) for name in ("A", "B", "E", "alpha", "beta")}, seconds


def test_point_fit_against_the_chinchilla_package(benchmark, tmp_path):
    """The same points and loss in one run: objective no worse, and times side by side; without timing, few starts."""
    points = {name: np.asarray(column) for name, column in chinchilla_points().items()}
    theirs, seconds = chinchilla_package(points, tmp_path, 5 if benchmark.enabled else 2)
    fitted = benchmark.pedantic(lambda: fit(points, "chinchilla"), rounds=20)
    objective = log_sum_exp_objective(fitted.problem, np.ones(len(points["loss"])))
    ours, other = (
        objective(np.array([*np.log([p["A"], p["B"], p["E"]]), p["alpha"], p["beta"]]))[0]
        for p in (fitted.parameters, theirs)
    )
    assert ours <= other
    benchmark.extra_info |= {"objective": ours, "objective of chinchilla": other}
    if benchmark.stats:
        ratio = seconds / benchmark.stats.stats.median
        benchmark.extra_info |= {"times faster than chinchilla": round(ratio, 1), "seconds of chinchilla": seconds}
        print(f"chinchilla {seconds:.1f} s, {ratio:.0f} times ours; objective {other:.9e}, ours {ours:.9e}")


@pytest.mark.parametrize("n", [100_000])
def test_point_fit_of_many_points(benchmark, n):
    rng = np.random.default_rng(0)
    params, tokens = np.exp(rng.uniform(np.log([[4e7], [1e9]]), np.log([[2e10], [1e12]]), (2, n)))
    loss = (1.8 + 480 * params**-0.35 + 2100 * tokens**-0.37) * np.exp(0.005 * rng.standard_t(3, n))
    points = {"params": params, "tokens": tokens, "loss": loss}
    fitted = benchmark.pedantic(lambda: fit(points, "chinchilla"), rounds=3)
    assert fitted.status == "converged"
