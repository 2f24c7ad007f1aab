"""One training trial: build, train, validate, keep the weights, measure memory by category."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from scalekernels import Unsupported
from torch import nn
from torch.optim import Optimizer

from scalebench.families import FAMILIES
from scalebench.measure import memory
from scalebench.measure.clock import StepClock, time_columns
from scalebench.measure.energy import EnergyMeter
from scalebench.optim.fused import FUSED
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import Trial
from scalebench.tasks import Task
from scalebench.workloads import parallel
from scalebench.workloads.base import KERNELS
from scalebench.workloads.building import (
    build_model,
    configuration,
    load_compiler,
    planned_data,
    usable_device,
)
from scalebench.workloads.checkpointing import recompute_blocks
from scalebench.workloads.checkpoints import add_checkpoint, checkpoint_folder
from scalebench.workloads.guessing import guess_nats
from scalebench.workloads.loop import (
    Step,
    Validation,
    check_finite,
    check_risen,
    loss_scaler,
    train,
    validate,
    validation_columns,
)
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.resuming import Snapshot, Standing, find_snapshot, write_snapshot
from scalebench.workloads.running import Running, backward_of
from scalebench.workloads.state import TrainState, read_state, rng_state, save_state
from scalebench.workloads.training_columns import (
    RESUMED_ENERGY,
    final_loss,
    rate_columns,
    samples_frame,
    size_columns,
)
from scalebench.workloads.training_spec import TrainSpec
from scalebench.workloads.weights import load_weights, save_weights


def run(trial: Trial, recorder: Recorder) -> None:
    """Train and validate the trial's model; the samples of a trial that fails are kept, too."""
    training = TrainingRun(trial, recorder)
    try:
        training.run()
    finally:
        training.save_samples()


