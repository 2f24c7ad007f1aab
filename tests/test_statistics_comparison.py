"""Stopping rules, intervals of ratios and verdicts against simulations whose truth is known."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from scalebench.measure.modes import two_modes
from scalebench.measure.statistics import (
    Interval,
    StoppingRule,
    _log_medians,
    median_noise,
    ratio_of_medians,
    typical_time,
    verdict,
)

RNG = np.random.default_rng


def processes(rng: np.random.Generator, count: int, between: float, within: float, size: int = 40) -> list[np.ndarray]:
    """Samples of so many processes: a log-normal spread between them and one within each."""
    return [np.exp(rng.normal(0, between) + rng.normal(0, within, size)) for _ in range(count)]


# --- stopping --------------------------------------------------------------------------------------------------------


def stopped(samples: np.ndarray, rule: StoppingRule) -> tuple[str | None, int]:
    """Feed samples to the rule as the sampler does, and return its reason and the number of samples."""
    n = rule.least
    while n < samples.size:
        if reason := rule.reason(samples[:n], 0.0):
            return reason, n
        n = int(1.1 * n) + 1
    return rule.reason(samples, rule.timeout_s), samples.size


def test_independent_samples_stop_at_the_target_and_are_as_precise_as_it_says() -> None:
    rng, rule = RNG(0), StoppingRule(target_noise=0.01, timeout_s=1e9)
    ends = [stopped(np.exp(rng.normal(0, 0.03, 3000)), rule) for _ in range(60)]
    assert Counter(reason for reason, _ in ends)["target noise"] >= 50
    assert all(10 <= n < 400 for _, n in ends)


def test_steps_apart_stop_as_stable_long_before_the_samples_end() -> None:
    """Noise that grows as fast as samples come in is never overcome by more of them."""
    rng, rule = RNG(1), StoppingRule(target_noise=1e-4, timeout_s=1e9)
    ends = [stopped(np.exp(rng.normal(0, 1, 5000) * 2e-4 * np.arange(1, 5001)), rule) for _ in range(40)]
    assert Counter(reason for reason, _ in ends)["stable noise"] >= 36
    assert np.median([n for _, n in ends]) < 1000


def test_noise_that_falls_too_slowly_ends_at_the_timeout() -> None:
    noisy = np.exp(RNG(2).normal(0, 0.5, 80))
    assert StoppingRule(timeout_s=1.0).reason(noisy, 0.5) is None
    assert StoppingRule(timeout_s=1.0).reason(noisy, 1.0) == "timeout"
    assert StoppingRule().reason([1.0], 2.0) == "timeout"
    assert StoppingRule().reason([1.0] * 9, 0.0) is None
    assert StoppingRule().reason([1.0] * 10, 0.0) == "target noise"


def test_noise_is_half_the_width_of_the_medians_interval() -> None:
    samples = np.arange(1.0, 102.0)
    assert median_noise(samples) == pytest.approx(10 / 51, abs=0.01)  # order statistics 41 and 61 of 101
    assert median_noise(samples[:5]) == float("inf")


# --- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [5, 20, 41])
def test_drawn_medians_are_those_of_resamples(size: int) -> None:
    rng = RNG(3)
    samples = np.exp(rng.normal(0, 0.2, size))
    resampled = np.log(np.median(rng.choice(samples, (20_000, size)), axis=1))
    drawn = _log_medians(samples, (20_000, 1), rng)[:, 0]
    tolerance = 0.05 if size % 2 else 0.15  # for an even size the median of two is drawn as one of them
    assert drawn.std() == pytest.approx(resampled.std(), rel=tolerance)
    assert drawn.mean() == pytest.approx(resampled.mean(), abs=0.2 * resampled.std())


@pytest.mark.parametrize(
    ("count", "between", "within"),
    [
        pytest.param(3, 0.0, 0.05, marks=pytest.mark.slow),
        (3, 0.05, 0.02),
        pytest.param(5, 0.03, 0.05, marks=pytest.mark.slow),
    ],
)
def test_the_interval_of_a_ratio_covers_the_truth_as_often_as_it_says(
    count: int, between: float, within: float
) -> None:
    rng, covered = RNG(4), 0
    for _ in range(400):
        ours = [1.3 * x for x in processes(rng, count, between, within)]
        ratio = ratio_of_medians(ours, processes(rng, count, between, within), resamples=300)
        covered += ratio.low <= 1.3 <= ratio.high
    assert covered / 400 >= 0.95 - 0.022  # two standard errors of 400 simulations


def test_what_slows_a_whole_process_cancels_in_the_ratio() -> None:
    rng = RNG(5)
    slow = [1.0, 3.0, 0.2, 1.7, 2.5]
    ours = [1.1 * s * np.exp(rng.normal(0, 0.01, 60)) for s in slow]
    base = [s * np.exp(rng.normal(0, 0.01, 60)) for s in slow]
    ratio = ratio_of_medians(ours, base)
    assert ratio.value == pytest.approx(1.1, rel=0.01)
    assert ratio.high / ratio.low < 1.03
    assert typical_time(base).high / typical_time(base).low > 3


def test_samples_alone_would_call_a_difference_between_processes_certain() -> None:
    """Two processes' luck of 5 % is in the interval; pooled, thousands of samples would hide it."""
    ours = [np.full(1000, 1.05), np.full(1000, 1.00), np.full(1000, 1.0)]
    base = [np.full(1000, 1.00), np.full(1000, 1.00), np.full(1000, 1.0)]
    ratio = ratio_of_medians(ours, base)
    assert ratio.low < 1 < ratio.high


