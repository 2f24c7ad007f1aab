"""Training trials of one size together, in one process: each ends with the record that it would have alone.

Data, initial weights, learning rates, the checks of the losses and the validation are those of ``training_run``, member
by member; only the steps are shared. What is measured of the process (time, memory, energy) is not the trial's own and
stays null.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from scalebench.optim.schedules import schedule_factor
from scalebench.study import Trial
from scalebench.tasks import Batch, Task
from scalebench.workloads.ensemble_step import Ensemble
from scalebench.workloads.loop import CHECK_EVERY, loss_scaler
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.running import Running
from scalebench.workloads.state import rng_state
from scalebench.workloads.training_columns import final_loss, samples_frame
from scalebench.workloads.training_run import TrainingRun, trainable_device

Ended = Callable[[int, Exception | None], None]


class Member(TrainingRun):
    """One trial of an ensemble: all of it but the steps. ``done`` is how many of these were taken."""

    task: Task
    model: nn.Module
    optimizer: Optimizer
    done = 0

    def begin(self) -> None:
        """Open the data; build the model with initial weights from the trial's seed, and the optimizer."""
        device = trainable_device(self.trial)
        self.task = self.prepare_task()
        self.model, self.optimizer = self.prepare(device)
        self.generators, self.scaler = rng_state(device), loss_scaler(device, self.spec)  # no step uses them
        self.columns |= {"resumed_from_step": None, "resumed_attempts": self.resumed.attempts}
        self.losses = torch.full((self.spec.steps,), torch.nan, device=device)

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        return self.spec.learning_rate * schedule_factor(self.spec, step)

    def finish(self, members: int) -> None:
        """Validate the trained model and fill the columns; ``members`` were trained together."""
        assert self.losses is not None
        self.columns["train_loss_nats"] = final_loss(self.losses)
        self.columns |= {"energy_j": None, "energy_method": f"none: {members} trials were trained together"}
        self.conclude(Running(self.model, self.optimizer, self.spec), self.task, self.generators)

    def split_columns(self, running: Running, task: Task) -> dict[str, int | str | None]:  # noqa: ARG002
        """Return no memory by category: it is shared."""
        return {}

    def save_samples(self) -> None:
        """Write the losses of the steps to steps.parquet, without times: a step is that of all members."""
        if self.done and self.losses is not None:
            untimed = np.empty(0)
            frame = samples_frame(self.losses, untimed, untimed, self.start.step, self.done)
            self.recorder.save_samples("steps.parquet", frame)


def train_together(trials: Sequence[tuple[Trial, Recorder]], ended: Ended) -> None:
    """Train trials that differ in seed, learning rate or weight decay only, and validate each.

    ``ended(index, error)`` is called once for each trial, when its samples are written and its columns filled; the
    error is None for one that is ok. An error of one trial, such as ``Diverged``, ends that trial alone.
    """
    EnsembleRun([Member(trial, recorder) for trial, recorder in trials], ended).run()


class EnsembleRun:
    """An ensemble under way. ``going`` has the members that have not ended, by their index."""

    def __init__(self, members: Sequence[Member], ended: Ended) -> None:
        self.going = dict(enumerate(members))
        self.ended = ended

    def run(self) -> None:
        """Prepare all members, train them together, and finish them one by one."""
        try:
            self.each(lambda member: member.begin())
            if not self.going:
                return
            members = list(self.going.values())
            self.count_members(len(members))
            ensemble = self.train(members)
        except Exception as error:  # noqa: BLE001 - what ends the common steps ends every trial in them
            for index in list(self.going):
                self.end(index, error)
            return
        for row, member in enumerate(members):
            if member in self.going.values():
                ensemble.hand_back(row)
        self.each(lambda member: member.finish(len(members)))
        for index in list(self.going):
            self.end(index, None)

    def count_members(self, count: int) -> None:
        """Record how many trials are trained together."""
        for member in self.going.values():
            member.columns["ensemble_size"] = count

    def each(self, action: Callable[[Member], None]) -> None:
        """Call ``action`` for every member that goes on; an error ends that member."""
        for index, member in list(self.going.items()):
            try:
                action(member)
            except Exception as error:  # noqa: BLE001 - the boundary of a trial, as in running/worker.py
                self.end(index, error)

    def end(self, index: int, error: Exception | None) -> None:
        """End a member: write its samples and report it."""
        self.going.pop(index).save_samples()
        self.ended(index, error)

    def train(self, members: Sequence[Member]) -> Ensemble:
        """Take the steps, checking the losses where a trial alone does; stop when no member goes on."""
        spec = members[0].spec
        models, optimizers = [member.model for member in members], [member.optimizer for member in members]
        ensemble = Ensemble(models, optimizers, members[0].task, spec)
        for step, batch in enumerate(stacked(members)):
            rates = torch.tensor([[member.rate(step)] for member in members])
            self.record(members, step, ensemble.step(batch, rates))
            if (done := step + 1) % CHECK_EVERY == 0 or done == spec.steps:
                self.each(lambda member: member.check(member.done))
                if not self.going:
                    break
        return ensemble

    def record(self, members: Sequence[Member], step: int, losses: Tensor) -> None:
        """Give each member that goes on its loss of a step, out of those of all (K,)."""
        for member, loss in zip(members, losses, strict=True):
            if member.losses is not None:
                member.losses[step] = loss
                member.done = step + 1


def stacked(members: Sequence[Member]) -> Iterator[Batch]:
    """Yield the batches of each step, (K, B, …): a batch is made once for all members of one seed."""
    tasks = {member.spec.seed: member.task for member in members}
    for step in range(members[0].spec.steps):
        drawn = {seed: task.batch(step) for seed, task in tasks.items()}
        parts = [drawn[member.spec.seed] for member in members]
        yield tuple(torch.stack(tensors) for tensors in zip(*parts, strict=True))
