"""Effective data transferred: planted amounts and laws are recovered, and what the runs do not cover is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from transfer_support import AMOUNTS, LENGTHS, SIZES, A, B, K, from_scratch, study

from scalebench.analysis.curve_errors import STEP, read_off
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.transfer import Curve, transfer_of


def test_planted_amounts_and_their_law_are_recovered() -> None:
    transfer = transfer_of(study())
    assert [(point.size, point.tokens, point.seeds) for point in transfer.points] == [
        (n, d, 3) for n in SIZES for d in AMOUNTS
    ]
    for point in transfer.points:
        assert point.transferred == pytest.approx(K * point.tokens**A * point.size**B, rel=1e-9)
        assert point.effective == pytest.approx(point.tokens + point.transferred)
    assert transfer.law.fit is not None
    assert transfer.law.fit.parameters == pytest.approx({"k": K, "a": A, "b": B}, rel=1e-6)


def test_intervals_hold_the_planted_values_under_noise() -> None:
    transfer = transfer_of(study(noise=0.01))
    inside = [
        low <= K * point.tokens**A * point.size**B <= high for point in transfer.points for low, high in [point.ends]
    ]
    assert sum(inside) >= 10  # of 12, at 95 %
    assert transfer.law.fit is not None
    for name, value in {"a": A, "b": B}.items():
        low, high = transfer.law.interval(name)
        assert low < value < high


def test_the_interval_is_that_of_the_difference_of_both_means() -> None:
    """By hand, at one point: Welch's t of the seeds' mean and the curve's, moved along the curve."""
    from scipy.interpolate import pchip_interpolate
    from scipy.special import stdtrit

    analysed = study(noise=0.01)
    point = transfer_of(analysed).points[0]
    losses = analysed.trials.query("params_non_embedding == 4e3 and tokens_seen == 2e4")["validation_loss_nats"]
    runs = analysed.others.query("params_non_embedding == 4e3").groupby("tokens_seen")["validation_loss_nats"]
    variances = losses.var() / 3, runs.var().mean() / 3
    freedom = sum(variances) ** 2 / (variances[0] ** 2 / 2 + variances[1] ** 2 / 12)
    half = stdtrit(freedom, 0.975) * np.sqrt(sum(variances))
    means = runs.mean()
    for end, sign in ((point.low, 1), (point.high, -1)):
        expected = np.exp(pchip_interpolate(-means.to_numpy(), np.log(means.index), -(losses.mean() + sign * half)))
        assert end == pytest.approx(expected, rel=1e-9)


def test_one_seed_has_no_interval() -> None:
    transfer = transfer_of(study(seeds=1))
    assert np.isnan([end for point in transfer.points for end in point.ends]).all()
    assert not np.isnan([point.transferred for point in transfer.points]).any()


def test_losses_that_are_equal_to_the_last_digit_show_no_noise() -> None:
    transfer = transfer_of(study(noise=0.0))
    assert np.isnan([end for point in transfer.points for end in point.ends]).all()


def test_runs_from_scratch_of_another_held_out_share_are_not_compared() -> None:
    made = study(noise=0.01, validation_fraction=0.5)
    assert transfer_of(replace(made, rows=made.rows.assign(validation_fraction=0.5))).points
    transfer = transfer_of(replace(made, rows=made.rows.assign(validation_fraction=0.1)))
    assert (transfer.points, transfer.law.fit) == ((), None)
    assert "no training runs from scratch" in transfer.law.reason.replace("there are no", "no")


def test_learning_rates_of_the_tuning_are_no_seeds_of_one_another() -> None:
    made = study(noise=0.002)
    worse = made.rows["validation_loss_nats"] + 0.3
    other = made.rows.assign(learning_rate=0.1, validation_loss_nats=worse, trial_id=made.rows["trial_id"] + "-b")
    both = pd.concat([made.rows.assign(learning_rate=0.01), other], ignore_index=True)
    definition = {"axes": {"learning_rate": [0.01, 0.1]}}
    assert "differ in learning_rate" in transfer_of(replace(made, rows=both, definition=definition)).reason
    best = replace(made, rows=both, definition=definition | {"fit": {"best_over": ["learning_rate"]}})
    assert [point.effective for point in transfer_of(best).points] == pytest.approx(
        [point.effective for point in transfer_of(made).points]
    )


