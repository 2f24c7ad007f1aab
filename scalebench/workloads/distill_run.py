"""One distillation trial: the teacher validated, its predictions stored where asked for, then a training run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalebench.study import Trial
from scalebench.tasks import GivesLogits, Task
from scalebench.workloads.building import build_model
from scalebench.workloads.derived_run import DerivedRun
from scalebench.workloads.distill_loss import Distilled
from scalebench.workloads.distill_spec import DistillSpec
from scalebench.workloads.distill_teacher import RunningTeacher, StoredTeacher, load_teacher, store
from scalebench.workloads.effect import Before, bytes_columns, effect_columns
from scalebench.workloads.guessing import guess_nats
from scalebench.workloads.loop import Validation, check_risen, validate
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.running import Running


def run(trial: Trial, recorder: Recorder) -> None:
    """Distil and validate the trial's student; the samples of a trial that fails are kept, stored predictions not."""
    distillation = DistillRun(trial, recorder)
    try:
        distillation.run()
    finally:
        distillation.save_samples()
        if isinstance(distillation.teacher, StoredTeacher):
            distillation.teacher.remove()


class DistillRun(DerivedRun):
    """A distillation trial under way. ``task`` is the student's own; ``teacher`` is None where λ is 0."""

    spec: DistillSpec
    task: GivesLogits
    teacher: RunningTeacher | StoredTeacher | None = None
    teacher_validation: Validation

    def prepare_task(self) -> Task:
        """Open the data and return the student's own task, by which it is validated."""
        task = super().prepare_task()
        assert isinstance(task, GivesLogits)
        self.task = task
        student, teacher, steps = self.columns["flops_per_step"], self.spec.teacher_step_flops, self.spec.steps
        self.columns |= {"teacher_flops": teacher * steps, "total_flops": (student + teacher) * steps}
        if self.spec.top_k is None:  # the teacher's pass is part of the step
            self.columns["flops_per_step"] = student + teacher
        return self.task

    def build(self, device: torch.device) -> nn.Module:
        """Return the student with initial weights, after its teacher was validated and, if asked for, stored."""
        model = self.load_teacher(device)
        self.teacher_validation = validate(model, self.task, self.spec, device)
        if self.spec.soft_weight:
            self.teacher = running = RunningTeacher(model, self.task, self.spec)
            if self.spec.top_k is not None:
                self.teacher = self.stored(running, self.spec.top_k, device)
        return build_model(self.trial, device)

    def load_teacher(self, device: torch.device) -> nn.Module:
        """Return the teacher, its weights checked against their SHA-256."""
        header, parent = self.recorder.header, self.trial.parent
        assert parent is not None
        teacher = Trial.model_validate(header["parent_trial"])
        return load_teacher(teacher, Path(header["parent_dir"]), parent.weights_sha256, device)

    def stored(self, teacher: RunningTeacher, k: int, device: torch.device) -> StoredTeacher:
        """Return the teacher's ``k`` largest log-probabilities of every prediction of the run, written to disk."""
        begun = time.perf_counter()
        folder = self.recorder.attempt / "teacher"
        result = store(teacher, folder, self.spec.steps, k, self.spec.temperature, device)
        self.columns |= {"stored_bytes": result.bytes, "store_time_s": time.perf_counter() - begun}
        return result

    def train(self, running: Running, task: Task) -> dict[str, Tensor]:
        """Train on the loss of distillation."""
        return super().train(running, self.distilled or task)

    def split_columns(self, running: Running, task: Task) -> dict[str, int | str | None]:
        """Return memory by category, of steps on the loss of distillation."""
        return super().split_columns(running, self.distilled or task)

    @property
    def distilled(self) -> Distilled | None:
        """The task with the loss of distillation; None where nothing is learned of a teacher."""
        if self.teacher is None:
            return None
        return Distilled(self.task, self.teacher, self.spec.soft_weight, self.spec.temperature)

    def outcome(self, running: Running, validation: Validation) -> dict[str, Any]:
        """Return the columns of the validation, and the student's loss, bytes and time beside the teacher's."""
        teacher = self.load_teacher(running.device)  # again where it was stored: it is not in memory while training
        before = Before(teacher, self.teacher_validation, self.task, self.spec, running.device)
        measured = effect_columns(before, running.module, validation=validation)
        # What is kept is the model that was optimised, not a 16-bit copy that computes.
        return super().outcome(running, validation) | measured | bytes_columns(before, running.model)

    def check_risen(self, task: Task, validation: Validation) -> None:
        """Raise ``Diverged`` when either loss ended far above that of the first step, or of a uniform guess if higher.

        A divergence from a teacher of nearly uniform predictions begins near 0 whatever the rest is.
        """
        assert self.losses is not None
        first = max(float(self.losses[0]), guess_nats(self.trial, task))
        check_risen(first, training=self.columns["train_loss_nats"], validation=validation.loss_nats)
