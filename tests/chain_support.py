"""Synthetic trained models and what was made of them, with losses, bytes and times by closed forms."""

from __future__ import annotations

import numpy as np
import pandas as pd
from report_support import trial

from scalebench.analysis.study import StudyAnalysis

SIZES, SEEDS = (4_000, 8_000, 16_000, 32_000), (0, 1, 2)
BITS = (8, 4)


def loss_of(size: float, seed: int = 1) -> float:
    """The loss of a model that was only trained; seeds lie 0.01 nats apart."""
    return 1.5 + 12.0 * size**-0.35 + 0.01 * (seed - 1)


def bytes_of(size: float) -> int:
    return int(4 * (size + 3000))


def latency_of(size: float) -> float:
    return 1e-4 + 1e-8 * size


def flops_of(size: float) -> float:
    return 6.0 * size * 512_000


def trained(size: int, seed: int) -> dict[str, object]:
    """A model of the study "base"."""
    row = trial(size, seed, np.random.default_rng(0))
    return row | {
        "study": "base", "trial_id": f"a{size:07x}{seed:08x}", "source": "stdlib", "data_sha256": "5d",
        "validation_fraction": 0.1, "sequence_length": 64, "steps": 500, "flops_per_step": flops_of(size) / 500,
        "validation_loss_nats": loss_of(size, seed), "weight_bytes": bytes_of(size), "parent_trial_id": None,
    }  # fmt: skip


def quantised(size: int, seed: int, bits: int) -> dict[str, object]:
    """A model of the study "quant": bits / 32 of the bytes, a fifth more time, 0.4 / bits nats more loss."""
    parent = trained(size, seed)
    return parent | {
        "study": "quant", "trial_id": f"b{bits:x}{size:06x}{seed:08x}", "workload": "quantize", "bits": bits,
        "parent_trial_id": parent["trial_id"], "parent_flops": flops_of(size), "flops_per_step": None, "steps": None,
        "stop_step": None, "loss_before_nats": loss_of(size, seed),
        "validation_loss_nats": loss_of(size, seed) + 0.4 / bits,
        "weight_bytes": bytes_of(size) * bits // 32, "weight_bytes_before": bytes_of(size),
        "latency_s": 1.2 * latency_of(size), "latency_before_s": latency_of(size),
    }  # fmt: skip


def analysed(name: str, rows: list[dict[str, object]], **axes: list[object]) -> StudyAnalysis:
    """A study of these rows, all planned."""
    frame = pd.DataFrame(rows)
    planned = [{"trial_id": trial_id} for trial_id in frame["trial_id"]]
    return StudyAnalysis(name, {"name": name, "axes": axes, "planned": planned}, frame)


def base() -> StudyAnalysis:
    return analysed("base", [trained(size, seed) for size in SIZES for seed in SEEDS], seed=[*SEEDS])


def quant() -> StudyAnalysis:
    rows = [quantised(size, seed, bits) for size in SIZES for seed in SEEDS for bits in BITS]
    return analysed("quant", rows, bits=[*BITS], seed=[*SEEDS])
