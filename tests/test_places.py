"""Terms computed once per distinct input: the same objective, derivatives and intervals as row by row."""

import numpy as np
import pytest

from scalebench.laws import fit
from scalebench.laws import places as shared_places

SEEDS = 5


def points(law: str) -> dict[str, np.ndarray]:
    """Four sizes (and two amounts of data), each of several seeds, in no order."""
    rng = np.random.default_rng(3)
    sizes, data = (each.ravel() for each in np.meshgrid(np.geomspace(1e3, 1e5, 4), [1e6, 9e6, 6e7]))
    order = rng.permutation(len(sizes) * SEEDS)
    n, d = (np.repeat(each, SEEDS)[order] for each in (sizes, data))
    loss = (1.5 + 40 * n**-0.4 + (90 * d**-0.4 if law == "chinchilla" else 0)) * np.exp(rng.normal(0, 0.01, len(n)))
    return {"params": n, "tokens": d, "loss": loss} if law == "chinchilla" else {"x": n, "y": loss}


@pytest.fixture(params=["power", "chinchilla"])
def both(request, monkeypatch):
    """A fit, and the same fit row by row."""
    columns = points(request.param)
    grouped = fit(columns, request.param)
    monkeypatch.setattr(shared_places, "SHARED", 10**6)
    return grouped, fit(columns, request.param)


def test_objective_and_derivatives_are_those_of_the_rows(both):
    grouped, by_row = both
    assert grouped.problem.places.shared
    assert not by_row.problem.places.shared
    theta = grouped.theta * (1 + np.linspace(-0.01, 0.01, 3)[:, None])
    for width in (1e-3, np.inf):
        np.testing.assert_allclose(grouped.problem.value(theta, width), by_row.problem.value(theta, width), rtol=1e-12)
        for ours, theirs in zip(*(f.problem.derivatives(theta, width) for f in both), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9 * np.abs(theirs).max())
    np.testing.assert_allclose(grouped.problem.jacobian(theta), by_row.problem.jacobian(theta), rtol=1e-9, atol=1e-12)


def test_parameters_and_intervals_are_those_of_the_rows(both):
    ours, theirs = (each.bootstrap(n=20) for each in both)
    for name, value in both[0].parameters.items():
        assert value == pytest.approx(both[1].parameters[name], rel=1e-7)
        np.testing.assert_allclose(ours.interval(name), theirs.interval(name), rtol=1e-6)