def test_losses_outside_the_runs_from_scratch_are_refused() -> None:
    transfer = transfer_of(study(lengths=LENGTHS[:4]))
    short = [point for point in transfer.points if point.reason]
    assert short
    assert all("is below the" in point.reason and "from scratch, the longest run" in point.reason for point in short)
    assert all(np.isnan(point.effective) for point in short)
    above = transfer_of(study(lengths=LENGTHS[3:], amounts=(2e4,), loss=from_scratch))
    assert all("is above the" in point.reason and "the shortest run" in point.reason for point in above.points)
    assert above.law.fit is None
    assert above.law.reason == "4 of 4 points lie outside the runs from scratch"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"amounts": AMOUNTS[:1]}, "tokens is "),
        ({"sizes": SIZES[:2]}, "params varies by a factor of 2 "),
        ({"loss": lambda n, d: from_scratch(n, d / 2)}, "at 12 of 12 points no data was transferred"),
        ({"data_sha256": "python"}, "there are no training runs from scratch on the same data"),
        ({"batch_size": 8}, "there are no training runs from scratch on the same data"),
        ({"parent_trial_id": "p"}, "there are no training runs from scratch on the same data"),
        ({"status": "failed"}, "there are no training runs from scratch on the same data"),
    ],
)
def test_the_law_is_refused_where_the_design_does_not_support_it(changes: dict[str, Any], expected: str) -> None:
    law = transfer_of(study(**changes)).law
    assert law.fit is None
    assert expected in law.reason


def test_runs_from_scratch_that_differ_in_more_than_length_are_no_curve() -> None:
    mixed = study.__wrapped__()
    mixed.beside.loc[mixed.beside.index[0], "learning_rate"] = 0.5
    first, *_, last = transfer_of(mixed).points
    assert first.reason == "4,000 parameters: its runs from scratch differ in learning_rate"
    assert not last.reason


def test_a_loss_from_scratch_that_rises_with_data_is_no_curve() -> None:
    rising = study.__wrapped__()
    longest = rising.beside["tokens_seen"].eq(1e7) & rising.beside["params_non_embedding"].eq(4e3)
    rising.beside.loc[longest, "validation_loss_nats"] = 9.0
    assert "does not fall at 10,000,000 tokens" in transfer_of(rising).points[0].reason


@pytest.mark.parametrize("lengths", [2, 3, 6])
def test_drawn_curves_are_read_off_as_by_scipy(lengths: int) -> None:
    from scipy.interpolate import PchipInterpolator

    rng, tokens = np.random.default_rng(0), np.geomspace(1e4, 1e7, lengths)
    losses = np.linspace(4, 2, lengths) + 0.4 * rng.standard_normal((30, lengths))  # some rise where they should fall
    reached = np.array([9.0, 4.0, 3.3, 2.5, 2.0, 0.1])
    for drawn, effective in zip(losses, read_off(tokens, losses, reached), strict=True):
        x = STEP * np.arange(lengths) - np.minimum.accumulate(drawn)
        expected = PchipInterpolator(x, np.log(tokens))(np.clip(-reached, x[0], x[-1]))
        assert np.log(effective) == pytest.approx(expected, rel=1e-9)


def test_a_study_alone_says_what_is_missing() -> None:
    alone = transfer_of(StudyAnalysis("tuned", {}, study().rows))
    assert alone.points == ()
    assert "there are no training runs from scratch" in alone.law.reason


def test_a_curve_from_scratch_is_followed_between_its_lengths() -> None:
    """At 1 + 300 D^-1/2 a straight line in log D is 0.37 nats too high between lengths 16 apart."""
    tokens = np.array([1e4, 1.6e5, 2.56e6])
    curve = Curve(tokens, 1 + 300 * tokens**-0.5, 0.01, 6)
    assert curve.loss_at(4e4) == pytest.approx(1 + 300 * 4e4**-0.5, abs=0.11)
    assert curve.tokens_for(1 + 300 * 4e4**-0.5) == pytest.approx(4e4, rel=0.1)
    for length, loss in zip(tokens, curve.losses, strict=True):
        assert curve.loss_at(length) == pytest.approx(loss)
        assert curve.tokens_for(loss) == pytest.approx(length)
    assert np.isnan([curve.loss_at(9e3), curve.loss_at(3e6), curve.tokens_for(0.5), curve.tokens_for(5.0)]).all()


@pytest.mark.slow
def test_the_law_holds_the_error_that_points_of_one_curve_share() -> None:
    """All points of a size lie between two of its three lengths. Counted as independent, b was held by 76 % of 50."""
    few = {"lengths": (1e4, 2e5, 1e7), "amounts": (2e4, 4e4, 8e4, 1.6e5, 3.2e5)}
    law = transfer_of(study(noise=0.02, **few)).law
    alone, (low, high) = law.fit.interval("b"), law.interval("b")
    assert low < B < high
    assert high - low > 1.5 * (alone[1] - alone[0])
    # Means of three seeds are off by 0.0115 nats, so log D_E by 0.029, and log D_T by 1.4 times that, over four sizes
    # a factor of two apart; the error itself has six degrees of freedom.
    assert law.shared["b"].std() == pytest.approx(0.029 * 1.4 / (5**0.5 * np.log(2)) * 1.5**0.5, rel=0.25)


def test_a_law_by_curves_of_one_seed_has_no_interval_and_says_why() -> None:
    law = transfer_of(study(noise=0.01, seeds=1)).law
    assert law.fit is not None
    assert np.isnan(law.interval("b")).all()
    assert "4,000, 8,000, 16,000, 32,000 parameters have one seed" in law.no_interval
