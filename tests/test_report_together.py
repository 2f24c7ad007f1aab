"""The page of trials that were trained together in one process claims no time, and says why."""

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, trial

from scalebench.analysis.ends import ends_of
from scalebench.analysis.predictions import predict_size
from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.figures.costs import efficiency_figure, step_time_figure
from scalebench.reporting.sections.common import strip_of
from scalebench.reporting.strip import strip_table
from scalebench.reporting.svg import canvas

UNTIMED = ("step_time_median_s", "achieved_flops_per_s", "tokens_per_s", "memory_tracked_peak_bytes", "peak_rss_bytes")


@pytest.fixture(scope="module")
def study() -> StudyAnalysis:
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([trial(size, seed, rng) for size in (1000, 4000, 16_000, 64_000) for seed in (0, 1)])
    rows = rows.assign(ensemble_size=8, timing_exclusive=False).assign(**dict.fromkeys(UNTIMED))
    return StudyAnalysis("synthetic", STUDY, rows)


def test_figures_of_time_are_replaced_by_the_reason(study):
    for figure in (step_time_figure, efficiency_figure):
        with canvas("a") as marks:
            reason = figure(marks, study)
        assert isinstance(reason, str)
        assert "8 of 8 trials were trained together" in reason
        assert "without run.ensemble" in reason


def test_the_strip_and_the_predictions_claim_no_time(study):
    (series,) = study.series
    ends = {each.quantity: each for each in ends_of(series)}
    for name in ("step time", "training time"):
        assert ends[name].reason == "trained together with others"
        assert np.isnan(ends[name].largest)
        assert all(answer is None or answer.value is None for answer in ends[name].projected)
    assert ends["memory"].reason == "not measured"
    assert ends["validation loss"].largest < ends["validation loss"].smallest
    assert ends["compute"].largest == 6.0 * 64_000 * 2048 * 300
    step = next(each for each in predict_size(series, 256_000).quantities if each.quantity == "step time")
    assert step.value is None
    assert "trained together" in step.reason


def test_the_first_screen_has_the_strip(study):
    assert strip_of(study) == strip_table(study.series[0])
