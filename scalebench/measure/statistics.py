"""Robust summaries of samples. Every sample is kept; outliers are counted, never dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

# A sample this many median absolute deviations from the median is flagged: the modified z-score of hyperfine
# (0.6745 |x - median| / MAD > 10) written for the raw MAD.
OUTLIER_MADS = 14.8


@dataclass(frozen=True)
class Summary:
    """Median and quantiles of samples, in their unit; ``low`` and ``high`` bound the median at 95 %."""

    count: int
    median: float
    p20: float
    p80: float
    low: float
    high: float
    outliers: int


def outlier_mask(samples: ArrayLike) -> NDArray[np.bool_]:
    """Flag samples more than 14.8 median absolute deviations from the median; same shape."""
    x = np.asarray(samples, dtype=np.float64)
    deviation = np.abs(x - np.median(x))
    return np.asarray(deviation > OUTLIER_MADS * np.median(deviation)) & (deviation > 0)


def median_interval(samples: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Bound the median by order statistics: the exact, distribution-free binomial interval.

    With too few samples for ``level`` the interval is the whole range. Source: David & Nagaraja, Order Statistics, 7.1.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64))
    rank = _fair_quantile((1 - level) / 2, x.size)
    return float(x[max(rank - 1, 0)]), float(x[min(x.size - rank, x.size - 1)])


def _fair_quantile(probability: float, tosses: int) -> int:
    """Return the least k with P(at most k heads in ``tosses`` tosses of a fair coin) >= ``probability``.

    This is ``scipy.stats.binom.ppf`` without the second that importing ``scipy.stats`` takes.
    """
    from scipy.special import bdtr, bdtrik

    near = int(np.ceil(bdtrik(probability, tosses, 0.5)))
    return next(k for k in range(max(near - 1, 0), tosses + 1) if bdtr(k, tosses, 0.5) >= probability)


def summarize(samples: ArrayLike) -> Summary:
    """Summarise samples of shape (n,), n >= 1. Raises ``ValueError`` when there is none."""
    x = np.asarray(samples, dtype=np.float64)
    if x.size == 0:
        raise ValueError("no samples to summarise")
    p20, median, p80 = np.quantile(x, [0.2, 0.5, 0.8])
    low, high = median_interval(x)
    return Summary(x.size, float(median), float(p20), float(p80), low, high, int(outlier_mask(x).sum()))


def clustered_mean(values: ArrayLike, clusters: ArrayLike) -> tuple[float, float]:
    """Return the mean of ``values`` (n,) and its standard error when values of one cluster (n,) are correlated.

    The cluster-robust variance of a mean, G/(G-1) * sum_g (sum_{i in g} (x_i - mean))^2 / n^2
    (Cameron & Miller 2015, eq. 11 with an intercept only). The error is NaN for a single cluster.
    """
    x = np.asarray(values, dtype=np.float64)
    _, group = np.unique(np.asarray(clusters), return_inverse=True)
    mean = float(x.mean())
    sums = np.bincount(group, weights=x - mean)
    if sums.size < 2:
        return mean, float("nan")
    return mean, float(np.sqrt(sums.size / (sums.size - 1) * np.square(sums).sum()) / x.size)


def mean_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean of independent values (n,) and its interval by Student's t; the ends are NaN for one value."""
    from scipy.special import stdtrit

    x = np.asarray(values, dtype=np.float64)
    if x.size < 2:
        return float(x.mean()), float("nan"), float("nan")
    reach = float(stdtrit(x.size - 1, (1 + level) / 2)) * float(x.std(ddof=1)) / float(np.sqrt(x.size))
    return float(x.mean()), float(x.mean()) - reach, float(x.mean()) + reach


def combined_standard_error(losses: Sequence[float], errors: Sequence[float]) -> float:
    """Standard error of a mean over seeds: seed variance and validation error together, same unit as the losses.

    ``losses`` (s,) are one configuration's validation losses over seeds, ``errors`` (s,) their standard errors over the
    validation sample. The seeds share that sample, so its error does not average out over them, while the spread
    between seeds does. With one seed the spread is unknown and the result is NaN.
    """
    x = np.asarray(losses, dtype=np.float64)
    if x.size < 2:
        return float("nan")
    return float(np.sqrt(x.var(ddof=1) / x.size + np.mean(np.square(errors))))


