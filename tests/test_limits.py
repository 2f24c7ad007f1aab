"""A trial's limit of memory is a real one, and running out of it can mean smaller micro-batches."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from drivers import Drivers
from support import PLACEMENT, train_spec

from scalebench import store
from scalebench.running.limits import allocation_failed, with_smaller_micro_batches
from scalebench.running.planning import load_study, plan, trial_header
from scalebench.running.worker import error_columns, run_trial
from scalebench.study import Trial
from scalebench.workloads import WORKLOADS


@pytest.mark.slow
def test_a_trial_beyond_its_limit_is_oom_with_its_peak_and_one_below_it_is_ok(
    small_study: Path, tmp_path: Path, drivers: Drivers
) -> None:
    def row(params: str, limit: str) -> dict[str, Any]:
        words = (f"model.params={params}", f"run.memory_limit_bytes={limit}", "train.seed=0", "train.steps=2")
        command = ["run", small_study, "--results", limit, *(word for pair in words for word in ("--set", pair))]
        drivers.start(tmp_path, command).wait(120)
        return store.load_results(tmp_path / limit).iloc[0].to_dict()

    beyond = row("3e6", "2e7")  # weights, gradients and AdamW take 5e7
    assert beyond["status"] == "oom", beyond["error_message"]
    assert beyond["peak_rss_bytes"] > 1e8
    below = row("200", "2e9")
    assert below["status"] == "ok", below["error_message"]


def test_onednn_without_memory_is_out_of_memory_only_below_a_limit(monkeypatch) -> None:
    error = RuntimeError("could not create a primitive")
    assert not allocation_failed(error)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, resource.RLIM_INFINITY))
    assert allocation_failed(error)
    assert not allocation_failed(RuntimeError("shapes do not match"))


def test_an_exception_without_words_is_put_into_words(monkeypatch) -> None:
    assert error_columns(MemoryError())["error_message"] == "an allocation failed"
    monkeypatch.setattr(resource, "getrlimit", lambda _: (10**9, resource.RLIM_INFINITY))
    assert error_columns(MemoryError()) == {
        "status": "oom",
        "error_class": "MemoryError",
        "error_message": "an allocation failed at the limit, run.memory_limit_bytes",
    }
    assert error_columns(MemoryError("of 5 GB"))["error_message"] == "of 5 GB"


def test_micro_batches_are_halved_down_to_one_row() -> None:
    trial: Trial | None = Trial.model_construct(spec=train_spec(batch_size=8, accumulation=1))
    seen = []
    while trial is not None:
        seen.append(trial.spec.accumulation)
        trial = with_smaller_micro_batches(trial)
    assert seen == [1, 2, 4, 8]


@pytest.mark.parametrize(("fits", "status", "accumulation"), [(8, "ok", 4), (2, "oom", 32), (32, "ok", 1)])
def test_out_of_memory_is_tried_again_in_smaller_micro_batches(
    small_study: Path, tmp_path: Path, monkeypatch, fits: int, status: str, accumulation: int
) -> None:
    """A device on which at most ``fits`` rows fit, of a batch of 32; with 2, nothing larger than one row would do."""
    study = load_study(small_study, ["model.params=200", "train.seed=0", "train.steps=2"])
    (planned,) = plan(study)
    training = WORKLOADS["training"]
    run_training = training.run

    def run_on_a_small_device(trial: Any, recorder: Any) -> None:
        if trial.spec.batch_size // trial.spec.accumulation > fits or fits == 2:
            raise torch.OutOfMemoryError("out of memory")
        run_training(trial, recorder)

    monkeypatch.setattr(training, "run", run_on_a_small_device)
    attempt = store.new_attempt(tmp_path / "r" / study.name, planned.trial_id)
    header = trial_header(study, planned, "a test") | {"on_oom": "accumulate", "resources": {"processes": 1}}
    store.write_header(attempt, header)
    assert run_trial(attempt, header, PLACEMENT) == status
    row = store.read_record(attempt)
    assert (row["accumulation"], row["trial_id"]) == (accumulation, planned.trial_id)
    store.write_header(attempt, header)
    again = "oom" if fits < 32 else "ok"
    assert run_trial(attempt, header | {"on_oom": "end"}, PLACEMENT) == again
