"""Weights at work in fewer bytes: cast to bfloat16, or 8-bit integers with a scale for each row (weight only)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scalebench.families import Unsupported


def with_weights(model: nn.Module, dtype: str) -> nn.Module:
    """Return the model, frozen, its weights in ``dtype``: float32, bfloat16, or int8 in its linear layers, by torchao.

    Embeddings, norms and biases stay float32 beside int8 weights; an output layer tied to an embedding gets a copy of
    its own. Raises ``Unsupported`` where there is no linear layer to hold in int8, or no torchao.
    """
    model.requires_grad_(False)
    if dtype != "int8":
        return model.to(getattr(torch, dtype))
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise Unsupported("int8 weights are those of linear layers, and this model has none")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unsupported(f"int8 weights need torchao ({error}): pip install torchao") from error
    quantize_(model, Int8WeightOnlyConfig())
    return model


def weight_bytes(model: nn.Module) -> int:
    """Return what the model's parameters and persistent buffers take, tied ones once."""
    stored = set(model.state_dict())
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored]
    return sum(_bytes(tensor) for tensor in [*model.parameters(), *buffers])


def _bytes(tensor: Tensor) -> int:
    """Return what a tensor takes: a quantised one claims the type it stands for, and holds others."""
    inner = getattr(tensor, "__tensor_flatten__", None)
    return sum(_bytes(getattr(tensor, name)) for name in inner()[0]) if inner else tensor.nbytes