def new_run_interval(losses: ArrayLike, errors: ArrayLike, level: float = 0.95) -> tuple[float, float, float]:
    """Return the mean loss of seeds (n,) and the interval of the loss of another one.

    ``errors`` (n,) are the standard errors over the validation sample, which all seeds share. The spread between seeds
    is Student's with n - 1 degrees of freedom; with one seed it is unknown, and the interval that of the sample alone.
    """
    from scipy.special import ndtri, stdtrit

    x, sample = np.asarray(losses, dtype=np.float64), float(np.mean(np.square(errors)))
    mean, tail = float(x.mean()), (1 + level) / 2
    if x.size > 1:
        reach = float(stdtrit(x.size - 1, tail)) * float(np.sqrt(x.var(ddof=1) * (1 + 1 / x.size) + sample))
    else:
        reach = float(ndtri(tail)) * float(np.sqrt(sample)) if sample > 0 else float("nan")
    return mean, mean - reach, mean + reach


# --- when to stop measuring ------------------------------------------------------------------------------------------

TARGET_NOISE, STABLE_NOISE, TIMEOUT = "target noise", "stable noise", "timeout"
FEWEST = 6  # below six samples no order statistics bound a median at 95 %


def median_noise(samples: ArrayLike) -> float:
    """Half the width of the 95 % interval of the median over the median: dimensionless, infinite below six samples."""
    x = np.asarray(samples, dtype=np.float64)
    if x.size < FEWEST:
        return float("inf")
    low, high = median_interval(x)
    return (high - low) / 2 / float(np.median(x))


@dataclass(frozen=True)
class StoppingRule:
    """When to stop sampling: at ``target_noise``, when the noise no longer falls, or at the timeout.

    Noise is that of the median (``median_noise``). Below ``least`` samples only the timeout stops sampling.
    """

    target_noise: float = 0.005
    least: int = 10
    timeout_s: float = 1.0

    def reason(self, samples: ArrayLike, elapsed_s: float) -> str | None:
        """Return why to stop: "target noise", "stable noise" or "timeout", or None to continue."""
        x = np.asarray(samples, dtype=np.float64)
        if x.size >= self.least and median_noise(x) <= self.target_noise:
            return TARGET_NOISE
        if x.size >= self.least and noise_is_stable(x):
            return STABLE_NOISE
        return TIMEOUT if elapsed_s >= self.timeout_s else None


def noise_is_stable(samples: ArrayLike) -> bool:
    """Whether doubling the samples (n,), at least 100, has not reduced the noise of the median at all.

    Independent samples reduce it by 1 - 1/sqrt(2), or 29 %; under drift or slow oscillation, more samples do not help.
    The best of several prefixes is compared, since an estimate of noise is itself noisy: in simulation, one run in ten
    of independent samples stops here although it would have reached a target of 0.5 %.
    """
    x = np.asarray(samples, dtype=np.float64)
    if x.size < 100:
        return False
    prefixes = x.size * np.arange(1.0, 0.74, -0.05)
    late, early = (min(median_noise(x[: int(n / part)]) for n in prefixes) for part in (1, 2))
    return late > early


# --- comparing --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """An estimate, its 95 % interval, and the number of processes it was replicated over."""

    value: float
    low: float
    high: float
    processes: int


def _log_medians(samples: ArrayLike, shape: tuple[int, int], rng: np.random.Generator) -> NDArray[np.float64]:
    """Draw logarithms of medians of resamples, without the resampling.

    The median of n uniform numbers has the distribution Beta((n+1)/2, (n+1)/2) (exact for odd n), and a resample's
    value is the sorted sample at the position given by a uniform number.
    """
    x = np.sort(np.asarray(samples, dtype=np.float64))
    half = (x.size + 1) / 2
    return np.log(x[np.minimum((rng.beta(half, half, shape) * x.size).astype(int), x.size - 1)])


def _interval(
    logs: NDArray[np.float64], draws: NDArray[np.float64], rng: np.random.Generator, level: float
) -> Interval:
    """Bound the mean of ``logs`` (processes,) from bootstrap ``draws`` (processes, resamples, processes) of each.

    Two levels: processes are drawn with replacement, and for each of them a resample of its samples. With the usual
    three to five processes, percentile intervals are far too narrow. Instead the bootstrap's standard error, corrected
    for its bias sqrt((P-1)/P), is multiplied by Student's t with P - 1 degrees of freedom (Hesterberg 2015, section 5).
    """
    from scipy.special import ndtri, stdtrit

    processes, resamples, _ = draws.shape
    chosen = rng.integers(processes, size=(resamples, processes))
    rows, columns = np.indices(chosen.shape)
    error = float(draws[chosen, rows, columns].mean(axis=1).std(ddof=1))
    tail = (1 + level) / 2
    reach = float(ndtri(tail)) * error
    if processes > 1:
        reach = float(stdtrit(processes - 1, tail)) * error * float(np.sqrt(processes / (processes - 1)))
    center = float(logs.mean())
    value, low, high = (float(np.exp(center + shift)) for shift in (0.0, -reach, reach))
    return Interval(value, low, high, processes)


