"""Compute multipliers of planted changes: recovered without noise, covered with it, refused where there is none."""

import json

import numpy as np
import pytest

from scalebench.advice.multiplier import compute_multiplier
from scalebench.laws import FitRefused, fit

FLOPS = np.geomspace(1e15, 1e19, 13)


def study(saving=1.0, *, rng=None, noise=0.0, E=1.7, flops=FLOPS, alpha=0.15):
    """Loss at x FLOPs of a recipe that needs `saving` times less compute than L = E + 300 C^-alpha."""
    scatter = noise * rng.standard_normal(len(flops)) if rng else 0.0
    return {"x": flops, "y": (E + 300.0 * (saving * flops) ** -alpha) * np.exp(scatter)}


def surface(saving=1.0):
    """Points of a loss surface whose compute-optimal loss at C is that of the plain one at `saving` * C."""
    params, tokens = (grid.ravel() for grid in np.meshgrid(np.geomspace(1e7, 1e9, 5), np.geomspace(1e9, 1e11, 5)))
    loss = 1.8 + 480 * (params * saving**0.5) ** -0.35 + 2100 * (tokens * saving**0.5) ** -0.37
    return {"params": params, "tokens": tokens, "loss": loss}


@pytest.mark.parametrize("saving", [0.5, 1.0, 1.8, 6.0])
def test_planted_saving_is_recovered(saving):
    saved = compute_multiplier(fit(study()), fit(study(saving)), 2.6, n=20)
    assert saved.multiplier == pytest.approx(saving, rel=1e-4)
    assert saved.baseline_flops == pytest.approx((300 / 0.9) ** (1 / 0.15), rel=1e-4)
    assert saved.changed_flops == pytest.approx(saved.baseline_flops / saving, rel=1e-4)
    assert saved.unreached == 0


def test_saving_of_a_surface_is_that_of_its_frontier():
    saved = compute_multiplier(fit(surface(), "chinchilla"), fit(surface(2.5), "chinchilla"), 2.4, n=20)
    assert saved.multiplier == pytest.approx(2.5, rel=1e-4)
    a = 0.37 / 0.72
    G = (0.35 * 480 / (0.37 * 2100)) ** (1 / 0.72)
    size = G * (saved.baseline_flops / 6) ** a
    assert 1.8 + 480 * size**-0.35 + 2100 * (saved.baseline_flops / 6 / size) ** -0.37 == pytest.approx(2.4, rel=1e-6)


def test_default_loss_is_the_lowest_that_both_have_measured():
    baseline, changed = study(), study(2.0, flops=FLOPS[:9])
    saved = compute_multiplier(fit(baseline), fit(changed), n=20)
    assert saved.loss == changed["y"].min()
    assert saved.beyond == pytest.approx((1.0, 1.0), rel=1e-4)
    assert compute_multiplier(fit(baseline), fit(changed), 2.0, n=20).beyond[1] == pytest.approx(
        (300 / 0.3) ** (1 / 0.15) / 2 / FLOPS[8], rel=1e-3
    )


def test_a_loss_above_the_data_is_below_their_smallest_compute():
    saved = compute_multiplier(fit(study()), fit(study(2.0)), 5.0, n=20)
    assert saved.below == (True, True)
    assert saved.beyond[0] == pytest.approx(FLOPS[0] / (300 / 3.3) ** (1 / 0.15), rel=1e-3)
    assert compute_multiplier(fit(study()), fit(study()), 2.1, n=20).below == (False, False)


@pytest.mark.slow
def test_interval_covers_a_planted_saving():
    studies, covered, widths = 40, 0, []
    for seed in range(studies):
        rng = np.random.default_rng([1, seed])
        fits = [fit(study(saving, rng=rng, noise=0.005), loss="squares") for saving in (1.0, 1.5)]
        low, high = compute_multiplier(*fits, 2.5, n=200, seed=seed).interval
        covered += low <= 1.5 <= high
        widths.append(np.log(high / low))
    # Three standard errors of the simulation below 95 % are 84.7 % of 40.
    assert covered / studies >= 0.84
    assert 0.67 < np.median(widths) / known_noise_width(0.005, 2.5, 1.5) < 1.5  # nor does it cover by saying nothing


def known_noise_width(noise, loss, saving):
    """Width in ln of the 95 % interval by the delta method at the planted parameters, with the noise known."""
    variance = 0.0
    for shift in (1.0, saving):
        at = (300 / (loss - 1.7)) ** (1 / 0.15) / shift
        rows = [gradient(shift, C) for C in FLOPS]
        goal = gradient(shift, at)
        slope = 0.15 * (loss - 1.7) / loss
        variance += goal @ np.linalg.inv(np.transpose(rows) @ rows) @ goal * (noise / slope) ** 2
    return 2 * 1.96 * np.sqrt(variance)


def gradient(shift, C):
    """Of ln L by E, ln A and alpha."""
    term = 300.0 * (shift * C) ** -0.15
    return np.array([1.0, term, -term * np.log(C)]) / (1.7 + term)


def test_an_end_that_no_replicate_reaches_is_none():
    rng = np.random.default_rng(0)
    fits = [fit(study(saving, rng=rng, noise=0.03)) for saving in (1.0, 1.5)]
    lowest = max(reached.predict(x=[1e5 * FLOPS[-1]])[0] for reached in fits)  # many replicates have a higher floor
    reached = compute_multiplier(*fits, lowest, n=100)
    assert None in reached.interval
    assert reached.unreached > 0.025
    json.dumps(reached.to_dict(), allow_nan=False)


def test_refusals():
    baseline, changed = fit(study()), fit(study(2.0, E=1.9))
    with pytest.raises(FitRefused, match=r"loss 1\.8 is not crossed by the changed fit .* floor is 1\.9"):
        compute_multiplier(baseline, changed, 1.8)
    with pytest.raises(FitRefused, match=r"loss 1e\+09 is not crossed by the baseline fit"):
        compute_multiplier(baseline, changed, 1e9)
    with pytest.raises(FitRefused, match=r"loss is -1"):
        compute_multiplier(baseline, changed, -1.0)
    rising = fit({"x": FLOPS, "y": 2 + 1e-20 * FLOPS}, "offset_linear")
    with pytest.raises(FitRefused, match="is not crossed by the changed fit"):
        compute_multiplier(baseline, rising, 2.05)
    with pytest.raises(FitRefused, match=r"level is 95"):
        compute_multiplier(baseline, changed, 2.5, level=95)
    with pytest.raises(FitRefused, match="zero degrees of freedom"):
        compute_multiplier(baseline, fit(study(2.0, flops=FLOPS[::6])), 2.5)
