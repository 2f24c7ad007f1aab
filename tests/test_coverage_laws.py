"""A small version of the coverage study: one design of each law, and a run that goes on where it was stopped."""

import coverage_laws
import numpy as np
import pytest
from coverage_laws import SCENARIOS, batches, oracle_widths, study, summarise, table

STUDIES = 80


@pytest.mark.parametrize("scenario", [SCENARIOS[2], SCENARIOS[9], SCENARIOS[13]], ids=lambda scenario: scenario.name)
def test_intervals_cover_the_truth_and_are_no_wider_than_they_need(scenario, tmp_path):
    summary = summarise(scenario, list(batches(scenario, STUDIES, tmp_path)), oracle_widths(scenario))
    # Three standard errors of 80 studies below 95 %; widths: at most t over normal quantiles and the spread of a scale.
    least = 95 - 300 * np.sqrt(0.95 * 0.05 / STUDIES)
    assert summary["refused_percent"] == 0
    for name, row in summary["intervals"].items():
        assert row["coverage_percent"] >= least, (name, row)
        assert 0.8 < row["width_over_oracle"] < 1.7, (name, row)


def test_a_stopped_run_goes_on_where_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(coverage_laws, "BATCH", 2)
    scenario = SCENARIOS[8]
    first = list(batches(scenario, 3, tmp_path))
    assert [one["c0"][:2] for one in first[:1]] == [study(scenario, 0)["c0"][:2]]
    seen = []
    monkeypatch.setattr(coverage_laws, "study", lambda one, seed: seen.append(seed) or first[0])
    again = list(batches(scenario, 5, tmp_path))
    assert seen == [3, 4]
    assert again[:3] == [{name: list(value) for name, value in one.items()} for one in first]
    assert scenario.name in table([summarise(scenario, again, dict.fromkeys(first[0], 1.0))])
