"""The training step of several models of one size: one batched forward and backward pass, one update.

The parameters of model k are row k of a matrix (K, P), P those of one model with tied ones once. Each named parameter
is a view (K, …) of it, which ``torch.func.functional_call`` puts in place of the first model's under ``torch.vmap``.
The base module is a real model, not one on ``meta``: there, weights that a module ties would stay apart. Nothing that a
model computes depends on another, so one that diverges leaves the others' numbers as they were, bit by bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer

from scalebench.optim.batched import BatchedOptimizer
from scalebench.tasks import Batch, Task
from scalebench.workloads.training_spec import TrainSpec


class _Objective(nn.Module):
    """A model with its task: a batch to the training loss, ()."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, *batch: Tensor) -> Tensor:
        return self.task.loss(self.model, batch)


class Ensemble:
    """K models with their optimizers, which differ in seed, learning rate or weight decay only.

    ``task`` is that of any of them: they differ in the batches that they draw. The models get their weights back, and
    the optimizers their states, by ``hand_back``.
    """

    def __init__(
        self, models: Sequence[nn.Module], optimizers: Sequence[Optimizer], task: Task, spec: TrainSpec
    ) -> None:
        self.models, self.optimizers = models, optimizers
        self.objective = _Objective(models[0], task).train()
        self.names = [name for name, _ in self.objective.named_parameters()]  # tied ones once
        rows = [[parameter.detach().flatten() for parameter in model.parameters()] for model in models]
        weights = torch.stack([torch.cat(row) for row in rows])  # (K, P)
        self.shapes = [parameter.shape for parameter in models[0].parameters()]
        self.parts = [part.requires_grad_() for part in self._split(weights)]
        self.optimizer = BatchedOptimizer(weights, _decays(models, optimizers), spec)
        self._losses: Any = torch.vmap(self._loss, in_dims=(0, 0))

    def _split(self, rows: Tensor) -> list[Tensor]:
        """Return views of rows (K, P) in the shapes of the parameters, (K, …) each."""
        sizes = [shape.numel() for shape in self.shapes]
        columns = rows.split(sizes, dim=1)
        return [part.view(len(rows), *shape) for part, shape in zip(columns, self.shapes, strict=True)]

    def _loss(self, parts: list[Tensor], batch: Batch) -> Tensor:
        return functional_call(self.objective, dict(zip(self.names, parts, strict=True)), batch)

    def step(self, batch: Batch, rates: Tensor) -> Tensor:
        """Train each model on its batch, (K, B, …), at its learning rate, (K, 1); return the losses (K,)."""
        losses: Tensor = self._losses(self.parts, batch)
        # The derivative of the sum with respect to a model's weights is that of the model's own loss.
        gradients = torch.autograd.grad(losses.sum(), self.parts)
        with torch.no_grad():
            self.optimizer.step(torch.cat([part.flatten(1) for part in gradients], 1), rates)
        return losses.detach()

    @torch.no_grad()
    def hand_back(self, index: int) -> None:
        """Give a model its weights, and its optimizer the state that it would have after as many steps."""
        for parameter, part in zip(self.models[index].parameters(), self.parts, strict=True):
            parameter.copy_(part[index])
        states = {name: self._split(values) for name, values in self.optimizer.state.items()}
        for number, parameter in enumerate(self.models[index].parameters()):
            state = {name: parts[number][index].clone() for name, parts in states.items()}
            count = {"step": torch.tensor(float(self.optimizer.steps))} if self.optimizer.rule.counts else {}
            if state or count:
                self.optimizers[index].state[parameter] = count | state


def _decays(models: Sequence[nn.Module], optimizers: Sequence[Optimizer]) -> Tensor:
    """Return the weight decay of each parameter of each model, (K, P), as the groups of their optimizers have it."""
    rows = []
    for model, optimizer in zip(models, optimizers, strict=True):
        groups = optimizer.param_groups
        decays = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
        rows.append(
            torch.cat([torch.full((parameter.numel(),), decays[id(parameter)]) for parameter in model.parameters()])
        )
    return torch.stack(rows)
