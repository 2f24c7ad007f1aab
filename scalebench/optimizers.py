"""Optimizers by name. ``eager`` runs torch's plain loop over tensors; the other implementations its fused kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from scalebench.fused_optimizers import build_fused_optimizer
from scalebench.study import TrainSpec


@dataclass(frozen=True)
class OptimizerChoice:
    """How an optimizer is made, and how many values it keeps per parameter."""

    summary: str
    make: Callable[..., Optimizer]
    uses: tuple[str, ...]
    state_per_param: int


OPTIMIZERS: Mapping[str, OptimizerChoice] = {
    "sgd": OptimizerChoice("stochastic gradient descent", SGD, (), 0),
    "momentum": OptimizerChoice("SGD with momentum", SGD, ("momentum",), 1),
    "adam": OptimizerChoice("Adam (Kingma & Ba 2015); weight decay in the gradient", Adam, ("betas",), 2),
    "adamw": OptimizerChoice("Adam with decoupled weight decay (Loshchilov & Hutter 2019)", AdamW, ("betas",), 2),
}


def build_optimizer(model: nn.Module, spec: TrainSpec) -> Optimizer:
    """Make the optimizer of a trial. Matrices decay; vectors (norms, biases) do not."""
    choice = OPTIMIZERS[spec.optimizer]
    matrices = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": spec.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    settings = {"betas": (spec.beta1, spec.beta2), "momentum": spec.momentum}
    groups = [group for group in groups if group["params"]]
    if spec.implementation == "triton":
        return build_fused_optimizer(groups, spec)
    return choice.make(
        groups,
        lr=spec.learning_rate,
        foreach=False,
        fused=spec.implementation != "eager",
        **{name: settings[name] for name in choice.uses},
    )


def schedule_factor(spec: TrainSpec, step: int) -> float:
    """Return what the learning rate is multiplied by at a step: linear warm-up, then the named shape, down to zero.

    ``constant`` stays; ``linear`` and ``cosine`` fall over all that follows the warm-up; ``wsd`` (warm-up, stable,
    decay; Hu et al. 2024) falls linearly over the last ``decay_fraction`` of the steps.
    """
    warm = min(1.0, (step + 1) / (spec.warmup_steps + 1))
    start = spec.warmup_steps
    if spec.schedule == "wsd":
        start = max(start, round(spec.steps * (1 - spec.decay_fraction)))
    progress = min(1.0, max(0.0, (step - start) / max(1, spec.steps - start)))
    if spec.schedule == "constant":
        return warm
    if spec.schedule == "cosine":
        return warm * 0.5 * (1 + float(torch.cos(torch.tensor(progress * torch.pi))))
    return warm * (1 - progress)


def build_schedule(optimizer: Optimizer, spec: TrainSpec) -> LambdaLR:
    """Attach the learning-rate schedule of a trial."""
    return LambdaLR(optimizer, partial(schedule_factor, spec))
