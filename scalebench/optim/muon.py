"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for matrices, stacks of them and convolutions.

    B = μ B + (1 - μ) G,  U = orthogonalised((1 - μ) G + μ B),  W = W (1 - rate · decay) - 0.2 · rate · √max(R, C) · U

G is the gradient of W (R, C). ``torch.optim.Muon`` takes matrices only; for those, both give the same numbers. A
parameter with three dimensions (E, R, C) is a stack, each matrix of which is orthogonalised alone; a convolution's
kernel (R, I, height, width) is one matrix (R, I · height · width). The factor gives the update the size of AdamW's (Liu
et al. 2025, ``match_rms_adamw`` in torch), so that both take the same learning rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scalebench.optim.fused import OptimizerSpec

Groups = Sequence[dict[str, Any]]  # parameter groups, each with its weight decay

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, by its author
ITERATIONS = 5
EPS = 1e-7
ADAMW_RMS = 0.2  # root mean square of AdamW's usual update


def orthogonalised(matrices: Tensor) -> Tensor:
    """Return U Vᵀ of each matrix (E, R, C), in bfloat16, with singular values of about 0.7 to 1.2 in place of 1."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=EPS)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def as_stack(parameter: Tensor) -> Tensor:
    """Return a stack of matrices (E, R, C): one of a matrix, and of a convolution's kernel (R, I, …)."""
    return parameter if parameter.ndim == 3 else parameter.flatten(1).unsqueeze(0)


class Muon(Optimizer):
    """Muon with Nesterov's momentum and decoupled weight decay. Raises ``ValueError`` for vectors."""

    def __init__(self, params: Iterable[Any], lr: float, weight_decay: float = 0.1, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.ndim < 2:
                    raise ValueError(f"a parameter has shape {tuple(parameter.shape)}; Muon takes matrices")

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(grad)
        averaged = state["momentum_buffer"].lerp_(grad, 1 - group["momentum"])
        update = orthogonalised(as_stack(grad.lerp(averaged, group["momentum"])))
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        rate = group["lr"] * ADAMW_RMS * math.sqrt(max(update.shape[1:]))
        parameter.add_(update.reshape(parameter.shape), alpha=-rate)


class MuonWithAdamW(Optimizer):
    """Muon for the groups marked ``hidden``, AdamW for the others, as one optimizer with one learning rate."""

    def __init__(
        self, groups: Groups, spec: OptimizerSpec, adamw: Callable[[Groups, OptimizerSpec], Optimizer]
    ) -> None:
        super().__init__(groups, {"lr": spec.learning_rate})
        hidden, others = ([group for group in groups if group["hidden"] is side] for side in (True, False))
        muon = Muon(hidden, spec.learning_rate, momentum=spec.momentum)
        self.parts = [muon, adamw(others, spec)]
        # Groups and state are shared with the parts, so that a schedule or a collector sees what they use.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, which the parts go on sharing."""
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # a closure would run twice
        """Let each part update its own parameters."""
        assert closure is None
        for part in self.parts:
            part.step()
