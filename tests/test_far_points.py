"""Configurations that lie far from the law are named; studies without one name none."""

from __future__ import annotations

import numpy as np
import pytest

from scalebench.laws import Fit, FitRefused, fit
from scalebench.points.warnings import far_warnings


def planted(off: float, *, seed: int = 3, n: int = 9) -> Fit:
    """Two seeds of each size at 0.2 % noise; the fifth size lies ``off`` above the law."""
    sizes = np.repeat(np.geomspace(1e6, 1e9, n), 2)
    loss = (1.6 + 30 * sizes**-0.3) * np.exp(np.random.default_rng(seed).normal(0, 0.002, 2 * n))
    return fit({"params": sizes, "loss": np.where(np.arange(2 * n) // 2 == 4, (1 + off) * loss, loss)}, "power")


@pytest.mark.parametrize("off", [0.05, -0.05])
def test_the_size_that_lies_off_the_law_is_the_one_named(off: float) -> None:
    (far,) = planted(off).far_points()
    assert far.inputs["params"] == pytest.approx(np.geomspace(1e6, 1e9, 9)[4])
    assert far.error_percent == pytest.approx(100 * off, abs=0.5)
    (line,) = far_warnings(planted(off))
    assert ("above" if off > 0 else "below") in line
    assert "3.162e+07" in line


def test_noise_alone_names_no_size() -> None:
    assert [planted(0.0, seed=seed).far_points() for seed in range(8)] == [()] * 8


def test_points_on_the_law_exactly_and_too_few_points_name_none() -> None:
    sizes = np.geomspace(1e3, 1e6, 6)
    assert fit({"params": sizes, "loss": 2 + 50 * sizes**-0.5}, "power").far_points() == ()
    assert fit({"params": sizes[:4], "loss": [3.0, 2.6, 2.5, 9.0]}, "power").far_points() == ()


def test_a_loss_that_rises_has_no_profile_but_a_reason() -> None:
    rising = fit({"params": [1000, 2000, 4000, 8000], "loss": [2.256694, 3.103721, 4.232921, 5.691958]}, "power")
    with pytest.raises(FitRefused, match="loss does not fall with params"):
        rising.profile("E")
