"""Summaries against independent computations and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalebench.analysis.trials import LOSS, LOSS_SE, PARAMETERS, N, means_per_size
from scalebench.measure.statistics import (
    clustered_mean,
    combined_standard_error,
    median_interval,
    outlier_mask,
    summarize,
)


def test_summary_quantiles_agree_with_sorting() -> None:
    samples = np.arange(101.0)
    summary = summarize(np.random.default_rng(0).permutation(samples))
    assert (summary.count, summary.median, summary.p20, summary.p80) == (101, 50, 20, 80)


def test_outliers_are_flagged_at_14_8_deviations_and_not_before() -> None:
    samples = [0.0, 1.0, 2.0, 3.0, 4.0, 2.0 + 14.7, 2.0 + 16.0, 2.0]
    deviation = float(np.median(np.abs(np.array(samples) - np.median(samples))))
    expected = [abs(x - np.median(samples)) > 14.8 * deviation for x in samples]
    assert outlier_mask(samples).tolist() == expected
    assert not outlier_mask([5.0, 5.0, 5.0]).any()
    assert outlier_mask([5.0, 5.0, 5.0, 5.0, 6.0]).tolist() == [False] * 4 + [True]


def test_no_samples_are_refused() -> None:
    with pytest.raises(ValueError, match="no samples"):
        summarize([])


def test_the_median_interval_covers_at_least_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    for size in (7, 20, 51):
        draws = rng.exponential(size=(2000, size))
        truth = math.log(2)
        covered = np.mean([low <= truth <= high for low, high in map(median_interval, draws)])
        assert 0.95 - 0.012 <= covered <= 0.995


def test_the_clustered_error_is_the_spread_of_the_mean_over_redrawn_clusters() -> None:
    rng = np.random.default_rng(2)
    clusters = np.repeat(np.arange(40), 5)

    def draw() -> np.ndarray:
        return rng.normal(size=40)[clusters] + 0.3 * rng.normal(size=200)

    spread = np.std([draw().mean() for _ in range(4000)])
    errors = [clustered_mean(draw(), clusters)[1] for _ in range(400)]
    assert np.mean(errors) == pytest.approx(spread, rel=0.05)
    naive = np.mean([draw().std() / math.sqrt(200) for _ in range(400)])
    assert naive < 0.6 * spread  # what ignoring the clusters would claim


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30))
def test_singleton_clusters_give_the_ordinary_standard_error(values: list[float]) -> None:
    mean, error = clustered_mean(values, np.arange(len(values)))
    assert mean == pytest.approx(np.mean(values), abs=1e-12)
    assert error == pytest.approx(np.std(values, ddof=1) / math.sqrt(len(values)), abs=1e-12)


def test_one_cluster_or_one_seed_has_no_known_error() -> None:
    assert math.isnan(clustered_mean([1.0, 2.0], [3, 3])[1])
    assert math.isnan(combined_standard_error([1.0], [0.1]))


def test_the_combined_error_adds_seed_variance_to_the_shared_validation_error() -> None:
    assert combined_standard_error([1.0, 3.0], [0.3, 0.3]) == pytest.approx(math.sqrt(2 / 2 + 0.09))


def test_means_of_all_sizes_have_the_error_of_each_by_itself() -> None:
    losses, errors = [1.0, 3.0, 2.0, 2.5, 1.5], [0.3, None, 0.1, None, None]
    trials = pd.DataFrame({N: [10, 10, 20, 30, 30], LOSS: losses, LOSS_SE: errors})
    means = means_per_size(trials, PARAMETERS).set_index("size")
    assert means["trials"].tolist() == [2, 1, 2]
    assert means["mean"].tolist() == [2.0, 2.0, 2.0]
    assert means.loc[10, "se"] == pytest.approx(combined_standard_error([1.0, 3.0], [0.3, 0.0]))
    assert means.loc[20, "se"] == pytest.approx(0.1)  # one seed: the validation sample's alone
    assert means.loc[30, "se"] == pytest.approx(combined_standard_error([2.5, 1.5], [0.0, 0.0]))
    assert means["seed_sd"].isna().tolist() == [False, True, False]
