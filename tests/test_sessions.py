"""Drift of times between sessions: sessions are found, and their drift is in the intervals of differences."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from command_support import record
from scipy.special import stdtrit

from scalebench.analysis.difference import WORSE, Difference, difference
from scalebench.analysis.sessions import sessions_of

SIZES = (1_000, 10_000, 100_000)
BEGIN = pd.Timestamp("2026-01-01", tz="UTC")


def measured(
    rng: np.random.Generator, days: list[int], drift: np.ndarray, minute: int = 0, runs: int = 1
) -> pd.DataFrame:
    """Trials of three sizes, `runs` of each on each of the days, on which times are longer by the drift, in logs."""
    rows = []
    for day, shift in zip(days, drift, strict=True):
        for number in range(runs):
            for place, size in enumerate(SIZES):
                started = BEGIN + pd.Timedelta(days=day, minutes=20 * (number * len(SIZES) + place) + minute)
                row = record(size, len(rows), np.random.default_rng(0)) | {"started_at": started.isoformat()}
                time = 1e-3 * np.exp(shift + 0.002 * rng.standard_normal())
                rows.append(row | {"wall_time_s": 60.0, "step_time_median_s": time})
    return pd.DataFrame(rows).assign(invalid_reason=None)


def overall(changes: Difference) -> tuple[float, float]:
    (effect,) = [each for each in changes.effects if (each.label, each.quantity) == ("all", "step time")]
    assert effect.low is not None
    assert effect.high is not None
    return float(np.log(effect.low)), float(np.log(effect.high))


def test_sessions_are_apart_by_an_hour_without_a_trial_and_by_machine() -> None:
    minutes = [0, 100, 300, 30, 0, 600, None]
    times = [None if each is None else (BEGIN + pd.Timedelta(minutes=each)).isoformat() for each in minutes]
    trials = pd.DataFrame({"started_at": times, "wall_time_s": [60, 4000.0, None, 1800, 60, 60, 60], "machine_id": "a"})
    trials.loc[4, "machine_id"] = "b"
    # 100 minutes is 40 after the end of the trial at 30; 300 is more than an hour after the end of that at 100.
    assert sessions_of([trials.iloc[:4], trials.iloc[4:]]).tolist() == [0, 0, 1, 0, 4, 2, 3]
    timeless = trials.drop(columns="started_at")
    assert sessions_of([timeless]).tolist() == [0, 0, 0, 0, 1, 0, 0]
    assert sessions_of([timeless.iloc[:1], timeless.iloc[1:2]]).tolist() == [0, 1]  # not known to be the same


def test_the_interval_on_all_is_a_t_test_on_the_means_of_sessions() -> None:
    rng = np.random.default_rng(1)
    old, new = (measured(rng, days, 0.02 * rng.standard_normal(3)) for days in ([0, 1, 2], [10, 11, 12]))
    means = [np.log(each["step_time_median_s"]).groupby(np.arange(9) // 3).mean() for each in (old, new)]
    shift, error = means[1].mean() - means[0].mean(), np.sqrt((means[0].var() + means[1].var()) / 3)
    half = stdtrit(4, 0.975) * error
    changes = difference(old, new, 0.01)
    assert overall(changes) == pytest.approx((shift - half, shift + half), rel=1e-6)
    assert "hold the drift between sessions (3 of OLD, 3 of NEW)" in changes.notes[0]
    assert changes.to_dict()["notes"] == list(changes.notes)
    each = [effect for effect in changes.effects if effect.quantity == "step time"][1]
    assert each.high / each.low > 1.02  # a size alone has the drift as well, and did not vary by less
    loss = next(effect for effect in changes.effects if effect.quantity == "validation loss")
    assert loss.high == loss.low == pytest.approx(1)  # drift is of times alone


def test_drift_cancels_where_both_were_measured_in_turns() -> None:
    rng = np.random.default_rng(2)
    drift = 0.05 * rng.standard_normal(3)
    old, new = (measured(rng, [0, 1, 2], drift + change, minute) for minute, change in ((0, 0.0), (5, 0.03)))
    changes = difference(old, new, 0.01)
    low, high = overall(changes)
    assert low < 0.03 < high < low + 0.01
    assert all(effect.verdict == WORSE for effect in changes.effects if effect.quantity == "step time")
    assert "cancels" in changes.notes[0]


def test_drift_that_was_not_measured_is_said_to_be_missing() -> None:
    rng = np.random.default_rng(3)
    changes = difference(measured(rng, [0], np.zeros(1), runs=3), measured(rng, [9], np.full(1, 0.03), runs=3), 0.01)
    low, high = overall(changes)
    assert high - low < 0.01
    assert "do not hold the drift between sessions (1 of OLD, 1 of NEW)" in changes.notes[0]
    apart = [
        measured(rng, [day], np.zeros(1), runs=2).iloc[rows] for day, rows in ((0, [0, 3]), (1, [1, 4]), (2, [2, 5]))
    ]
    changes = difference(pd.concat(apart), measured(rng, [9], np.zeros(1), runs=2), 0.01)
    assert "do not hold the drift between sessions (3 of OLD, 1 of NEW)" in changes.notes[0]


def test_one_run_in_each_session_of_one_size_is_the_t_test_of_two_samples() -> None:
    rng = np.random.default_rng(4)
    old, new = (measured(rng, days, 0.02 * rng.standard_normal(3)).iloc[::3] for days in ([0, 1, 2], [10, 11, 12]))
    effects = [effect for effect in difference(old, new, 0.01).effects if effect.quantity == "step time"]
    logs = [np.log(each["step_time_median_s"]) for each in (old, new)]
    half = stdtrit(4, 0.975) * np.sqrt((logs[0].var() + logs[1].var()) / 3)
    assert np.log(effects[0].high / effects[0].low) == pytest.approx(2 * half, rel=1e-9)


@pytest.mark.slow
def test_intervals_hold_the_truth_despite_drift() -> None:
    """With sessions taken as one, 44 % of these intervals held it."""
    covered, studies = 0, 80
    for seed in range(studies):
        rng = np.random.default_rng([5, seed])
        pair = [measured(rng, days, 0.02 * rng.standard_normal(3), runs=2) for days in ([0, 1, 2], [10, 11, 12])]
        low, high = overall(difference(*pair, 0.01))
        covered += low <= 0 <= high
    assert covered / studies >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / studies)