def test_one_process_with_few_samples_has_no_interval() -> None:
    few, many = typical_time([[1.0] * 5]), typical_time([[1.0, 1.1, 1.2, 1.0, 1.1, 1.2]])
    assert (few.value, few.processes) == (1.0, 1)
    assert np.isnan([few.low, few.high]).all()
    assert many.low < many.value < many.high
    assert np.isnan(ratio_of_medians([[1.0]], [[2.0]]).low)
    assert ratio_of_medians([[1.0], [1.1]], [[2.0], [2.0]]).low < 0.525  # two processes tell of each other


def test_the_interval_of_one_process_stays_within_its_samples() -> None:
    samples = [np.exp(RNG(8).normal(0, 0.01, 30))]
    typical = typical_time(samples)
    assert np.min(samples) <= typical.low <= typical.value <= typical.high <= np.max(samples)
    assert typical.high > typical.low


@pytest.mark.parametrize("processes", [2, 3])
def test_the_interval_of_few_processes_holds_the_time_of_the_next(processes: int) -> None:
    """Processes differ by 5 %, samples within one by 1 %: their range holds the truth in 78 to 89 %."""
    rng, held = RNG(3), 0
    for study in range(100):
        samples = [np.exp(rng.normal(0, 0.05) + rng.normal(0, 0.01, 30)) for _ in range(processes)]
        typical = typical_time(samples, resamples=200, seed=study)
        held += typical.low <= 1 <= typical.high
    assert held >= 0.9 * 100  # the samples' range: 78 and 89


def test_processes_go_in_pairs() -> None:
    with pytest.raises(ValueError, match="in pairs"):
        ratio_of_medians([[1.0]], [])
    with pytest.raises(ValueError, match="in pairs"):
        ratio_of_medians([], [])


# --- two modes -------------------------------------------------------------------------------------------------------

ONE_MODE = {
    "log-normal, 2 %": lambda rng, n: np.exp(rng.normal(0, 0.02, n)),
    "log-normal, factor e": lambda rng, n: np.exp(rng.normal(0, 1, n)),
    "short tail": lambda rng, n: 1 + 0.1 * rng.exponential(size=n),
    "long tail": lambda rng, n: 1 + 10 * rng.exponential(size=n),
    "drift of 65 %": lambda rng, n: np.exp(np.linspace(0, 0.5, n) + rng.normal(0, 0.03, n)),
    "steady drift": lambda rng, n: np.exp(np.linspace(0, 2, n) + rng.normal(0, 0.01, n)),
    "one outlier in ten": lambda rng, n: np.exp(rng.normal(0, 0.02, n)) * np.where(np.arange(n) % 10 == 3, 3, 1),
}


