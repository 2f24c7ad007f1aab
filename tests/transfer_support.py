"""A fine-tuning study beside runs from scratch, with a planted law of the data that is transferred."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.store import Results

SIZES, AMOUNTS, LENGTHS = (4e3, 8e3, 16e3, 32e3), (2e4, 8e4, 3.2e5), (1e4, 4e4, 1.6e5, 6.4e5, 2.56e6, 1e7)


K, A, B = 40.0, 0.3, 0.6


SHARED = {
    "status": "ok", "invalid_reason": None, "family": "gpt", "batch_size": 16, "sequence_length": 64,
    "optimizer": "adamw", "precision": "float32", "data_sha256": "c++", "learning_rate": 0.01, "trial_id": "",
}  # fmt: skip


def from_scratch(size: float, tokens: float) -> float:
    """A loss that is linear in log D, so that interpolation is exact."""
    return 8.0 - 0.2 * np.log(size / 1e3) - 0.3 * np.log(tokens)


def tuned(size: float, tokens: float) -> float:
    return from_scratch(size, tokens + K * tokens**A * size**B)


def row(study: str, size: float, tokens: float, seed: int, loss: float, **other: Any) -> dict[str, Any]:
    rate = 0.01 * (size / 1e4) ** -0.3
    return SHARED | {"study": study, "params_non_embedding": size, "tokens_seen": tokens, "seed": seed,
                     "validation_loss_nats": loss, "learning_rate": rate, **other}  # fmt: skip


@cache  # for tests that only read it
def study(*, noise: float = 0.0, seeds: int = 3, sizes: Any = SIZES, amounts: Any = AMOUNTS, lengths: Any = LENGTHS,
          loss: Any = tuned, **changes: Any) -> StudyAnalysis:  # fmt: skip
    """A fine-tuning study beside runs from scratch, with normal noise of ``noise`` nats between seeds."""
    rng = np.random.default_rng(1)
    rows = [
        row("tuned", n, d, seed, loss(n, d) + noise * rng.standard_normal(), workload="finetune", method="full",
            parent_trial_id="p", trial_id=f"t{n}-{d}-{seed}")
        for n in sizes for d in amounts for seed in range(seeds)
    ] + [
        row("scratch", n, d, seed, from_scratch(n, d) + noise * rng.standard_normal(), workload="training",
            method=None, parent_trial_id=None, trial_id=f"s{n}-{d}-{seed}") | changes
        for n in sizes for d in lengths for seed in range(seeds)
    ]  # fmt: skip
    return analyse(Results(pd.DataFrame(rows), (), {"tuned": {}, "scratch": {}}), "tuned")
