"""Weights at work in fewer bytes: cast to bfloat16, or 8-bit integers with a scale for each row (weight only).

torch's own weight-only product (``_weight_int8pack_mm``) is not used: with torch 2.11 and 2.13 it crashed on a CPU for
bfloat16 inputs of 40 features, and took eleven times as long as a float32 product of 8 x 512 x 2048.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.families import Unsupported


class Int8Linear(nn.Module):
    """A linear layer whose weight (out, in) is held as int8, one scale for each output: w ~ scale * q, |q| <= 127.

    The weight is widened to the input's type for each product, so that memory is saved and arithmetic is not.
    """

    weight: Tensor
    scale: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(1)
        scale = torch.where(largest > 0, largest / 127, 1.0).to(linear.weight.dtype)
        self.register_buffer("weight", (weight / scale.float()[:, None]).round().clamp(-127, 127).to(torch.int8))
        self.register_buffer("scale", scale)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:  # (…, in)
        """Return x W^T + b, (…, out)."""
        product = F.linear(x, self.weight.to(x.dtype)) * self.scale
        return product if self.bias is None else product + self.bias


def with_weights(model: nn.Module, dtype: str) -> nn.Module:
    """Return the model with its weights in ``dtype``: float32, bfloat16, or int8 in its linear layers.

    Embeddings, norms and biases stay float32 beside int8 weights; an output layer tied to an embedding gets a copy of
    its own. Raises ``Unsupported`` where there is no linear layer to hold in int8.
    """
    if dtype != "int8":
        return model.to(getattr(torch, dtype))
    if isinstance(model, nn.Linear):
        return Int8Linear(model)
    linear = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise Unsupported("int8 weights are those of linear layers, and this model has none")
    for name, module in linear:
        model.set_submodule(name, Int8Linear(module))
    return model


def weight_bytes(model: nn.Module) -> int:
    """Return what the model's parameters and persistent buffers take, tied ones once."""
    stored = set(model.state_dict())
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored]
    return sum(tensor.nbytes for tensor in [*model.parameters(), *buffers])
