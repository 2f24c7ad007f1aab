"""The studies for one GPU have the sizes, the work per step and the implementations that they promise."""

from __future__ import annotations

import pytest

from scalebench.families import gpt
from scalebench.measure.hardware import datasheet_peak
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.workloads import WORKLOADS

NAMED = {768: 124e6, 1024: 354e6, 1536: 757e6, 2048: 1.31e9}  # parameters by width


def planned(name: str) -> list[PlannedTrial]:
    return plan(load_study(name))


def params(entry: PlannedTrial) -> int:
    return gpt.count(gpt.Config(**entry.trial.model)).total


def test_gpu_speed_trains_124m_to_1_3b_on_32k_tokens_a_step_by_every_implementation() -> None:
    trials = planned("gpu-speed")
    assert {entry.trial.model["width"] for entry in trials} == set(NAMED)
    for entry in trials:
        assert params(entry) == pytest.approx(NAMED[entry.trial.model["width"]], rel=0.01)
        assert entry.trial.model["vocab_size"] == 50304
        spec = entry.trial.spec
        assert spec.batch_size * spec.sequence_length >= 32_768
        assert spec.precision == "bfloat16"
        assert spec.steps >= 12  # a median after the first steps
    smallest = {entry.trial.spec.implementation for entry in trials if entry.trial.model["width"] == 768}
    assert smallest == {"eager", "sdpa", "compile", "triton", "fused"}
    for width in NAMED:  # fused and its baseline with the same micro-batches
        rows = [entry.trial.spec for entry in trials if entry.trial.model["width"] == width]
        assert {spec.implementation for spec in rows} >= {"fused", "compile"}
        assert len({spec.accumulation for spec in rows if spec.implementation in ("fused", "compile")}) == 1
        assert "step" in {spec.graph for spec in rows if spec.implementation == "fused"}


def test_its_records_have_rate_utilisation_memory_by_category_and_first_step() -> None:
    columns = {column.name for column in WORKLOADS["training"].COLUMNS}
    memory = {f"memory_{kind}_bytes" for kind in ("parameters", "gradients", "optimizer", "activations", "other")}
    assert columns >= {"tokens_per_s", "mfu", "first_step_time_s", "peak_memory_allocated_bytes"} | memory


def test_gpu_law_goes_from_1m_to_124m_in_four_minutes_of_an_h100() -> None:
    trials = planned("gpu-law")
    sizes = sorted(entry.trial.model["depth"] * entry.trial.model["width"] for entry in trials)
    assert len(set(sizes)) == len(trials) >= 6  # enough for a law with three parameters and its hold-out
    counts = sorted(gpt.count(gpt.Config(**entry.trial.model)).non_embedding for entry in trials)
    assert counts[0] == pytest.approx(1e6, rel=0.05)
    assert counts[-1] == pytest.approx(1.24e8, rel=0.05)
    assert {entry.trial.data.source for entry in trials} == {"stdlib"}  # real text
    assert {entry.trial.spec.implementation for entry in trials} == {"fused"}
    peak = datasheet_peak("NVIDIA H100 80GB HBM3", "bfloat16").flops_per_s
    assert peak is not None
    assert sum(entry.flops for entry in trials) / (0.4 * peak) < 120  # the other half of it starts and compiles