@pytest.mark.parametrize("kind", ONE_MODE)
@pytest.mark.parametrize("size", [10, 15, 60])
def test_one_mode_with_a_tail_or_a_drift_is_not_split(kind: str, size: int) -> None:
    rng = RNG(9)
    split = sum(two_modes(ONE_MODE[kind](rng, size)) is not None for _ in range(300))
    assert split <= 3  # 1 %


@pytest.mark.parametrize(("ratio", "share", "noise"), [(1.3, 0.3, 0.02), (2.0, 0.5, 0.03), (20.0, 0.8, 0.1)])
@pytest.mark.parametrize("size", [20, 300])
def test_two_modes_are_returned_with_their_medians_and_share(
    ratio: float, share: float, noise: float, size: int
) -> None:
    rng, hits = RNG(10), 0
    for _ in range(40):
        fast = np.arange(size) < share * size
        modes = two_modes(rng.permutation(np.exp(rng.normal(0, noise / 2, size)) * np.where(fast, 1.0, ratio)))
        hits += modes is not None
        if modes is not None:
            assert modes.low == pytest.approx(1.0, rel=noise)
            assert modes.high == pytest.approx(ratio, rel=noise)
            assert modes.low_share == pytest.approx(fast.mean())
    assert hits >= 38


def test_levels_closer_than_a_tenth_and_fewer_than_ten_samples_are_one_mode() -> None:
    assert two_modes([1.0, 1.09] * 20) is None
    assert two_modes([1.0, 1.11] * 20) is not None
    assert two_modes([1.0, 2.0] * 4) is None
    assert two_modes([1.0] * 18 + [2.0, 2.0]) is None  # 10 % of the samples
    assert two_modes([1.0] * 50) is None


# --- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (0.5, 0.97, "FASTER"), (1.03, 1.5, "SLOWER"), (0.99, 1.015, "SAME"), (0.97, 1.01, "INCONCLUSIVE"),
        (0.9, 0.985, "INCONCLUSIVE"), (1.0, 1.03, "INCONCLUSIVE"), (0.8, 1.2, "INCONCLUSIVE"),
    ],
)  # fmt: skip
def test_the_whole_interval_decides(low: float, high: float, word: str) -> None:
    assert verdict(Interval((low + high) / 2, low, high, 5), margin=0.02).word == word


def test_one_process_is_inconclusive_and_two_machines_get_no_verdict() -> None:
    sure = Interval(0.5, 0.49, 0.51, 1)
    assert verdict(sure).word == "INCONCLUSIVE"
    assert "one process" in verdict(sure).reason
    apart = verdict(Interval(0.5, 0.49, 0.51, 5), machines=("a", "b"))
    assert apart.word is None
    assert "different machines" in apart.reason
    assert verdict(Interval(0.5, 0.49, 0.51, 5), machines=("a", "a")).word == "FASTER"


@pytest.mark.parametrize(("between", "within"), [(0.0, 0.02), (0.02, 0.02), (0.1, 0.02)])
def test_identical_providers_are_rarely_called_faster(between: float, within: float) -> None:
    rng = RNG(6)
    words = Counter(
        verdict(
            ratio_of_medians(processes(rng, 3, between, within), processes(rng, 3, between, within), resamples=300)
        ).word
        for _ in range(300)
    )
    assert words["FASTER"] <= 0.05 * 300
    assert words["SLOWER"] <= 0.05 * 300


@pytest.mark.parametrize(("truth", "word"), [(0.9, "FASTER"), (1.1, "SLOWER"), (1.0, "SAME")])
def test_known_ratios_are_found(truth: float, word: str) -> None:
    rng = RNG(7)
    words = Counter(
        verdict(
            ratio_of_medians(
                [truth * x for x in processes(rng, 5, 0.003, 0.02, 100)],
                processes(rng, 5, 0.003, 0.02, 100),
                resamples=300,
            )
        ).word
        for _ in range(100)
    )
    assert words[word] >= 90
