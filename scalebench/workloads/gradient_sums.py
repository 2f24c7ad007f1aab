"""Linear layers whose weight gradient is added to a float32 buffer by the matrix product that computes it.

Autograd would write the gradient in 16 bits, and two more passes would convert it and add it to the sum over
micro-batches: 6 bytes per parameter for the first micro-batch and 10 for each further one. Here the product
total += dyᵀ x has a float32 result: 4 bytes for the first (written) and 8 for each further one (read and written),
which overlap its arithmetic, and no rounding to 16 bits. Megatron-LM calls this gradient accumulation fusion.

Symbols: x (…, I) input, dy (…, O) gradient of the output, weight (O, I), bias (O,).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any
from weakref import WeakValueDictionary

import torch
from scalekernels.cross_entropy.products import accumulate
from torch import Tensor, nn
from torch.nn import functional as F


class GradientSum:
    """The gradient of ``master`` (O, I) in float32, in ``buffer``, summed over backward passes.

    The first after ``master.grad`` was cleared overwrites the buffer and makes it the gradient; others add to it.
    """

    def __init__(self, master: Tensor, buffer: Tensor) -> None:
        self.master, self.buffer = master, buffer
        # A tensor, because a number would be compiled into the graph, and every layer would be compiled anew.
        self.key = torch.tensor(next(_KEYS))
        _SUMS[int(self.key)] = self


_KEYS = count()
_SUMS: WeakValueDictionary[int, GradientSum] = WeakValueDictionary()


@torch.library.custom_op("scalebench::add_weight_gradient", mutates_args=("total",))
def _add_weight_gradient(total: Tensor, key: Tensor, dy: Tensor, x: Tensor) -> None:
    """Add dyᵀ x to ``total``, the buffer of the gradient sum with this ``key`` (int64, (), on the CPU)."""
    master = _SUMS[int(key)].master
    fresh = master.grad is None
    accumulate(total, dy.t(), x, keep=not fresh)
    if fresh:
        master.grad = _SUMS[int(key)].buffer


@_add_weight_gradient.register_fake
def _(_total: Tensor, _key: Tensor, _dy: Tensor, _x: Tensor) -> None:
    return None


class _Product(torch.autograd.Function):
    """x weightᵀ + bias; backward returns no gradient of the weight but adds it to ``total``."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, total: Tensor, key: Tensor) -> Tensor:
        del total, key
        return F.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        del output
        x, weight, bias, total, key = inputs
        ctx.biased = bias is not None
        ctx.save_for_backward(x, weight)
        ctx.total, ctx.key = total, key  # not saved: autograd would refuse a buffer that another pass has added to

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        torch.ops.scalebench.add_weight_gradient(ctx.total, ctx.key, rows, x.reshape(-1, x.shape[-1]))
        return dy @ weight, None, rows.sum(0) if ctx.biased else None, None, None


_product: Callable[..., Tensor] = _Product.apply


class SummingLinear(nn.Linear):
    """A linear layer with the parameters of another, whose weight gradient goes to a ``GradientSum``."""

    def __init__(self, linear: nn.Linear, gradient: GradientSum) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.gradient, self.total, self.key = gradient, gradient.buffer, gradient.key
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """Return x weightᵀ + bias, (…, O)."""
        return _product(x, self.weight, self.bias, self.total, self.key)


def sum_gradients(module: nn.Module, sums: dict[int, GradientSum]) -> None:
    """Replace the linear layers in ``module`` whose weight's id is in ``sums`` by summing ones."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and id(child.weight) in sums:
                setattr(parent, name, SummingLinear(child, sums[id(child.weight)]))
