"""Intervals against planted truth in studies that are not as the textbook has them: copies, noise of configurations."""

import numpy as np
import pytest
from law_support import power_points

from scalebench.laws import fit


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_seeds_that_agree_do_not_bound_the_irreducible_loss_below_the_truth(spread: float) -> None:
    """Of copied rows, or of seeds that agree to 0.1 %, where sizes scatter by 1 %: the lowest mean lies below E."""
    sizes, held = np.geomspace(1e6, 1e10, 15), 0
    for study in range(6):
        once, rng = power_points(sizes=sizes, noise=0.01, seed=study), np.random.default_rng(study)
        losses = np.repeat(once["loss"], 2) * np.exp(spread * rng.standard_normal(30))
        low, high = fit({"params": np.repeat(sizes, 2), "loss": losses}).bootstrap(100).interval("E")
        held += low <= 1.7 <= high
    assert held >= 5  # a bound from the seeds alone held it in 1 to 3 of 6
