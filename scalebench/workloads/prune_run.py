"""One pruning trial: the parent's model is measured, pruned, trained on if asked, and measured again beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalebench.families import FAMILIES
from scalebench.families.modules.shrink import importance, largest, shrink
from scalebench.families.shrink import units_of
from scalebench.study import Trial
from scalebench.tasks import Task
from scalebench.workloads.batches import to_device
from scalebench.workloads.building import build_model
from scalebench.workloads.derived_run import DerivedRun
from scalebench.workloads.effect import Before, effect_columns, loss_columns, remember
from scalebench.workloads.loop import Validation
from scalebench.workloads.prune_kernels import semi_structured_columns
from scalebench.workloads.prune_masks import hold, prune_weights
from scalebench.workloads.prune_sizes import size_columns
from scalebench.workloads.prune_spec import UNITS, PruneSpec
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.running import Running
from scalebench.workloads.state import rng_state, samples_seen
from scalebench.workloads.training_run import initial_model


def run(trial: Trial, recorder: Recorder) -> None:
    """Prune and measure the trial's model; the samples of a trial that fails are kept, too."""
    pruning = PruneRun(trial, recorder)
    try:
        pruning.run()
    finally:
        pruning.save_samples()


def tokens_before(parent: Trial, folder: Path) -> int | None:
    """Return the tokens that the weights in a folder were trained on; None unless that was one run from scratch.

    A run that continues another from its state counts the samples of both.
    """
    length, of = parent.spec.get("sequence_length"), parent.parent
    if parent.workload != "training" or not length or (of is not None and of.state_sha256 is None):
        return None
    samples = samples_seen(folder)
    return None if samples is None else samples * int(length)


class PruneRun(DerivedRun):
    """A pruning trial under way. ``before`` is the unpruned model, ``masks`` what remains of matrices that have one."""

    spec: PruneSpec
    task: Task
    before: Before
    masks: Mapping[str, Tensor]

    def prepare_task(self) -> Task:
        """Open the data, which a model without recovery steps is validated on only."""
        self.task = super().prepare_task()
        if not self.spec.steps:
            self.columns |= dict.fromkeys(("samples_seen", "tokens_seen", "epochs_seen"))
        return self.task

    def build(self, device: torch.device) -> nn.Module:
        """Return the parent's model, pruned."""
        spec, parent = self.spec, Trial.model_validate(self.recorder.header["parent_trial"])
        whole = initial_model(self.trial.model_copy(update={"model": parent.model}), self.recorder, device)
        self.before = remember(whole, self.task, spec, device)
        if spec.method in UNITS:
            model, self.masks = self.smaller(whole, device), {}
        else:
            model, self.masks = whole, prune_weights(whole, spec.method, spec.density, spec.seed)
        larger = FAMILIES[parent.family].Config(**parent.model)
        self.columns |= size_columns(self.trial, larger, self.before.model, model, self.masks)
        self.columns["tokens_before"] = tokens_before(parent, Path(self.recorder.header["parent_dir"]))
        return model

    def smaller(self, whole: nn.Module, device: torch.device) -> nn.Module:
        """Return the trial's model with the weights of the units that write most on the first training batch."""
        kind, batch = self.spec.method, to_device(self.task.batch(0), device)
        model, larger = build_model(self.trial, device), whole.eval()
        config = Trial.model_validate(self.recorder.header["parent_trial"]).model
        units = units_of(FAMILIES[self.trial.family].Config(**config), kind)
        scores = importance(larger, kind, units, lambda: self.task.judge(larger, batch))
        number = units_of(FAMILIES[self.trial.family].Config(**self.trial.model), kind)
        shrink(larger, model, kind, units, largest(scores, number))
        return model

    def train(self, running: Running, task: Task) -> dict[str, Tensor]:
        """Take the recovery steps, if any; what was pruned stays zero."""
        if not self.spec.steps:
            self.columns["startup_time_s"] = self.recorder.age_s()
            return rng_state(running.device)
        hold(running.model, self.masks, running.optimizer)
        return super().train(running, task)

    def outcome(self, running: Running, validation: Validation) -> dict[str, Any]:
        """Return what pruning did to loss, bytes and time; of 2:4 bytes and time with the kernels that use it."""
        if self.spec.method == "2:4":
            return loss_columns(self.before, validation) | semi_structured_columns(self.before, running.module)
        return effect_columns(self.before, running.module, validation=validation)

    def split_columns(self, running: Running, task: Task) -> dict[str, int | str | None]:
        """Return memory by category of the recovery steps; nothing where there are none."""
        return super().split_columns(running, task) if self.spec.steps else {}
