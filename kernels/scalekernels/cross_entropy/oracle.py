"""Linear cross entropy in float64 by blocks of tokens, for shapes whose logits do not fit into memory."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from scalekernels.cross_entropy.cases import Case, Loss, class_weight

BLOCK_BYTES = 512 << 20  # of a block's float64 logits; autograd needs a few tensors of this size


def exact_results(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, losses: Loss, block_bytes: int = BLOCK_BYTES
) -> dict[str, Tensor]:
    """Return {"loss"}, or with ``backward`` the gradients {"x", "weight"}, in float64.

    ``losses(x, weight, target)`` returns the differentiable loss of each token; the reduction is applied here.
    """
    x, weight = (inputs[name].detach().double().requires_grad_(backward) for name in ("x", "weight"))
    target = inputs["target"]
    counted = (target != -100).sum().double()
    if (weights := class_weight(case, target.device, torch.float64)) is not None:
        counted = weights[target[target != -100]].sum()
    share = 1 / counted if case.reduction == "mean" else torch.ones_like(counted)
    rows = max(block_bytes // (8 * case.classes), 1)
    each: list[Tensor] = []
    gradients = [torch.zeros_like(tensor) for tensor in (x, weight)] if backward else []
    for first in range(0, case.tokens, rows):
        block = slice(first, first + rows)
        loss = losses(x[block], weight, target[block])
        each.append(loss.detach())
        if backward:
            grad_loss = (inputs["grad_loss"].double() * share).expand(case.tokens)[block]
            for gradient, part in zip(gradients, torch.autograd.grad(loss, (x, weight), grad_loss), strict=True):
                gradient.add_(part)
    if backward:
        return dict(zip(("x", "weight"), gradients, strict=True))
    loss = torch.cat(each)
    return {"loss": loss if case.reduction == "none" else loss.sum() * share}
