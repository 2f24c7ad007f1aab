"""Whole trials of training: every option at once, an unsupported precision, the automatic learning rate."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalekernels import Unsupported

from scalebench.families import FAMILIES
from scalebench.optim.optimizers import OPTIMIZERS
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.workloads import training
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.training_run import trainable_device

STUDY = """
schema = 1
name = "options"
[model]
family = "gpt"
params = 3000
[train]
steps = 4
batch_size = 6
sequence_length = 16
"""


def planned_with_study(tmp_path: Path, *settings: str):
    (tmp_path / "options.toml").write_text(STUDY)
    study = load_study(tmp_path / "options.toml", settings)
    (trial,) = plan(study)
    return study, trial


def planned(tmp_path: Path, *settings: str):
    return planned_with_study(tmp_path, *settings)[1]


@pytest.mark.slow
def test_a_trial_with_every_option_at_once_records_them_all(tmp_path: Path) -> None:
    settings = ["train.optimizer=muon", "train.accumulation=4", "train.checkpointing=true", "train.precision=bfloat16"]
    study, trial = planned_with_study(tmp_path, *settings, "data.validation_samples=32", "run.checkpoint=true")
    peak = {"flops_per_s": 1e15, "source": "none"}
    placement = {"exclusive": True, "peaks": {"bfloat16": peak}}
    recorder = Recorder(tmp_path, trial_header(study, trial, "c"), placement)
    training.run(trial.trial, recorder)
    row = recorder.columns
    assert row["workload"] == "training"
    assert (row["optimizer"], row["accumulation"], row["checkpointing"]) == ("muon", 4, True)
    assert row["params_active"] == row["params"] == trial.counts.total
    assert row["weights_file_bytes"] == (tmp_path / "weights.safetensors").stat().st_size
    assert row["skipped_steps"] is None  # no loss scaler at bfloat16
    assert row["flops_per_step"] == trial.flops / 4
    assert row["memory_activations_bytes"] > 0
    assert 0 < row["data_time_s"] < row["step_time_median_s"]
    assert 0 < row["epochs_seen"] < 1


def test_float16_is_unsupported_on_a_cpu_with_the_reason(tmp_path: Path) -> None:
    trial = planned(tmp_path, "train.precision=float16").trial.model_copy(update={"device_kind": "cpu"})
    with pytest.raises(Unsupported, match="float16 training needs a GPU"):
        trainable_device(trial)


@pytest.mark.parametrize("name", ["sgd", "lion", "muon"])
def test_the_automatic_rate_is_the_familys_times_the_optimizers_factor(tmp_path: Path, name: str) -> None:
    trial = planned(tmp_path, f"train.optimizer={name}").trial
    rule = FAMILIES["gpt"].learning_rate(FAMILIES["gpt"].Config(**trial.model))
    assert trial.spec.learning_rate == rule * OPTIMIZERS[name].rate_factor
    assert OPTIMIZERS[name].rate_factor != 1
