"""A small version of the coverage study: one design of each law, and a run that goes on where it was stopped."""

from dataclasses import replace

import coverage_laws
import numpy as np
import pytest
from coverage_batches import bootstraps, fits
from coverage_designs import MISFITS, SCENARIOS, draw
from coverage_laws import batch, batches, flagged, oracle_widths, study, summarise, table

from scalebench.laws import fit

STUDIES = 80
# One design of each law, the last large enough for resampled residuals; each with the default alone.
SMALL = [replace(SCENARIOS[i], compared=(), profiled=False) for i in (2, 11, 16)]


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SMALL, ids=lambda scenario: scenario.name)
def test_intervals_cover_the_truth_and_are_no_wider_than_they_need(scenario):
    summary = summarise(scenario, study(scenario, range(STUDIES)), oracle_widths(scenario))
    # Three standard errors of 80 studies below 95 %; widths: at most t over normal quantiles and the spread of a scale.
    least = 95 - 300 * np.sqrt(0.95 * 0.05 / STUDIES)
    assert summary["refused_percent"] == 0
    for name, row in summary["methods"]["auto"].items():
        assert row["coverage_percent"] >= least, (name, row)
        assert 0.8 < row["width_over_oracle"] < 1.7, (name, row)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage_laws, "BATCH", 2)
    scenario, seen = SMALL[1], []

    def counted(scenario, seeds):
        seen.extend(seeds)
        return study(scenario, seeds)

    first, second, third = batches(scenario, 5, counted)
    begun = batch(*first, tmp_path)
    assert begun["found"][0]["auto"]["c0"] == pytest.approx(study(scenario, [0])[0]["auto"]["c0"], rel=1e-6)
    studies = [each for task in (first, second, third) for each in batch(*task, tmp_path)["found"]]
    assert seen == [0, 1, 2, 3, 4]
    assert studies[:2] == begun["found"]
    assert scenario.name in table([summarise(scenario, studies, dict.fromkeys(studies[0]["auto"], 1.0))], {})


@pytest.mark.parametrize("scenario", MISFITS, ids=lambda scenario: scenario.name)
def test_surfaces_of_another_law_are_flagged(scenario):
    assert sum(flagged(scenario, range(10))) >= 9


@pytest.mark.parametrize("method", ["auto", "resample"])
def test_studies_at_once_are_those_of_the_package_one_by_one(method):
    studies = [draw(SMALL[2], np.random.default_rng([1, seed])) for seed in range(3)]
    together = fits("chinchilla", studies)
    for seed, (points, boot) in enumerate(zip(studies, bootstraps(together, 20, range(3), method), strict=True)):
        alone = fit(points, "chinchilla")
        assert together[seed].parameters == pytest.approx(alone.parameters, rel=1e-5)
        assert together[seed].objective == pytest.approx(alone.objective, rel=1e-10)
        expected = alone.bootstrap(20, seed, method)
        assert (boot.method, boot.reason) == (expected.method, expected.reason)
        far = [{name: 10 * values[-1:] for name, values in points.items()}, 0.9]
        ours, theirs = (b.prediction_interval(*far, kind="new") for b in (boot, expected))
        np.testing.assert_allclose(ours, theirs, rtol=1e-4)
