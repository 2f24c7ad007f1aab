"""Studies with several budgets of training: each is a series of sizes, though records have only its steps."""

from __future__ import annotations

import pandas as pd
import pytest

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import DATA_SEEN, TRAINING_FLOPS

SIZES, BUDGETS = (4000, 8000), (1e10, 3e10)
RECORDS = pd.DataFrame(
    {
        "trial_id": f"{size}-{budget}-{seed}", "study": "made-up", "status": "ok", "seed": seed, "family": "gpt",
        "params_non_embedding": size, "flops_per_step": 6 * size * 1024, "steps": round(budget / (6 * size * 1024)),
        "tokens_seen": 1024 * round(budget / (6 * size * 1024)), "validation_loss_nats": 3 - budget / 1e11 - size / 1e5,
    }
    for size in SIZES for budget in BUDGETS for seed in (0, 1)
)  # fmt: skip


def study(rows: pd.DataFrame, **axes: list[float]) -> StudyAnalysis:
    return StudyAnalysis("made-up", {"axes": {"params": [*SIZES], "seed": [0, 1], **axes}}, rows)


def test_each_budget_in_flops_is_a_series_of_its_sizes() -> None:
    series = study(RECORDS, flops=[*BUDGETS]).series
    assert [each.label for each in series] == ["flops 1e10", "flops 3e10"]
    assert [len(each.sizes) for each in series] == [2, 2]
    for each, budget in zip(series, BUDGETS, strict=True):
        assert each.trials[TRAINING_FLOPS].tolist() == pytest.approx(
            [budget] * 4, rel=0.5 / 200
        )  # half a step of about 200


def test_the_budget_per_parameter_counts_what_a_token_passes_through() -> None:
    experts = RECORDS.assign(params=RECORDS["params_non_embedding"] + 500)
    experts["params_active"] = experts["params_non_embedding"] / 4 + 500
    experts["tokens_seen"] = experts["params_non_embedding"] / 4 * experts["seed"].map({0: 20.0, 1: 5.0})
    series = study(experts, tokens_per_param=[5.0, 20.0]).series
    assert [each.label for each in series] == ["tokens_per_param 5", "tokens_per_param 20"]


def test_models_of_one_size_grow_in_data_and_are_one_series() -> None:
    (series,) = study(RECORDS[RECORDS["params_non_embedding"] == SIZES[0]], flops=[*BUDGETS]).series
    assert series.x.column == DATA_SEEN
    assert len(series.sizes) == 2
