"""Trials trained together have the losses, weights and optimizer states of training one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ensemble_support import PAIR, run_alone, run_together, small_study
from safetensors.torch import load_file

from scalebench import store
from scalebench.families import FAMILIES
from scalebench.optim.batched import BATCHED

LIMIT = 1e-5  # relative: the order of additions in float32, over a few steps
# Columns (or how they begin) that a trial trained with others leaves null, or that differ from those of one alone.
OF_THE_PROCESS = (
    "attempt", "attempt_dir", "command", "data_time_s", "energy_method", "ensemble_size", "ensemble_time_s",
    "first_step_time_s", "memory_", "others_cpu_share", "peak_", "startup_time_s", "state_", "step_time", "timing_",
    "wall_time_s", "weights_", "samples_per_s", "tokens_per_s", "achieved_flops_per_s", "mfu",
)  # fmt: skip
SIZES = {
    "gpt": ("params=1600", "train.sequence_length=12", "data.source=markov"),
    "mlp": ("params=300, depth=1",),
    "linear": ("params=100",),
    "cnn": ("params=2000",),
    "vit": ("params=3000",),
    "attention": ("params=3000", "train.sequence_length=6"),
    "bert": ("params=3000", "train.sequence_length=12"),
    "transformer": ("params=10000", "train.sequence_length=8"),
}


def losses(row: dict[str, Any]) -> np.ndarray:
    return store.read_steps(row["attempt_dir"])["train_loss_nats"].to_numpy()


def assert_same_results(alone: dict[str, dict[str, Any]], together: dict[str, dict[str, Any]]) -> None:
    assert set(alone) == set(together)
    for trial_id, row in alone.items():
        other = together[trial_id]
        assert (row["status"], other["status"]) == ("ok", "ok")
        np.testing.assert_allclose(losses(other), losses(row), rtol=LIMIT)
        for name in row:
            if name.startswith(OF_THE_PROCESS):
                continue
            if isinstance(row[name], float):
                assert other[name] == pytest.approx(row[name], rel=LIMIT), name
            else:
                assert other[name] == row[name], name


SLOWER = ("bert", "cnn", "transformer", "vit")


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOWER else []) for name in SIZES]
)
def test_the_curves_of_a_family_are_those_of_training_one_by_one(family: str, tmp_path: Path) -> None:
    size, *settings = SIZES[family]
    shorter = ("train.steps=4", "data.validation_samples=16")
    study = small_study(tmp_path, f'model={{family="{family}", {size}}}', *shorter, *settings, text=PAIR)
    assert_same_results(run_alone(study, tmp_path / "alone"), run_together(study, tmp_path / "together"))


def test_members_of_one_seed_and_of_one_rate_are_told_apart(tmp_path: Path) -> None:
    """Two seeds by two rates: a batch of all four, in which two share each."""
    study = small_study(tmp_path, "train.weight_decay=0.1", "train.steps=4", "data.validation_samples=16")
    alone, together = run_alone(study, tmp_path / "alone"), run_together(study, tmp_path / "together")
    assert len(alone) == 4
    assert_same_results(alone, together)


def test_the_families_that_say_so_are_those_tested() -> None:
    assert {name for name, family in FAMILIES.items() if "ensembles" in family.CAPABILITIES} == set(SIZES)


@pytest.mark.parametrize("optimizer", BATCHED)
def test_weights_and_state_of_an_optimizer_are_those_of_training_one_by_one(optimizer: str, tmp_path: Path) -> None:
    settings = (f"train.optimizer={optimizer}", "run.checkpoint=true")
    study = small_study(tmp_path, *settings, text=PAIR)
    alone, together = run_alone(study, tmp_path / "alone"), run_together(study, tmp_path / "together")
    assert_same_results(alone, together)
    for trial_id, row in alone.items():
        for name in ("weights.safetensors", "state.safetensors"):
            paths = [Path(each["attempt_dir"]) / name for each in (row, together[trial_id])]
            expected, actual = map(load_file, paths)
            assert set(actual) == set(expected)
            for key, tensor in expected.items():
                assert actual[key].dtype == tensor.dtype
                torch.testing.assert_close(actual[key], tensor, rtol=1e-4, atol=1e-7)


def test_members_say_that_their_times_and_memory_are_not_their_own(tmp_path: Path) -> None:
    rows = run_together(small_study(tmp_path, "train.weight_decay=0.1"), tmp_path / "together")
    assert len(rows) == 4
    for row in rows.values():
        assert row["ensemble_size"] == 4
        assert row["ensemble_time_s"] > 0
        assert row["timing_exclusive"] is False
        silent = ("wall_time_s", "startup_time_s", "step_time_median_s", "peak_rss_bytes", "memory_tracked_peak_bytes")
        assert [name for name in silent if row[name] is not None] == []
        steps = store.read_steps(row["attempt_dir"])
        assert steps["step_time_s"].isna().all()
        assert not steps["warm"].any()


def test_a_member_that_diverges_ends_alone_and_changes_no_bit_of_the_others(tmp_path: Path) -> None:
    settings = ("train.optimizer=sgd", "train.steps=21", "train.batch_size=64", "train.weight_decay=0.0")
    calm = run_together(small_study(tmp_path, *settings, "train.learning_rate=0.01"), tmp_path / "calm")
    pair = "train.learning_rate=[0.01, 1e30]"
    rows = run_together(small_study(tmp_path, *settings, pair), tmp_path / "wild")
    alone = run_alone(small_study(tmp_path, *settings, "train.learning_rate=1e30"), tmp_path / "alone")
    assert {trial_id for trial_id, row in rows.items() if row["status"] == "diverged"} == set(alone)
    for trial_id, row in alone.items():
        for name in ("status", "error_class", "error_message", "stop_step"):
            assert rows[trial_id][name] == row[name]
        assert len(losses(rows[trial_id])) == row["stop_step"] == 20
    assert (len(calm), len(rows)) == (2, 4)
    assert {rows[trial_id]["status"] for trial_id in calm} == {"ok"}
    # Of a batch of the same size, in which nothing diverges.
    both = small_study(tmp_path, *settings, "train.learning_rate=[0.01, 0.02]")
    for trial_id, row in run_together(both, tmp_path / "both").items():
        if trial_id in calm:
            np.testing.assert_array_equal(losses(rows[trial_id]), losses(row))
            assert rows[trial_id]["validation_loss_nats"] == row["validation_loss_nats"]
