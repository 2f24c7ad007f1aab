"""What the times of served requests say: percentiles, rates, goodput, and whether requests piled up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.workloads.load import Request, Step
from scalebench.workloads.serving_columns import SAMPLES_FOR
from scalebench.workloads.serving_spec import ServingSpec

Array = NDArray[np.float64]

BLOCKS, FEWEST_FOR_BLOCKS = 10, 100  # of consecutive requests, whose means are compared; fewest requests for it
GROWING = 27  # of Kendall's S, rising less falling pairs of ten blocks: reached by chance in 0.8 % of orders


def frame_of(requests: Sequence[Request], begin_s: float = 0.0) -> pd.DataFrame:
    """Return answered requests in the order of their arrival, one row each; times in seconds since ``begin_s``.

    ``in_flight`` counts the others that had arrived and were not yet answered when it arrived.
    """
    times = np.array([(r.arrived_s, r.first_token_s, r.answered_s) for r in requests]).reshape(-1, 3) - begin_s
    arrived, answered = times[:, 0], np.sort(times[:, 2])
    return pd.DataFrame({
        "arrived_s": arrived,
        "first_token_s": times[:, 1],
        "answered_s": times[:, 2],
        "prompt_tokens": [len(r.job.prompt) for r in requests],
        "new_tokens": [len(r.job.tokens) for r in requests],
        "in_flight": np.arange(len(arrived)) - np.searchsorted(answered, arrived, side="right"),
    })  # fmt: skip


def percentile(samples: Array, name: str) -> float | None:
    """Return the "median", "p95" or "p99" of samples (n,), without the NaN; None where there are too few."""
    known, (percent, fewest) = samples[~np.isnan(samples)], SAMPLES_FOR[name]
    return float(np.percentile(known, percent)) if len(known) >= fewest else None


def rate(ends: Array) -> float:
    """Return events per second of their times (n,): n - 1 of them between the first and the last; NaN for one."""
    return float((len(ends) - 1) / np.ptp(ends)) if len(ends) > 1 and np.ptp(ends) > 0 else math.nan


def steady(frame: pd.DataFrame, spec: ServingSpec) -> Array:
    """Return the times of the answers that the rate is measured by: ``requests`` of them after the warm-up."""
    ends = np.sort(frame["answered_s"].dropna().to_numpy())
    return ends[spec.warmups : spec.warmups + spec.requests]


def per_request(frame: pd.DataFrame) -> dict[str, Array]:
    """Return the times of each request by name (``TIMES``), each (n,); NaN where only one token was generated."""
    arrived, first, answered = (frame[name].to_numpy() for name in ("arrived_s", "first_token_s", "answered_s"))
    further = frame["new_tokens"].to_numpy() - 1
    with np.errstate(invalid="ignore", divide="ignore"):
        token = np.where(further > 0, (answered - first) / further, np.nan)
    return {"first_token_time": first - arrived, "token_time": token, "request_time": answered - arrived}


def time_columns(frame: pd.DataFrame, steps: Sequence[Step], spec: ServingSpec) -> dict[str, Any]:
    """Return the columns of all requests (``frame_of``) and the passes; the first ``warmups`` requests do not count."""
    measured = frame.iloc[spec.warmups : spec.warmups + spec.requests]
    times, ends = per_request(measured), steady(frame, spec)
    columns: dict[str, Any] = {
        f"{name}_{quantile}_s": percentile(samples, quantile)
        for name, samples in times.items()
        for quantile in SAMPLES_FOR
    }
    per_s = rate(ends)
    met = within(times, spec)
    columns |= {
        "answered_requests_per_s": per_s,
        "generated_tokens_per_s": per_s * float(measured["new_tokens"].mean()),
        "within_objectives": None if met is None else float(met.mean()),
        "goodput_requests_per_s": None if met is None else per_s * float(met.mean()),
        "in_flight_mean": float(measured["in_flight"].mean()),
        "saturated": piled_up(measured, spec),
    }
    passes = np.array([step for step in steps if ends[0] < step.ended_s <= ends[-1]]).reshape(-1, 4)
    if len(passes):
        columns |= {
            "batch_mean": float(passes[:, 2].mean()),
            "decode_step_time_median_s": float(np.median(passes[:, 1])),
        }
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in columns.items()}


def within(times: dict[str, Array], spec: ServingSpec) -> NDArray[np.bool_] | None:
    """Return which requests met the objectives, (n,); None where there is none. One token has no time per token."""
    limits = {"first_token_time": spec.first_token_within_s, "token_time": spec.token_within_s}
    if not any(limits.values()):
        return None
    return np.all([~(times[name] > limit) for name, limit in limits.items() if limit is not None], axis=0)


def piled_up(measured: pd.DataFrame, spec: ServingSpec) -> bool | None:
    """Return whether requests piled up: both the number in flight and the time to the first token grew on the way.

    Neighbouring requests wait for the same ones, blocks of them hardly. None for users, whose number is fixed, and for
    fewer than 100 requests.
    """
    if spec.concurrency is not None or len(measured) < FEWEST_FOR_BLOCKS:
        return None
    waits = measured["first_token_s"] - measured["arrived_s"]
    return all(grew(values.to_numpy()) for values in (measured["in_flight"], waits))


def grew(values: Array) -> bool:
    """Return whether values (n,) grew: Kendall's test of the means of ten blocks of neighbours, one-sided."""
    means = [block.mean() for block in np.array_split(values, BLOCKS)]
    rising = np.sign(np.subtract.outer(means, means))
    return bool(np.tril(rising, -1).sum() >= GROWING)
