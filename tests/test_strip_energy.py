"""The strip projects energy where a counter was read, by the law of a step times the steps of the recipe."""

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, trial

from scalebench.analysis.ends import FACTORS, ends_of
from scalebench.analysis.growth import Growth
from scalebench.analysis.predictions import predict_size
from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.fit_tables import predictions_table
from scalebench.reporting.overview import GrowthRow, conclusion
from scalebench.reporting.quantities import NO_SPREAD, bounded

STEPS, PER_STEP, PER_PARAMETER = 300, 2.0, 5e-5  # joules of a step: 2 J, and 50 µJ a parameter
SIZES = (1000, 4000, 16_000, 64_000)


def energy_of(size):
    return STEPS * (PER_STEP + PER_PARAMETER * size)


def series_with(energy):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([trial(size, seed, rng) for size in SIZES for seed in (0, 1)])
    noise = np.exp(rng.normal(0, 0.002, len(rows)))
    rows = rows.assign(tokens_seen=STEPS * 2048, energy_j=energy_of(rows["params_non_embedding"]) * noise * energy)
    (series,) = StudyAnalysis("synthetic", STUDY, rows).series
    return series


@pytest.mark.slow
def test_energy_is_projected_by_its_law():
    row = next(each for each in ends_of(series_with(1.0)) if each.quantity == "energy")
    assert row.factor == pytest.approx(energy_of(SIZES[-1]) / energy_of(SIZES[0]), rel=0.01)
    for factor, projected in zip(FACTORS, row.projected, strict=True):
        truth = energy_of(factor * SIZES[-1])
        assert projected.value == pytest.approx(truth, rel=0.02)
        assert projected.low < projected.value < projected.high


@pytest.mark.slow
def test_predict_and_the_strip_give_one_energy():
    series = series_with(1.0)
    row = next(each for each in ends_of(series) if each.quantity == "energy")
    predicted = next(each for each in predict_size(series, 4 * SIZES[-1]).quantities if each.quantity == "energy")
    assert predicted == row.projected[0]
    assert "energy" in predictions_table([series]).columns


@pytest.mark.usefixtures("few_refits")
def test_without_a_counter_predict_and_the_strip_give_one_reason():
    series = series_with(np.nan)
    series.usable["energy_method"] = "none: no counter readable on a CPU without root"
    predicted = next(each for each in predict_size(series, 4 * SIZES[-1]).quantities if each.quantity == "energy")
    row = next(each for each in ends_of(series) if each.quantity == "energy")
    assert predicted.value is None
    assert predicted.reason == row.reason == "not measured: no counter readable on a CPU without root"
    assert "energy" not in predictions_table([series]).columns


def test_an_interval_of_rounding_is_none():
    assert bounded(5.5378e9, 5.53782e9, 5.53783e9, "B")[1] == NO_SPREAD
    assert bounded(5.5378e9, 5.53e9, 5.54e9, "B")[1] != NO_SPREAD


def test_the_conclusion_counts_exponents_with_an_interval():
    slow, unsure = Growth(0.5, 0.4, 0.6), Growth(0.8, np.nan, np.nan)
    rows = [GrowthRow((), slow, None), GrowthRow((), unsure, None)]
    assert "grew more slowly than model size in 1 of 1 series" in conclusion(rows)
    assert conclusion([GrowthRow((), Growth(1.5, 1.2, 1.8), slow)]).endswith("Faster: time in 1.")
    assert conclusion([GrowthRow((), unsure, unsure)]) == "1 series, none of them with three sizes."
