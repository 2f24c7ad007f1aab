"""Optimizers of several models at once: element by element, on the parameters of each model in one row.

K models of P parameters are matrices (K, P) of weights, of gradients and of each state that the optimizer keeps, so an
update is a few operations whatever the number of tensors. Learning rates and weight decays differ from row to row. The
rules are those of ``torch.optim`` and ``lion_pytorch``, with their names of the states and their constants. Muon is
not among them: it updates matrices, not elements.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from scalebench.optim.fused import OptimizerSpec

if TYPE_CHECKING:
    from torch import Tensor

EPS = 1e-8  # torch's default for Adam, AdamW and RMSprop
ADAGRAD_EPS = 1e-10
CLIP_EPS = 1e-6  # what torch.nn.utils.clip_grad_norm_ adds to the norm


@dataclass
class BatchedOptimizer:
    """The optimizer of K models: ``weights`` and ``decay`` (K, P), a weight decay for each parameter of each model.

    Of ``spec`` everything but learning rate and weight decay counts, which is the same for all. ``state`` maps torch's
    name of a state to its values (K, P), ``steps`` is how many steps were taken.
    """

    weights: Tensor
    decay: Tensor
    spec: OptimizerSpec
    steps: int = 0
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Begin with states of zero. Raises ``KeyError`` for an optimizer without a batched form."""
        self.rule = BATCHED[self.spec.optimizer]
        self.state = {name: self.weights.new_zeros(self.weights.shape) for name in self.rule.states}
        self.decays = bool(self.decay.any())

    def step(self, gradients: Tensor, rates: Tensor) -> None:
        """Clip the gradients (K, P), row by row and in place, and update the weights at the learning rates (K, 1)."""
        norms = gradients.norm(dim=1, keepdim=True)
        gradients.mul_((self.spec.gradient_clip / (norms + CLIP_EPS)).clamp(max=1.0))
        self.steps += 1
        if self.decays and self.rule.decoupled:
            self.weights.mul_(1 - rates * self.decay)
        elif self.decays:
            gradients.addcmul_(self.decay, self.weights)
        self.rule.update(self, gradients, rates)


def _descend(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    optimizer.weights.sub_(rates * gradients)


def _momentum(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    average = optimizer.state["momentum_buffer"].mul_(optimizer.spec.momentum).add_(gradients)
    _descend(optimizer, average, rates)


def _nesterov(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    average = optimizer.state["momentum_buffer"].mul_(optimizer.spec.momentum).add_(gradients)
    _descend(optimizer, gradients.add(average, alpha=optimizer.spec.momentum), rates)


def _adagrad(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    squares = optimizer.state["sum"].addcmul_(gradients, gradients)
    _descend(optimizer, gradients / squares.sqrt().add_(ADAGRAD_EPS), rates)


def _rmsprop(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    alpha = optimizer.spec.beta2
    squares = optimizer.state["square_avg"].mul_(alpha).addcmul_(gradients, gradients, value=1 - alpha)
    _descend(optimizer, gradients / squares.sqrt().add_(EPS), rates)


def _adam(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    spec, step = optimizer.spec, optimizer.steps
    average = optimizer.state["exp_avg"].lerp_(gradients, 1 - spec.beta1)
    squares = optimizer.state["exp_avg_sq"].mul_(spec.beta2).addcmul_(gradients, gradients, value=1 - spec.beta2)
    root = (squares.sqrt() / (1 - spec.beta2**step) ** 0.5).add_(EPS)
    _descend(optimizer, average / root, rates / (1 - spec.beta1**step))


def _lion(optimizer: BatchedOptimizer, gradients: Tensor, rates: Tensor) -> None:
    spec, average = optimizer.spec, optimizer.state["exp_avg"]
    _descend(optimizer, (average * spec.beta1).add_(gradients, alpha=1 - spec.beta1).sgn_(), rates)
    average.mul_(spec.beta2).add_(gradients, alpha=1 - spec.beta2)


@dataclass(frozen=True)
class Rule:
    """How an optimizer updates: ``decoupled`` weight decay shrinks the weights, any other is added to the gradients.

    ``counts`` is whether torch keeps the number of steps beside the ``states``.
    """

    update: Callable[[BatchedOptimizer, Tensor, Tensor], None]
    states: tuple[str, ...] = ()
    decoupled: bool = False
    counts: bool = False


BATCHED: Mapping[str, Rule] = {
    "sgd": Rule(_descend),
    "momentum": Rule(_momentum, ("momentum_buffer",)),
    "nesterov": Rule(_nesterov, ("momentum_buffer",)),
    "adagrad": Rule(_adagrad, ("sum",), counts=True),
    "rmsprop": Rule(_rmsprop, ("square_avg",), counts=True),
    "adam": Rule(_adam, ("exp_avg", "exp_avg_sq"), counts=True),
    "adamw": Rule(_adam, ("exp_avg", "exp_avg_sq"), decoupled=True, counts=True),
    "lion": Rule(_lion, ("exp_avg",), decoupled=True),
}
