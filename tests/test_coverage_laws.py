"""A small version of the coverage study: one design of each law, and a run that goes on where it was stopped."""

import json
from dataclasses import replace

import coverage_laws
import numpy as np
import pytest
from coverage_designs import MISFITS, SCENARIOS
from coverage_laws import batches, flagged, oracle_widths, study, summarise, table

STUDIES = 80
# One design of each law, the last large enough for resampled residuals; each with the default alone.
SMALL = [replace(SCENARIOS[i], compared=(), profiled=False, bca=False) for i in (2, 11, 16)]


@pytest.mark.parametrize("scenario", SMALL, ids=lambda scenario: scenario.name)
def test_intervals_cover_the_truth_and_are_no_wider_than_they_need(scenario, tmp_path):
    summary = summarise(scenario, list(batches(scenario, STUDIES, tmp_path)), oracle_widths(scenario))
    # Three standard errors of 80 studies below 95 %; widths: at most t over normal quantiles and the spread of a scale.
    least = 95 - 300 * np.sqrt(0.95 * 0.05 / STUDIES)
    assert summary["refused_percent"] == 0
    for name, row in summary["methods"]["auto"].items():
        assert row["coverage_percent"] >= least, (name, row)
        assert 0.8 < row["width_over_oracle"] < 1.7, (name, row)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage_laws, "BATCH", 2)
    scenario = replace(SCENARIOS[11], profiled=False)
    first = list(batches(scenario, 3, tmp_path))
    assert first[0]["auto"]["c0"] == study(scenario, 0)["auto"]["c0"]
    seen = []

    def again(_, seed):
        seen.append(seed)
        return first[0]

    again.__name__ = "study"
    found = list(batches(scenario, 5, tmp_path, again))
    assert seen == [3, 4]
    assert found[:3] == [json.loads(json.dumps(one)) for one in first]
    assert scenario.name in table([summarise(scenario, found, dict.fromkeys(first[0]["auto"], 1.0))], {})


@pytest.mark.parametrize("scenario", MISFITS, ids=lambda scenario: scenario.name)
def test_surfaces_of_another_law_are_flagged(scenario):
    assert sum(flagged(scenario, seed) for seed in range(10)) >= 9