def typical_time(samples: Sequence[ArrayLike], level: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the geometric mean over processes of the median of each one's positive samples, with its interval.

    ``samples`` holds one array per process. With one process the interval is that of its samples alone, within their
    range, and NaN below six of them. With several it may leave their range, which is narrow: that of three medians
    holds the true one in 75 % of cases.
    """
    rng = np.random.default_rng(seed)
    logs = np.log([np.median(np.asarray(x)) for x in samples])
    draws = np.stack([_log_medians(x, (resamples, len(samples)), rng) for x in samples])
    interval = _known(_interval(logs, draws, rng, level), samples)
    ends = np.array([interval.low, interval.high])
    low, high = (ends if len(samples) > 1 else ends.clip(np.min(samples[0]), np.max(samples[0]))).tolist()
    return Interval(interval.value, low, high, len(samples))


def ratio_of_medians(
    ours: Sequence[ArrayLike],
    baseline: Sequence[ArrayLike],
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Return the ratio of times to the baseline's, with an interval that includes the variance between processes.

    ``ours`` and ``baseline`` hold one array of positive samples per process, the same processes in the same order. The
    ratio is the geometric mean over processes of the ratio of medians within each, so that anything that slows down a
    whole process cancels. With one process and fewer than six samples the interval is NaN. Raises ``ValueError`` if
    there are no processes, or different numbers of them.
    """
    if len(ours) != len(baseline) or not ours:
        raise ValueError(f"samples of {len(ours)} processes against {len(baseline)}: they go in pairs, at least one")
    rng, shape = np.random.default_rng(seed), (resamples, len(ours))
    logs = np.log([np.median(np.asarray(x)) / np.median(np.asarray(y)) for x, y in zip(ours, baseline, strict=True)])
    pairs = zip(ours, baseline, strict=True)
    draws = np.stack([_log_medians(x, shape, rng) - _log_medians(y, shape, rng) for x, y in pairs])
    return _known(_interval(logs, draws, rng, level), [*ours, *baseline])


def _known(interval: Interval, samples: Sequence[ArrayLike]) -> Interval:
    """Replace the interval of one process with too few samples by NaN; it would have no width."""
    if interval.processes > 1 or min(np.asarray(x).size for x in samples) >= FEWEST:
        return interval
    return Interval(interval.value, float("nan"), float("nan"), interval.processes)


FASTER, SLOWER, SAME, INCONCLUSIVE = "FASTER", "SLOWER", "SAME", "INCONCLUSIVE"
MARGIN = 0.02


@dataclass(frozen=True)
class Verdict:
    """FASTER, SLOWER, SAME or INCONCLUSIVE, or None if a comparison is not allowed; ``reason`` is why."""

    word: str | None
    reason: str


def verdict(ratio: Interval, margin: float = MARGIN, machines: tuple[str, str] | None = None) -> Verdict:
    """Compare the interval of a ratio of times with an equivalence margin.

    FASTER if all of it is below 1/(1 + margin), SLOWER if above 1 + margin, SAME if between the two (two one-sided
    tests), otherwise INCONCLUSIVE. INCONCLUSIVE also for a single process, which does not show the variance
    between processes. No verdict if the ``machines`` differ.
    """
    if machines and machines[0] != machines[1]:
        return Verdict(None, f"measured on different machines ({machines[0]} and {machines[1]})")
    if ratio.processes < 2:
        return Verdict(INCONCLUSIVE, "only one process: the variance between processes is unknown")
    least, most = 1 / (1 + margin), 1 + margin
    interval = f"the 95 % interval {ratio.low:.3f} to {ratio.high:.3f}"
    if ratio.high < least:
        return Verdict(FASTER, f"{interval} is below {least:.3f}")
    if ratio.low > most:
        return Verdict(SLOWER, f"{interval} is above {most:.3f}")
    if least <= ratio.low and ratio.high <= most:
        return Verdict(SAME, f"{interval} is within {least:.3f} to {most:.3f}")
    edges = " and ".join(f"{edge:.3f}" for edge in (least, most) if ratio.low <= edge <= ratio.high)
    return Verdict(INCONCLUSIVE, f"{interval} includes {edges}: run more processes, or longer")
