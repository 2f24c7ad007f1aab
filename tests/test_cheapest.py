"""The cheapest model within limits: by brute force over what was measured, and by the planted laws beyond it."""

from __future__ import annotations

import itertools
import json
from math import inf, sqrt
from pathlib import Path

import numpy as np
import pytest
from chain_support import SEEDS, SIZES, analysed, base, bytes_of, flops_of, loss_of, quant, quantised, trained

from scalebench import store
from scalebench.analysis.cheapest import (
    MEASURED,
    PREDICTED,
    Limits,
    cheapest_first,
    find_cheapest,
    measured_candidates,
)
from scalebench.analysis.tradeoff import tradeoff_points
from scalebench.measure.statistics import new_run_interval
from scalebench.points.numerals import SECONDS, byte_count, number_with_unit


@pytest.fixture(scope="module")
def points():
    return tradeoff_points([base(), quant()])


def of(answer, basis):
    return [candidate for candidate in answer.candidates if candidate.basis == basis]


def test_the_interval_of_a_new_run_has_both_kinds_of_noise() -> None:
    mean, low, high = new_run_interval([2.0, 2.1, 2.3], [0.01, 0.01, 0.01])
    # Student's t with two degrees of freedom, 97.5 %: 4.30265.
    reach = 4.30265 * sqrt(np.var([2.0, 2.1, 2.3], ddof=1) * (1 + 1 / 3) + 1e-4)
    assert (mean, high - mean) == pytest.approx((2.1333333, reach), rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
    assert new_run_interval([2.0], [0.01])[2] == pytest.approx(2.0 + 1.95996 * 0.01)
    assert np.isnan(new_run_interval([2.0], [0.0])[1])


@pytest.mark.parametrize("most_bytes", [inf, 40_000, 20_000])
@pytest.mark.parametrize("loss", [1.97, 2.06, 2.2])
def test_the_measured_answer_is_that_of_brute_force(points, loss: float, most_bytes: float) -> None:
    limits = Limits(loss, None if most_bytes == inf else most_bytes)
    answer = cheapest_first([*measured_candidates(points, limits)], limits)
    within = []
    for size in SIZES:
        for added, share in ((0.0, 1.0), (0.4 / 8, 8 / 32), (0.4 / 4, 4 / 32)):
            stored = int(bytes_of(size) * share)
            if loss_of(size) + added <= loss and stored <= most_bytes:
                within.append((flops_of(size), stored, size))
    assert len(answer) == len(within)
    if not within:
        return
    flops, stored, size = min(within)
    best = answer[0]
    assert (best.flops.value, best.bytes.value, best.size) == pytest.approx((flops, stored, size))
    assert len(best.trials) == len(SEEDS)
    assert best.loss.low < best.loss.value < best.loss.high


def of_lengths(make, lengths=(1.0, 4.0)):
    """Rows of every size and seed, trained for some multiples of the usual length: 0.3 nats less for the longest."""
    rows = []
    for size, seed, length in itertools.product(SIZES, SEEDS, lengths):
        row, less = make(size, seed), 0.3 * np.log(length) / np.log(lengths[-1])
        row |= {name: row[name] + f"-{length}" for name in ("trial_id", "parent_trial_id") if row[name]}
        row |= {name: row[name] - less for name in ("validation_loss_nats", "loss_before_nats") if name in row}
        row |= {name: row[name] * length for name in ("steps", "parent_flops") if row.get(name)}
        rows.append(row)
    return rows


def test_models_trained_for_several_lengths_are_no_seeds_of_one_another() -> None:
    limits = Limits(loss_of(16_000) - 0.25)
    for study in (analysed("base", of_lengths(trained)), analysed("quant", of_lengths(lambda *at: quantised(*at, 8)))):
        points = tradeoff_points([study])
        measured = [*measured_candidates(points, limits)]
        assert {len(each.trials) for each in measured} == {len(SEEDS)}
        (best, *_) = cheapest_first([each for each in measured if "quant" not in each.study], limits)
        assert (best.size, best.loss.value) == (16_000, pytest.approx(loss_of(16_000) - 0.3))
        answer = find_cheapest(points, limits)
        assert not of(answer, PREDICTED)
        assert {refusal.basis for refusal in answer.refused} == {PREDICTED}
        assert all("several lengths" in refusal.reason for refusal in answer.refused)


def test_one_seed_is_never_sure_to_be_within_the_limit() -> None:
    points = tradeoff_points([analysed("base", [trained(size, 1) for size in SIZES])])
    measured = [*measured_candidates(points, Limits(9.0))]
    assert [each.loss.value for each in measured] == pytest.approx([loss_of(size) for size in SIZES])
    assert all(np.isnan([each.loss.low, each.loss.high]).all() and not each.sure for each in measured)


@pytest.mark.usefixtures("few_refits")
def test_a_size_is_predicted_from_models_of_one_learning_rate() -> None:
    rows = []
    for size, seed, (rate, worse) in itertools.product(SIZES, SEEDS, ((0.001, 0.4), (0.01, 0.0))):
        row = trained(size, seed)
        row |= {"learning_rate": rate, "trial_id": f"{row['trial_id']}-{rate}"}
        rows.append(row | {"validation_loss_nats": loss_of(size, seed) + worse})
    study = analysed("base", rows, learning_rate=[0.001, 0.01], seed=[*SEEDS])
    (answer,) = of(find_cheapest(tradeoff_points([study]), Limits(loss_of(12_000))), PREDICTED)
    assert answer.settings == "learning_rate 0.01"
    assert answer.size == pytest.approx(12_000, rel=0.05)


@pytest.mark.slow
def test_an_interval_beyond_the_limit_is_not_sure_and_the_next_that_is_stands_beside_it(points) -> None:
    limit = loss_of(8_000) + 0.001
    near, sure = of(find_cheapest(points, Limits(limit)), MEASURED)
    assert (near.size, near.sure) == (8_000, False)
    assert (sure.size, sure.sure) == (16_000, True)
    assert sure.loss.high <= limit


@pytest.mark.slow
def test_the_predicted_size_is_where_the_planted_law_meets_the_limit(points) -> None:
    only = points[points["unchanged"].astype(bool)]
    for size in (12_000, 60_000):
        (answer,) = of(find_cheapest(only, Limits(loss_of(size))), PREDICTED)
        assert answer.size == pytest.approx(size, rel=0.05)
        assert answer.loss.value == pytest.approx(loss_of(size), abs=0.005)
        assert answer.bytes.value == pytest.approx(bytes_of(answer.size), rel=0.01)
        assert answer.flops.value == pytest.approx(flops_of(answer.size), rel=0.01)
        assert answer.beyond == pytest.approx(max(1.0, answer.size / 32_000))
        assert not answer.trials


@pytest.mark.slow
def test_what_no_law_reaches_within_the_limits_is_refused_with_the_limit_that_it_breaks(points) -> None:
    only = points[points["unchanged"].astype(bool)]
    answer = find_cheapest(only, Limits(loss_of(12_000), latency=1e-6))
    assert not answer.candidates
    measured, predicted = answer.refused
    assert measured.reason == "no configuration is within the limits of bytes and time"
    assert predicted.models == "base unchanged"
    assert predicted.reason.endswith("ms, above 0.001 ms")
    assert "stays above 1 nats" in find_cheapest(only, Limits(1.0)).refused[1].reason
    shared = find_cheapest(only.assign(latency=np.nan), Limits(loss_of(12_000), latency=1.0)).refused
    assert "to itself" in shared[0].reason
    assert shared[1].reason == "no trend of its latency: not measured"


def test_times_and_bytes_are_read_with_their_units() -> None:
    assert number_with_unit("2ms", SECONDS) == 2e-3
    assert number_with_unit("0.5 s", SECONDS) == 0.5
    assert byte_count("40k") == byte_count("40kB") == 4e4
    assert byte_count("64KiB") == 65_536
    with pytest.raises(ValueError, match="may be bytes or"):
        byte_count("40B")
    with pytest.raises(ValueError, match="or one with a unit: ns"):
        number_with_unit("soon", SECONDS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both studies as a results folder, and a trial that was validated on other data."""
    results = tmp_path_factory.mktemp("results")
    other = quantised(4_000, 0, 8) | {"trial_id": "c" * 16, "source": "cpp", "study": "other"}
    for study in (base(), quant(), analysed("other", [other])):
        for row in study.rows.to_dict("records"):
            attempt = store.new_attempt(results / study.name, str(row["trial_id"]))
            plain = {name: None if value != value else value for name, value in row.items()}  # noqa: PLR0124 - NaN
            store.write_record(attempt, {name: value for name, value in plain.items() if name != "attempt"})
        store.write_json(results / study.name / "study.json", dict(study.definition))
    return results


STDLIB = ("--where", "source == 'stdlib'")


@pytest.mark.slow
def test_the_command_prints_both_kinds_with_their_chain_and_as_json(command, folder: Path) -> None:
    request = ("predict", folder, "--max-loss", "2.06", "--max-bytes", "40k", "--max-latency", "2ms", *STDLIB)
    code, out, _ = command(*request)
    assert code == 0
    assert "base a" in out
    assert "→ quant b" in out
    assert "no trial has this size" in out
    code, out, _ = command(*request, "--json")
    answer = json.loads(out)
    assert answer["limits"] == {"loss": 2.06, "bytes": 4e4, "latency": 2e-3}
    assert [candidate["basis"] for candidate in answer["candidates"]][-1] == PREDICTED
    assert code == 0


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--max-bytes", "40k"), "need --max-loss"),
        (("--max-loss", "-1"), "a positive number is needed"),
        (("--max-loss", "2", "--params", "1M"), "--params is for predictions of one size"),
        (("--max-loss", "2", "--where", "seed == 9"), "seed == 9"),
    ],
)
def test_what_cannot_be_asked_is_refused(command, folder: Path, options, reason: str) -> None:
    code, _, err = command("predict", folder, *options)
    assert code == 2
    assert reason in err


def test_trials_on_other_data_are_to_be_chosen_from(command, folder: Path) -> None:
    code, _, err = command("predict", folder, "--max-loss", "2")
    assert code == 2
    assert "source is cpp, stdlib" in err
