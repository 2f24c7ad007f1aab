"""Optimizers of the implementations ``triton`` and ``fused``: few launches for all tensors, clipping included."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch.optim import Optimizer


class OptimizerSpec(Protocol):
    """What an optimizer reads of a trial's spec."""

    @property
    def optimizer(self) -> str:
        """A name of ``OPTIMIZERS``."""

    @property
    def learning_rate(self) -> float:
        """Peak learning rate."""

    @property
    def weight_decay(self) -> float:
        """Weight decay of matrices."""

    @property
    def beta1(self) -> float:
        """Decay of the first moment."""

    @property
    def beta2(self) -> float:
        """Decay of the second moment."""

    @property
    def momentum(self) -> float:
        """Momentum of SGD and Muon."""

    @property
    def gradient_clip(self) -> float:
        """Largest norm of the gradients."""

    @property
    def implementation(self) -> str:
        """Which kernels: eager, sdpa, compile, triton or fused."""


# Name of the optimizer -> class of scalekernels.
FUSED: Mapping[str, str] = {
    "sgd": "SGD",
    "momentum": "SGD",
    "nesterov": "SGD",
    "adagrad": "Adagrad",
    "rmsprop": "RMSprop",
    "adam": "Adam",
    "adamw": "AdamW",
    "lion": "Lion",
}


def _arguments(spec: OptimizerSpec) -> dict[str, Any]:
    """Return an optimizer's arguments besides learning rate and weight decay."""
    if spec.optimizer in ("momentum", "nesterov"):
        return {"momentum": spec.momentum, "nesterov": spec.optimizer == "nesterov"}
    if spec.optimizer in ("adam", "adamw", "lion"):
        return {"betas": (spec.beta1, spec.beta2)}
    return {"alpha": spec.beta2} if spec.optimizer == "rmsprop" else {}


def build_fused_optimizer(groups: Sequence[dict[str, Any]], spec: OptimizerSpec) -> Optimizer:
    """Build the fused optimizer of a trial, which also clips the norm of the gradients at ``spec.gradient_clip``."""
    import scalekernels

    make = getattr(scalekernels, FUSED[spec.optimizer])
    return make(groups, lr=spec.learning_rate, max_grad_norm=spec.gradient_clip, **_arguments(spec))


def clips(optimizer: Optimizer) -> bool:
    """Return whether an optimizer clips the gradients itself."""
    return getattr(optimizer, "max_grad_norm", None) is not None
