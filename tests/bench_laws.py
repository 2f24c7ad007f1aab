"""Speed of a point fit and of the bootstrap: `pytest tests/bench_laws.py --benchmark-enable`."""

import os
from pathlib import Path

import numpy as np
import pandas as pd

from scalebench.laws import fit

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
    found = benchmark(lambda: fit(points, "chinchilla"))
    assert found.status == "converged"


def test_1000_bootstraps_of_power(benchmark):
    found = fit(power_points())
    boot = benchmark(lambda: found.bootstrap(1000, 0))
    assert boot.n == 1000


def test_1000_bootstraps_of_chinchilla(benchmark):
    found = fit(chinchilla_points(), "chinchilla")
    boot = benchmark.pedantic(lambda: found.bootstrap(1000, 0), rounds=3)
    assert boot.n == 1000
