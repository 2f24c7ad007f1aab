"""A training trial, whole: build, train, validate, keep the weights, measure memory by category."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from scalebench.families import FAMILIES
from scalebench.measure import memory
from scalebench.measure.clock import StepClock, time_columns, warm_mask
from scalebench.measure.energy import EnergyMeter
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import TrainSpec
from scalebench.tasks import Task
from scalebench.workloads.base import Measured, count_columns
from scalebench.workloads.building import build_model, configuration, load_compiler, planned_data, usable_device
from scalebench.workloads.checkpointing import recompute_blocks
from scalebench.workloads.loop import Validation, check_finite, train, validate
from scalebench.workloads.running import Running, backward_of
from scalebench.workloads.weights import save_weights


class MeasuredTraining(Measured):
    """A training trial under measurement."""

    clock: StepClock | None = None
    losses: torch.Tensor | None = None

    @property
    def spec(self) -> TrainSpec:
        """How the model is trained."""
        assert self.trial.train is not None
        return self.trial.train

    def run(self) -> None:
        """Build, train, validate, then measure memory by category: the whole trial, in order."""
        device, spec = usable_device(self.trial), self.spec
        task = self.prepare_task()
        if spec.graph != "none":
            load_compiler()
        self.claim(device)
        model, optimizer = self.prepare(device)
        running = Running(model, optimizer, spec)
        self.clock, self.losses = StepClock(device), torch.full((spec.steps,), torch.nan, device=device)
        energy = EnergyMeter(device)
        memory.reset_peaks(device)
        self.columns["startup_time_s"] = self.age_s()
        energy.start()
        with running.attention():
            skipped = train(
                running.compiled, optimizer, task, spec, self.clock, self.losses, self.check, running.make_step
            )
        self.columns |= energy.columns()
        self.columns |= time_columns(self.clock) | memory.peak_columns(device)
        self.columns["skipped_steps"] = skipped if spec.precision == "float16" else None
        self.columns["train_loss_nats"] = float(self.losses[-max(1, spec.steps // 20) :].mean())
        with torch.compiler.set_stance("force_eager"):  # else it would be compiled anew for these shapes
            self.columns |= validation_columns(validate(running.module, task, spec, device))
        self.columns |= rate_columns(self.columns, spec, self.placement["peaks"][spec.precision])
        self.columns["checkpoint_bytes"] = memory.checkpoint_bytes(model, optimizer)
        if self.header["checkpoint"]:
            self.columns["weights_file_bytes"] = save_weights(model, self.attempt)
        self.columns["attention_backend"] = running.attention_backend(self.trial.model)
        self.columns |= self.split_columns(running, task)

    def prepare_task(self) -> Task:
        """Open the data and return the trial's task, with nothing on the device."""
        family, config = FAMILIES[self.trial.family], configuration(self.trial)
        task = family.task(config, planned_data(self.trial), self.trial.data, self.spec)
        self.columns |= size_columns(family.count(config, self.spec.sequence_length), task, self.spec)
        return task

    def prepare(self, device: torch.device) -> tuple[nn.Module, Optimizer]:
        """Return model and optimizer of the trial."""
        model = build_model(self.trial, device)
        if self.spec.checkpointing:
            recompute_blocks(model)
        return model, build_optimizer(model, self.spec)

    def split_columns(self, running: Running, task: Task) -> dict[str, int | str | None]:
        """Return memory by category, as the study wants it measured; a working copy's is of its tensors alone."""
        if running.copy is None and self.header.get("memory") != "allocator":
            with torch.compiler.set_stance("force_eager"):
                run = backward_of(running.module, task, self.spec, running.device)
                return memory.split_columns(running.module, running.optimizer, run)
        held = (0, 0) if running.copy is None else running.copy.held_bytes()
        peak = self.columns["peak_memory_allocated_bytes"]
        return memory.held_columns(running.model, running.optimizer, peak, *held)

    def check(self, done: int) -> None:
        """Look at the losses so far, and tell the engine that this trial lives."""
        self.beat(done, self.spec.steps)
        assert self.losses is not None
        check_finite(self.losses, done)

    def save_samples(self) -> None:
        """Write every sample of the finished steps to steps.parquet."""
        if self.clock is None or self.losses is None or not (times := self.clock.step_times_s()).size:
            return
        import pandas as pd

        frame = pd.DataFrame({"step": range(times.size)})
        frame["train_loss_nats"] = self.losses[: times.size].float().cpu().numpy()
        frame["step_time_s"], frame["data_time_s"] = times, self.clock.data_times_s()
        frame["warm"] = warm_mask(times.size)
        self.save_frame("steps.parquet", frame)


def validation_columns(found: Validation) -> dict[str, float | None]:
    """Return the held-out loss, its standard error and the metrics, null where there is no number."""
    columns = {"validation_loss_nats": found.loss_nats, "validation_loss_se_nats": found.standard_error_nats}
    columns |= {f"metric_{name}": value for name, value in found.metrics.items()}
    return {name: _number(value) for name, value in columns.items()}


def _number(value: float) -> float | None:
    return value if value == value else None  # noqa: PLR0124 - NaN is the one number unlike itself


def size_columns(counts: Any, task: Task, spec: TrainSpec) -> dict[str, Any]:
    """Return what the trial's size alone decides. A training step costs three forward passes.

    What activation checkpointing computes again is no part of it: the model's arithmetic, not the device's.
    """
    samples = spec.steps * spec.batch_size
    epochs = samples / task.samples_per_epoch if task.samples_per_epoch else None
    tokens = samples * task.tokens_per_sample if task.tokens_per_sample else None
    return count_columns(counts) | {
        "flops_per_step": 3 * counts.forward_flops * spec.batch_size,
        "floor_nats": task.floor_nats,
        "samples_seen": samples,
        "tokens_seen": tokens,
        "epochs_seen": epochs,
    }


def rate_columns(columns: dict[str, Any], spec: TrainSpec, peak: dict[str, Any]) -> dict[str, Any]:
    """Return throughput and efficiency at the median step time; mfu is null without a known peak."""
    step_time = columns.get("step_time_median_s")
    rates: dict[str, Any] = {"peak_flops_per_s": peak["flops_per_s"], "peak_source": peak["source"]}
    if not step_time:
        return rates
    achieved = columns["flops_per_step"] / step_time
    rates |= {"samples_per_s": spec.batch_size / step_time, "achieved_flops_per_s": achieved}
    if spec.sequence_length:
        rates["tokens_per_s"] = spec.batch_size * spec.sequence_length / step_time
    if peak["flops_per_s"]:
        rates["mfu"] = achieved / peak["flops_per_s"]
    return rates
