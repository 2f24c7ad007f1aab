"""LoRA (Hu et al. 2021): a frozen matrix W (out, in) plus a trained product of low rank, W + (alpha / rank) B A.

A (rank, in) starts as U(-b, b) with b = sqrt(3 / in), B (out, rank) at zero, so the model starts as it was. The sum is
computed before the layer multiplies by it; ``merge`` therefore leaves exactly the weights that the layer used, and
outputs do not change by a bit.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from scalebench.errors import InputError, unknown


class LowRank(nn.Module):
    """The added product, as a parametrization of a weight of ``shape`` (out, in)."""

    def __init__(self, weight: Tensor, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = alpha / rank
        self.a = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.b = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        bound = math.sqrt(3 / weight.shape[1])
        nn.init.uniform_(self.a, -bound, bound)

    def forward(self, weight: Tensor) -> Tensor:  # (out, in)
        """Return the weight with the product added, (out, in)."""
        return weight + self.scale * (self.b @ self.a)


def matrices(model: nn.Module) -> dict[str, list[str]]:
    """Return the paths of the model's linear layers by the last part of their name: {"qkv": ["blocks.0.…", …], …}.

    Layers whose weight another module uses, too, are left out: adding to one would untie them.
    """
    modules = dict(model.named_modules())
    uses = Counter(id(parameter) for module in modules.values() for parameter in module.parameters(recurse=False))
    paths: dict[str, list[str]] = {}
    for path, module in modules.items():
        if path and isinstance(module, nn.Linear) and uses[id(module.weight)] == 1:
            paths.setdefault(path.rpartition(".")[2], []).append(path)
    return paths


def chosen(model: nn.Module, requested: str, rank: int) -> str:
    """Return the names of the matrices to adapt, joined by commas; ``requested`` is "all" or such names.

    "all" are the hidden layers, without those that a model names in ``OUTER``. Raises ``InputError`` for a model
    without matrices named so, and for a rank that one of them is too small for.
    """
    known = matrices(model)
    inner = [name for name in known if not set(known[name]) & set(getattr(model, "OUTER", ()))]
    requested_names = [name.strip() for name in requested.split(",")]
    names = inner if requested_names == ["all"] else requested_names
    if not names:
        raise InputError("finetune.method: lora needs linear layers inside the model, and this family has none")
    for name in names:
        if name not in known:
            raise InputError(f"finetune.matrices: {unknown(name, ['all', *known])}")
    smallest = min(min(model.get_submodule(path).weight.shape) for name in names for path in known[name])  # type: ignore[arg-type]
    if rank > smallest:
        raise InputError(f"finetune.rank: {rank} is above the smaller side of the smallest matrix, {smallest}")
    return ",".join(name for name in known if name in names)  # another order would make two trials of one


def adapt(model: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
    """Freeze the model and add a trained product of low rank to the matrices with these names, in place."""
    model.requires_grad_(requires_grad=False)
    paths = matrices(model)
    for path in (path for name in names for path in paths[name]):
        layer = model.get_submodule(path)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, alpha))  # type: ignore[arg-type]


def merge(model: nn.Module) -> None:
    """Replace every adapted weight by its sum, in place; names are those of a model that was never adapted."""
    for module in [module for module in model.modules() if parametrize.is_parametrized(module)]:
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)


def sizes(model: nn.Module, names: Sequence[str], rank: int) -> tuple[int, int]:
    """Return how many parameters products of this rank add to these matrices, and how many the matrices have."""
    paths, weights = matrices(model), dict(model.named_parameters())
    shapes = [weights[f"{path}.weight"].shape for name in names for path in paths[name]]
    return sum(rank * sum(shape) for shape in shapes), sum(math.prod(shape) for shape in shapes)


def trainable(model: nn.Module) -> int:
    """Return the number of parameters that are trained, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