class TrainingRun:
    """A training trial under way.

    ``start`` is the state of the parent's run where that is continued, ``resumed`` that of an attempt at this trial
    that was interrupted.
    """

    def __init__(self, trial: Trial, recorder: Recorder) -> None:
        self.trial, self.recorder, self.columns = trial, recorder, recorder.columns
        self.spec: TrainSpec = trial.spec
        self.start = TrainState()
        self.resumed = Snapshot()
        self.saved_s = time.monotonic()  # when the last snapshot was written
        self.clock: StepClock | None = None
        self.losses: torch.Tensor | None = None
        self.checked = 0  # steps whose losses are those of the whole batch

    def run(self) -> None:
        """Build, train, validate, then measure memory by category: the whole trial, in order."""
        device, spec = trainable_device(self.trial), self.spec
        task = self.prepare_task()
        if spec.graph != "none":
            load_compiler()
        parallel.take_turns(lambda: self.recorder.claim(device))
        model, optimizer = self.prepare(device)
        running = Running(model, optimizer, spec)
        self.conclude(running, task, self.train(running, task))

    def conclude(self, running: Running, task: Task, rng: dict[str, torch.Tensor]) -> None:
        """Validate the trained model, keep its weights, measure memory by category; ``rng`` is as training left it."""
        spec, device, model, optimizer = self.spec, running.device, running.model, running.optimizer
        parallel.average_buffers(running.module)
        with torch.compiler.set_stance("force_eager"):  # else it would be compiled anew for these shapes
            validation = validate(running.module, task, spec, device)
        self.columns |= self.outcome(running, validation)
        self.check_risen(task, validation)
        peak = self.recorder.peak_flops_per_s(spec.precision)
        self.columns |= rate_columns(self.columns, spec, peak)
        self.columns["checkpoint_bytes"] = memory.checkpoint_bytes(model, optimizer)
        if self.recorder.keeps_weights:
            self.keep(model, optimizer, rng)
        self.columns["attention_backend"] = running.attention_backend(self.trial.model)
        self.columns |= self.split_columns(running, task)
        self.columns |= parallel.of_all(self.columns)

    def prepare_task(self) -> Task:
        """Open the data and the parent's state and return the trial's task, with nothing on the device."""
        family, config = FAMILIES[self.trial.family], configuration(self.trial)
        if (parent := self.trial.parent) is not None and parent.state_sha256 is not None:
            self.start = read_state(Path(self.recorder.header["parent_dir"]), parent.state_sha256)
        task, counts = self.open_task(config), family.count(config, self.spec.sequence_length)
        self.columns |= size_columns(counts, task, self.spec, self.start.samples_seen)
        self.columns["first_step"] = self.start.step
        return task

    def open_task(self, config: Any) -> Task:
        """Return the task of the trial's model and data."""
        return FAMILIES[self.trial.family].task(config, planned_data(self.trial), self.trial.data, self.spec)

    def prepare(self, device: torch.device) -> tuple[nn.Module, Optimizer]:
        """Return model and optimizer of the trial: initialised, or as the parent left them."""
        model = self.build(device)
        if self.spec.checkpointing:
            recompute_blocks(model)
        if self.spec.parallel == "fsdp":
            parallel.shard(model, FAMILIES[self.trial.family], device)
        optimizer = build_optimizer(model, self.spec)
        self.start.restore(optimizer)
        return model, optimizer

    def build(self, device: torch.device) -> nn.Module:
        """Return the trial's model with initial weights, or its parent's."""
        model = initial_model(self.trial, self.recorder, device)
        self.columns["weight_bytes"] = memory.weight_bytes(model)
        return model

    def train(self, running: Running, task: Task) -> dict[str, torch.Tensor]:
        """Take the steps under measurement and return the state of the random number generators after them."""
        spec, device = self.spec, running.device
        self.running, clock = running, StepClock(device)
        self.clock = clock
        losses = self.losses = torch.full((spec.steps,), torch.nan, device=device)
        energy = EnergyMeter(device)
        self.scaler = loss_scaler(device, spec)
        self.start.restore_generators(self.scaler)
        self.resume(running, losses)
        memory.reset_peaks(device)
        self.columns["startup_time_s"] = self.recorder.age_s()
        energy.start()
        with running.attention():
            skipped = train(
                running.compiled, running.optimizer, task, spec, clock, losses, self.check, self.make_step,
                scaler=self.scaler, first_step=self.start.step, done=self.resumed.done,
                stops={*self.recorder.checkpoint_steps, *self.recorder.snapshot_steps(spec.steps)},
            )  # fmt: skip
        self.columns |= RESUMED_ENERGY if self.resumed.done else energy.columns()
        self.columns |= time_columns(clock) | memory.peak_columns(device)
        self.columns["skipped_steps"] = skipped if spec.precision == "float16" else None
        self.columns["train_loss_nats"] = final_loss(losses)
        return rng_state(device)

    def resume(self, running: Running, losses: torch.Tensor) -> None:
        """Go on where an earlier attempt at this trial was interrupted, if it left a snapshot."""
        if self.recorder.snapshots:
            attempt = self.recorder.attempt if parallel.rank() == 0 else self.recorder.attempt.parent
            snapshot = find_snapshot(attempt, self.trial)
            if parallel.agree(snapshot.done):
                self.resumed = snapshot
        self.resumed.restore(running.model, running.optimizer, self.scaler, losses)
        if running.copy is not None:
            running.copy.refresh()
        self.checked = done = self.resumed.done
        self.columns |= {"resumed_from_step": done or None, "resumed_attempts": self.resumed.attempts}

    def make_step(self, *arguments: Any) -> Step:
        """Return the object that takes the training steps."""
        self.step = self.running.make_step(*arguments)
        self.step.skipped = self.resumed.skipped
        return self.step

    def keep(self, model: nn.Module, optimizer: Optimizer, rng: dict[str, torch.Tensor]) -> None:
        """Write weights and state, so that another trial can start from them; of several processes the first does."""
        attempt, samples = self.recorder.attempt, self.columns["samples_seen"]
        if self.spec.parallel == "fsdp":
            model = parallel.whole_model(model, build_model(self.trial, torch.device("cpu")))
        if parallel.rank() == 0:
            self.columns["weights_sha256"], self.columns["weights_file_bytes"] = save_weights(model, attempt)
        end = self.start.step + self.spec.steps
        self.columns["state_sha256"] = save_state(attempt, optimizer, self.scaler, rng, end, samples)

    def checkpoint(self, done: int) -> None:
        """Write weights and state after ``done`` steps; the time that this takes is in that of the next step."""
        attempt, end = self.recorder.attempt, self.start.step + done
        folder = checkpoint_folder(attempt, done)
        folder.mkdir(exist_ok=True)  # of this attempt before it was requeued
        weights_sha256, _ = save_weights(self.running.model, folder)
        samples, rng = self.start.samples_seen + done * self.spec.batch_size, rng_state(self.running.device)
        state_sha256 = save_state(folder, self.running.optimizer, self.scaler, rng, end, samples)
        add_checkpoint(attempt, done, {"weights_sha256": weights_sha256, "state_sha256": state_sha256, "end": end})

    def snapshot(self, done: int) -> None:
        """Write what the next attempt goes on from if this one is interrupted."""
        running, losses = self.running, self.losses
        assert losses is not None
        samples = self.start.samples_seen + done * self.spec.batch_size
        standing = Standing(
            running.model, running.optimizer, self.scaler, rng_state(running.device), losses[:done], done,
            self.start.step + done, samples, self.resumed.attempts, self.step.skipped,
        )  # fmt: skip
        if parallel.rank() == 0:
            write_snapshot(self.recorder.attempt, self.trial, standing)
        self.saved_s = time.monotonic()

    def split_columns(self, running: Running, task: Task) -> dict[str, int | str | None]:
        """Return memory by category, measured as the study asks; of a working copy from its tensors alone."""
        if running.copy is None and self.recorder.memory_method != "allocator":
            with torch.compiler.set_stance("force_eager"):
                backward = backward_of(running.module, task, self.spec, running.device)
                return memory.split_columns(running.module, running.optimizer, backward)
        copy_bytes = (0, 0) if running.copy is None else running.copy.held_bytes()
        peak = self.columns["peak_memory_allocated_bytes"]
        return memory.held_columns(running.model, running.optimizer, peak, *copy_bytes)

    def check(self, done: int) -> None:
        """Report progress, keep checkpoints; raise ``Diverged`` when a loss is not finite, in every process."""
        losses = self.losses
        assert losses is not None
        self.recorder.progress(done, self.spec.steps, lambda: float(losses[done - 1]))
        parallel.average(losses[self.checked : done])
        self.checked = done
        check_finite(losses, done)
        if done in self.recorder.checkpoint_steps:
            self.checkpoint(done)
        if done < self.spec.steps and self.recorder.snapshot_due(done, time.monotonic() - self.saved_s):
            self.snapshot(done)

    def outcome(self, running: Running, validation: Validation) -> dict[str, Any]:  # noqa: ARG002 - for workloads
        """Return the columns of the validation after the last step."""
        return validation_columns(validation)

    def check_risen(self, task: Task, validation: Validation) -> None:
        """Raise ``Diverged`` when training or validation loss ended far above the loss of the first step.

        The first loss of a trial that starts from trained weights may be as low as its training reached: that of a
        guess without inputs counts if it is higher.
        """
        if self.spec.steps:
            assert self.losses is not None
            first, training = float(self.losses[0]), self.columns["train_loss_nats"]
            if self.trial.parent is not None:
                first = max(first, guess_nats(self.trial, task))
            check_risen(first, task.least_nats, training=training, validation=validation.loss_nats)

    def save_samples(self) -> None:
        """Write loss and time of the finished steps to steps.parquet; no times of steps before an interruption."""
        if self.clock is None or self.losses is None or not (times := self.clock.step_times_s()).size:
            return
        if self.spec.processes > 1:
            self.losses[self.checked :] = torch.nan  # those of this process' own rows
        frame = samples_frame(self.losses, times, self.clock.data_times_s(), self.start.step, self.resumed.done)
        self.recorder.save_samples("steps.parquet", frame)


def initial_model(trial: Trial, recorder: Recorder, device: torch.device) -> nn.Module:
    """Return the trial's model with initial weights, or its parent's."""
    model = build_model(trial, device)
    if trial.parent is not None:
        load_weights(model, Path(recorder.header["parent_dir"]), trial.parent.weights_sha256)
    return model


def trainable_device(trial: Trial) -> torch.device:
    """Return the trial's device, or raise ``Unsupported`` with why this machine cannot train there."""
    spec: TrainSpec = trial.spec
    device = usable_device(trial)
    if trial.device_kind == "cuda" and spec.processes > 1:
        device = torch.device("cuda", torch.cuda.current_device())
    if spec.implementation in KERNELS and spec.optimizer not in FUSED:
        raise Unsupported(f"no fused kernel for the optimizer {spec.optimizer!r}; there are {', '.join(FUSED)}")
    if spec.graph == "step" and trial.device_kind == "cpu":
        raise Unsupported('a step is captured as a CUDA graph, which a CPU does not have; use graph = "blocks"')
    return device
