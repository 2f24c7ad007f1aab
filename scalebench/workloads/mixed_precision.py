"""A 16-bit copy of a model beside its float32 parameters: weights cast once per step, gradients summed in float32.

The optimizer updates the float32 parameters. A working copy of the module shares everything but the parameters: those
of two dimensions or more, and the biases of linear layers, are copies in 16 bits; the weights of norms stay float32,
as the kernels expect. Per step and parameter this moves 6 bytes to cast the weight, and for each micro-batch 6 (the
first) or 10 bytes to bring its 16-bit gradient into a float32 buffer, against 16 under autocast, which casts weight
and gradient for each micro-batch. The weights of linear layers in blocks can do without the latter: their gradients
are summed by the matrix products themselves (``gradient_sums``).

Gradients are summed in float32: the sum of n micro-batches in bfloat16 would be rounded n - 1 times to 8 bits, and the
optimizer's moments and the norm that clips see float32 like those of every other implementation. The buffers keep
their addresses from the first step on, ``zero_grad`` or not, which a captured CUDA graph needs.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from scalebench.workloads.gradient_sums import GradientSum, sum_gradients

NORMS = (nn.LayerNorm, nn.RMSNorm)


class WorkingCopy:
    """``module`` computes in ``dtype``; its gradients are added to those of ``model``'s float32 parameters.

    ``refresh`` casts the weights anew: after every step of an optimizer given to ``follow``. With ``sum_in_products``
    the weight gradients of the blocks' linear layers are added by the products that compute them (``gradient_sums``).
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype, *, sum_in_products: bool = False) -> None:
        norms = {
            id(parameter) for norm in model.modules() if isinstance(norm, NORMS) for parameter in norm.parameters()
        }
        self.masters = list(model.parameters())  # tied ones once
        self.copies: list[torch.Tensor] = [
            nn.Parameter(master.detach().to(master.dtype if id(master) in norms else dtype, copy=True))
            for master in self.masters
        ]
        self.by_dtype: dict[torch.dtype, tuple[list[torch.Tensor], list[torch.Tensor]]] = {}
        for copied, master in zip(self.copies, self.masters, strict=True):
            copies, masters = self.by_dtype.setdefault(copied.dtype, ([], []))
            copies.append(copied)
            masters.append(master)
        self.buffers = [torch.empty_like(master) for master in self.masters]
        # deepcopy takes the copy of an object from its memo: the copied module gets the 16-bit parameters.
        memo: dict[int, Any] = {id(old): new for old, new in zip(self.masters, self.copies, strict=True)}
        memo |= {id(buffer): buffer for buffer in model.buffers()}
        self.module = copy.deepcopy(model, memo)
        if sum_in_products:
            self._sum_in_products()
        for index, parameter in enumerate(self.copies):
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: self._take(index))

    def _sum_in_products(self) -> None:
        """Let the matrix products of linear layers in blocks add their weights' gradients to the buffers."""
        blocks: Any = self.module.blocks
        linear = {id(layer.weight) for layer in blocks.modules() if isinstance(layer, nn.Linear)}
        sums = {
            id(copied): GradientSum(master, buffer)
            for copied, master, buffer in zip(self.copies, self.masters, self.buffers, strict=True)
            if id(copied) in linear
        }
        sum_gradients(blocks, sums)

    @torch.no_grad()
    def _take(self, index: int) -> None:
        """Move the gradient of a copy into its parameter's: the first after ``zero_grad`` replaces what is there."""
        part, self.copies[index].grad = self.copies[index].grad, None
        if part is None:  # a matrix product has added it already
            return
        master, buffer = self.masters[index], self.buffers[index]
        if master.grad is None:
            master.grad = buffer.copy_(part)
        else:
            buffer.add_(part)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast the weights anew: one operation for each dtype, since lists of several dtypes go tensor by tensor."""
        for copies, masters in self.by_dtype.values():
            torch._foreach_copy_(copies, masters)

    def follow(self, optimizer: Optimizer) -> None:
        """Cast the weights after every step that the optimizer takes."""
        optimizer.register_step_post_hook(lambda *_: self.refresh())

    def held_bytes(self) -> tuple[int, int]:
        """Return the bytes of the copies and of the gradient buffers."""
        return _bytes(self.copies), _bytes(self.buffers)


def _bytes(tensors: list[Any]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def computes_in(model: nn.Module, precision: str) -> torch.dtype | None:
    """Return the dtype of the working copy that a model needs at a precision; None if autocast is used."""
    keeps = getattr(model, "KEEPS_TYPE", False)
    return getattr(torch, precision) if keeps and precision != "float32" else None
