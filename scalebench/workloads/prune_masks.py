"""Unstructured pruning: single weights of the hidden matrices are set to zero, by torch.nn.utils.prune.

Only the matrices of ``hidden_matrices`` are pruned. A head tied to the embedding is not one of them: pruning it, as
``global_unstructured`` over all linear layers would, gives it separate weights and so unties it silently.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.optim import Optimizer

from scalebench.optim.optimizers import hidden_matrices

GROUP = 4  # 2:4 keeps two of these neighbours along a row


def prunable(model: nn.Module) -> dict[str, tuple[nn.Module, str]]:
    """Return the parameters that are pruned, each as (module, name) by its path: the matrices of hidden layers."""
    inner = hidden_matrices(model)
    return {
        f"{path}.{name}" if path else name: (module, name)
        for path, module in model.named_modules()
        for name, parameter in module.named_parameters(recurse=False)
        if id(parameter) in inner
    }


def group_of(path: str) -> str:
    """Return the group of a matrix by its path: "qkv" for blocks.0.attention.qkv.weight."""
    layer, _, name = path.rpartition(".")
    return layer.rpartition(".")[2] if name == "weight" and layer else name


def prune_weights(model: nn.Module, method: str, density: float, seed: int) -> dict[str, Tensor]:
    """Set the weights that a method removes to zero, in place, and return what remains as masks of ones and zeros.

    ``density`` is the share that remains: of all matrices together (magnitude-global, random), or of each
    (magnitude-layer, 2:4, which keeps half).
    """
    matrices = prunable(model)
    torch.manual_seed(seed)
    if method in GLOBAL:
        total = sum(getattr(module, name).numel() for module, name in matrices.values())
        amount = total - round(density * total)
        prune.global_unstructured(list(matrices.values()), pruning_method=GLOBAL[method], amount=amount)
    else:
        for module, name in matrices.values():
            weight = getattr(module, name)
            if method == "2:4":
                prune.custom_from_mask(module, name, two_of_four(weight))
            else:
                prune.l1_unstructured(module, name, amount=weight.numel() - round(density * weight.numel()))
    masks = {path: getattr(module, f"{name}_mask").clone() for path, (module, name) in matrices.items()}
    for module, name in matrices.values():
        prune.remove(module, name)
    return masks


GLOBAL = {"magnitude-global": prune.L1Unstructured, "random": prune.RandomUnstructured}


@torch.no_grad()
def two_of_four(weight: Tensor) -> Tensor:
    """Return the mask, (…, in), of the two largest of each four neighbours along the rows of a weight (…, in)."""
    groups = weight.abs().unflatten(-1, (-1, GROUP))
    mask = torch.zeros_like(groups).scatter_(-1, groups.topk(2, dim=-1).indices, 1.0)
    return mask.flatten(-2)


def hold(model: nn.Module, masks: Mapping[str, Tensor], optimizer: Optimizer) -> None:
    """Leave what was pruned at zero while the model is trained.

    Its gradients are zero, so that they count neither in the norm that is clipped nor in an optimizer's moments; and
    the masks are applied again after each step, as an optimizer may mix the entries of a matrix (Muon).
    """
    parameters = {path: model.get_parameter(path) for path in masks}
    for path, parameter in parameters.items():
        parameter.register_hook(lambda gradient, mask=masks[path]: gradient * mask)

    @torch.no_grad()
    def apply(*_: object) -> None:
        for path, parameter in parameters.items():
            parameter.mul_(masks[path])

    optimizer.register_step_post_hook(apply)


# --- what remains ----------------------------------------------------------------------------------------------------


def packed(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a sparse weight as the bits of its mask, packed into bytes, and its values other than zero."""
    flat = weight.detach().flatten()
    bits = (flat != 0).to(torch.uint8)
    whole = torch.nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8)
    powers = torch.tensor([1 << place for place in range(8)], dtype=torch.uint8, device=flat.device)
    return (whole * powers).sum(1, dtype=torch.uint8), flat[flat != 0]


def unpacked(bits: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Return the weight of a ``shape`` that ``packed`` took apart."""
    places = torch.arange(8, device=bits.device, dtype=torch.uint8)
    mask = (bits[:, None] >> places & 1).flatten()[: shape.numel()].bool()
    flat = torch.zeros(shape.numel(), dtype=values.dtype, device=values.device)
    flat[mask] = values
    return flat.view(shape)
