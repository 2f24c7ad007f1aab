"""One fine-tuning trial: a training run between two validations, on its own data and on the parent's."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from scalebench.families import FAMILIES
from scalebench.measure import memory
from scalebench.study import Trial
from scalebench.tasks import Task
from scalebench.workloads.building import configuration, planned_data
from scalebench.workloads.classifier import Classifier, with_head
from scalebench.workloads.derived_run import DerivedRun
from scalebench.workloads.finetune_spec import FinetuneSpec
from scalebench.workloads.heads import counts_with_head, task_of
from scalebench.workloads.loop import Validation, validate
from scalebench.workloads.lora import adapt, merge, trainable
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.running import Running
from scalebench.workloads.training_columns import size_columns


def run(trial: Trial, recorder: Recorder) -> None:
    """Fine-tune and validate the trial's model; the samples of a trial that fails are kept, too."""
    finetuning = FinetuneRun(trial, recorder)
    try:
        finetuning.run()
    finally:
        finetuning.save_samples()


class FinetuneRun(DerivedRun):
    """A fine-tuning trial under way. ``old_task`` has the held-out sample of the parent."""

    spec: FinetuneSpec
    old_task: Task

    def prepare_task(self) -> Task:
        """Open the data of both, so that a source that is missing or changed ends the trial before it starts."""
        parent = Trial.model_validate(self.recorder.header["parent_trial"])
        spec = self.spec.model_copy(update={"seed": parent.spec["seed"]})  # it can decide what is held out
        config, family = configuration(self.trial), FAMILIES[parent.family]
        self.old_task = family.task(config, planned_data(parent), parent.data, spec)
        task, counts = super().prepare_task(), family.count(config, self.spec.sequence_length)
        counts = counts_with_head(self.trial.family, config, counts, self.spec)
        self.columns |= size_columns(counts, task, self.spec)
        return task

    def open_task(self, config: Any) -> Task:
        """Return the family's task, or the classification of the data's labels."""
        return task_of(self.trial, config, planned_data(self.trial))

    def build(self, device: torch.device) -> nn.Module:
        """Return the parent's model, adapted where only the products of LoRA are trained."""
        model = super().build(device)
        if self.spec.method == "lora":
            assert self.spec.matrices is not None
            assert self.spec.rank is not None
            assert self.spec.alpha is not None
            adapt(model, self.spec.matrices.split(","), self.spec.rank, self.spec.alpha)
        model = with_head(model, self.trial)
        self.columns["trainable_params"] = trainable(model)
        return model

    def train(self, running: Running, task: Task) -> dict[str, Tensor]:
        """Train, with both validations before it and that on the parent's data after it."""
        columns = self.columns
        columns["loss_before_nats"] = self.validated(running, task).loss_nats
        columns["old_loss_before_nats"] = self.validated_on_old(running).loss_nats
        rng = super().train(running, task)
        old = self.validated_on_old(running)
        error = old.standard_error_nats
        columns |= {"old_loss_nats": old.loss_nats, "old_loss_se_nats": None if math.isnan(error) else error}
        columns["forgetting_nats"] = old.loss_nats - columns["old_loss_before_nats"]
        return rng

    def validated_on_old(self, running: Running) -> Validation:
        """Return the loss of the family's own outputs on the parent's held-out sample."""
        module = running.module
        return self.validated(running, self.old_task, module.body if isinstance(module, Classifier) else module)

    def validated(self, running: Running, task: Task, module: nn.Module | None = None) -> Validation:
        """Return the losses on a task's held-out sample, of the whole model by default."""
        with torch.compiler.set_stance("force_eager"):  # else it would be compiled anew for these shapes
            return validate(module or running.module, task, self.spec, running.device)

    def split_columns(self, running: Running, task: Task) -> dict[str, int | str | None]:
        """Return memory by category: from sizes where weights are frozen, which torch's MemTracker cannot follow."""
        if self.spec.method == "full" and self.spec.head == "own":
            return super().split_columns(running, task)
        peak = self.columns["peak_memory_allocated_bytes"]
        gradients = 4 * trainable(running.model)
        return memory.held_columns(running.model, running.optimizer, peak, gradient_bytes=gradients)

    def saved_model(self, model: nn.Module) -> nn.Module:
        """Return a copy in which LoRA's products are added to their matrices."""
        merged = copy.deepcopy(model)
        merge(merged)
        return merged
