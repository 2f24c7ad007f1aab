"""The model of a training step on a GPU: it adds up, and it explains the steps that were measured on an H200."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support import REPOSITORY, train_spec

from scalebench.cli.commands.speed import print_steps, step_tables
from scalebench.families import gpt
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.running.step_model import Ceilings, step_kernels, summary
from scalebench.workloads.training_spec import TrainSpec

STUDY = """
schema = 1
name = "s"
[model]
family = "gpt"
depth = 12
width = 768
vocab_size = 50304
[train]
sequence_length = 1024
batch_size = 32
implementation = "fused"
precision = "bfloat16"
steps = 1
"""
RATES = (700.0, 450.0, 2.8)
# reports/h200/README.md: the highest rates of products, attention and a copy. Then rates for 1.3B: of products in the
# profile of a step, of attention's backward pass with 2048 tokens of dimension 128 (compare.parquet); and the
# profile's milliseconds by kind of kernel.
H200 = Ceilings(products=803e12, attention=687e12, memory=4.24e12)
AT_1_3B = Ceilings(products=710e12, attention=393e12, memory=4.24e12)
PROFILE_MS = {"product": 364.0, "attention": 41.0, "GELU": 17.0, "norm": 17.0, "AdamW": 10.0}


def planned(folder: Path, *settings: str) -> list[PlannedTrial]:
    path = folder / "study.toml"
    path.write_text(STUDY)
    return plan(load_study(path, settings))


def measured_on_h200() -> pd.DataFrame:
    """The committed rows of the fused implementation, from 124M to 1.3B parameters."""
    frame = pd.read_parquet(REPOSITORY / "reports" / "h200" / "train.parquet")
    return frame[(frame["study"] == "gpu-speed") & (frame["implementation"] == "fused")]


def modelled(row: Any, ceilings: Ceilings) -> dict[str, Any]:
    """The model's table for the trial of a row."""
    config = gpt.Config(**{each.name: getattr(row, each.name) for each in fields(gpt.Config)})
    own = {name: getattr(row, name) for name in TrainSpec.model_fields if hasattr(row, name)}
    own["gradient_sums"] = own["gradient_sums"] is True  # rows of before it existed have none
    return summary(config, train_spec(**own), ceilings, 989e12)


def test_it_names_what_holds_a_size_back_and_adds_up(tmp_path: Path) -> None:
    (entry,) = planned(tmp_path)
    config, spec = gpt.Config(**entry.trial.model), entry.trial.spec
    arithmetic = sum(kernel.flops for kernel in step_kernels(config, spec))
    # Attention's backward pass computes the scores again: 3.5 times its forward pass where the count has 3.
    again = 32 * gpt.count(config, 1024).attention_flops // 2
    assert arithmetic == pytest.approx(entry.flops + again, rel=2e-3)
    step = summary(config, spec, Ceilings(), 989e12)
    assert sum(kernel["seconds"] for kernel in step["kernels"]) == pytest.approx(step["seconds"])
    assert summary(config, spec, Ceilings(attention=20e12), None)["holds_back"] == "attention backward"
    assert summary(config, spec, Ceilings(memory=0.1e12), None)["holds_back"] == "GELU"


def test_it_is_a_bound_of_every_measured_step_and_not_far_below() -> None:
    rows = measured_on_h200()
    assert sorted(rows["width"].unique()) == [768, 1024, 1536, 2048]
    for row in rows.itertuples():
        step = modelled(row, H200)
        assert step["seconds"] < row.step_time_median_s < 1.35 * step["seconds"], (row.width, row.graph)
        assert step["mfu"] == pytest.approx(row.mfu * row.step_time_median_s / step["seconds"], rel=2e-3)


def test_its_kernels_take_what_a_profile_at_1_3b_says_and_it_names_the_same_bottleneck() -> None:
    row = next(measured_on_h200().query("width == 2048 and graph == 'blocks'").itertuples())
    step = modelled(row, AT_1_3B)
    times = {
        kind: sum(1e3 * kernel["seconds"] for kernel in step["kernels"] if kind in kernel["kernel"])
        for kind in PROFILE_MS
    }
    times["attention"] -= next(
        1e3 * k["seconds"] for k in step["kernels"] if k["kernel"] == "attention's output product"
    )
    assert times["product"] == pytest.approx(PROFILE_MS["product"], rel=0.02)
    assert times["AdamW"] == pytest.approx(PROFILE_MS["AdamW"], rel=0.05)
    for kind in ("attention", "GELU", "norm"):  # bounds
        assert 0.65 * PROFILE_MS[kind] < times[kind] < PROFILE_MS[kind]
    assert step["holds_back"] == "attention backward"


def test_the_plan_prints_what_was_measured_beside_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trials = planned(
        tmp_path, 'train.graph=["blocks", "none"]', "train.seed=[0, 1]", "train.gradient_sums=[true, false]"
    )
    summed = [entry for entry in trials if entry.trial.spec.gradient_sums]
    exclusive, shared, invalid, failed = (
        {
            "trial_id": entry.trial_id, "status": "ok", "invalid_reason": None, "timing_exclusive": True,
            "step_time_median_s": 0.1, "graph": entry.trial.spec.graph, "device_name": "NVIDIA H200",
        }
        for entry in summed
    )  # fmt: skip
    shared["timing_exclusive"], invalid["invalid_reason"], failed["status"] = False, "MFU above 100 %", "oom"
    rows = {row["trial_id"]: row for row in (exclusive, shared, invalid, failed)}
    joined, separate = step_tables(trials, RATES, rows)
    assert separate["measured"] == []
    assert separate["seconds"] > joined["seconds"]  # its products write 16-bit gradients, which are then converted
    (measured,) = joined["measured"]
    assert measured["trial_id"] == exclusive["trial_id"]
    assert measured["ratio"] == pytest.approx(0.1 / joined["seconds"])
    print_steps([joined], RATES)
    printed = capsys.readouterr().out
    assert f"measured: 100.0 ms, ×{measured['ratio']:.2f} of that (NVIDIA H200, graph {exclusive['graph']})" in printed


def test_float32_is_not_modelled(tmp_path: Path) -> None:
    assert step_tables(planned(tmp_path, "train.precision=float32"), RATES, {}) == []
