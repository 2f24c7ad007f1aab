"""The fused optimizers: torch's arguments and state names, mapped to the kernels' scalars."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

from scalekernels.optimizer.base import FusedOptimizer
from scalekernels.optimizer.launch import Variant
from scalekernels.optimizer.state import store


class Adam(FusedOptimizer, torch.optim.Adam):
    """``torch.optim.Adam``: arguments as there, and those of ``FusedOptimizer``."""

    first_name, second_name = "exp_avg", "exp_avg_sq"

    def variant(self) -> Variant:
        """Return the one kernel for all groups."""
        return Variant("adam", first=True, second=True)

    def options(self, group: Mapping[str, Any]) -> list[float]:
        """Return beta1, beta2, eps."""
        return [group["betas"][0], group["betas"][1], group["eps"]]


class AdamW(Adam, torch.optim.AdamW):
    """``torch.optim.AdamW``: arguments as there, and those of ``FusedOptimizer``; decay first, then the update."""


class SGD(FusedOptimizer, torch.optim.SGD):
    """``torch.optim.SGD``: arguments as there, and those of ``FusedOptimizer``; also keeps the number of steps."""

    first_name = "momentum_buffer"

    def variant(self) -> Variant:
        """Return the kernel with a momentum buffer if any group has momentum."""
        return Variant("sgd", first=any(group["momentum"] != 0 for group in self.param_groups))

    def options(self, group: Mapping[str, Any]) -> list[float]:
        """Return momentum, the Nesterov flag, unused, dampening."""
        return [group["momentum"], group["nesterov"], 0.0, group["dampening"]]


class Adagrad(FusedOptimizer, torch.optim.Adagrad):
    """``torch.optim.Adagrad``: arguments as there, and those of ``FusedOptimizer``."""

    second_name = "sum"

    def variant(self) -> Variant:
        """Return the one kernel for all groups."""
        return Variant("adagrad", second=True)

    def options(self, group: Mapping[str, Any]) -> list[float]:
        """Return unused, unused, eps, lr_decay."""
        return [0.0, 0.0, group["eps"], group["lr_decay"]]

    def __init__(self, params: Any, *arguments: Any, **options: Any) -> None:
        super().__init__(params, *arguments, **options)
        for group in self.param_groups:  # torch has made state already, rounded to the parameter's dtype
            for param in group["params"]:
                self.state[param] = self._fresh(param, [self.second_name])

    def _fresh_moment(self, param: torch.Tensor, name: str) -> dict[str, torch.Tensor]:
        moment = super()._fresh_moment(param, name)
        start = torch.full_like(param, self.defaults["initial_accumulator_value"], dtype=torch.float32)
        store(start, moment[name], moment.get(f"{name}_scale"))
        return moment


class RMSprop(FusedOptimizer, torch.optim.RMSprop):
    """``torch.optim.RMSprop``: arguments as there, and those of ``FusedOptimizer``."""

    first_name, second_name, third_name = "momentum_buffer", "square_avg", "grad_avg"

    def variant(self) -> Variant:
        """Return the kernel with a momentum buffer or a mean gradient if any group needs it."""
        momentum = any(group["momentum"] > 0 for group in self.param_groups)
        centered = any(group["centered"] for group in self.param_groups)
        return Variant("rmsprop", first=momentum, second=True, third=centered)

    def options(self, group: Mapping[str, Any]) -> list[float]:
        """Return momentum, alpha, eps, and the weight of a gradient in the mean gradient."""
        return [group["momentum"], group["alpha"], group["eps"], (1 - group["alpha"]) * bool(group["centered"])]


class Lion(FusedOptimizer, Optimizer):
    """Lion (Chen et al. 2023, arXiv:2302.06675): the sign of an interpolated momentum, with decoupled weight decay.

    ``lr``, ``betas`` and ``weight_decay`` as in the paper's program 1; ``maximize`` as in torch.
    """

    first_name = "exp_avg"

    def __init__(
        self,
        params: Any,
        lr: float | torch.Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        **options: Any,
    ) -> None:
        if not (isinstance(lr, torch.Tensor) or lr >= 0) or not weight_decay >= 0:
            raise ValueError(f"lr is {lr} and weight_decay {weight_decay}; allowed: numbers that are not negative")
        if not all(isinstance(beta, float | int) and 0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}; allowed: two numbers from 0 to below 1")
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "maximize": maximize}
        super().__init__(params, defaults, **options)

    def variant(self) -> Variant:
        """Return the one kernel for all groups."""
        return Variant("lion", first=True)

    def options(self, group: Mapping[str, Any]) -> list[float]:
        """Return beta1, beta2."""
        return [group["betas"][0], group["betas"][1]]
