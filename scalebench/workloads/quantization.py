"""Weights in fewer bytes for inference: bfloat16, or 8-bit integers with a scale per row (weight only)."""

from __future__ import annotations

import torch
from scalekernels import Unsupported
from torch import Tensor, nn


def with_weights(model: nn.Module, dtype: str) -> nn.Module:
    """Return the model, frozen, with weights in ``dtype``: float32, bfloat16, or int8 in linear layers (by torchao).

    With int8, embeddings, norms and biases stay float32, and an output layer tied to an embedding gets its own copy.
    Raises ``Unsupported`` for int8 without a linear layer or without torchao.
    """
    model.requires_grad_(False)
    if dtype != "int8":
        return model.to(getattr(torch, dtype))
    if not any(isinstance(module, nn.Linear) for module in model.modules()):
        raise Unsupported("only linear layers can have int8 weights, and this model has none")
    try:
        from torchao.quantization import Int8WeightOnlyConfig, quantize_  # type: ignore[import-untyped]
    except ImportError as error:
        raise Unsupported(f"int8 weights need torchao ({error}): pip install torchao") from error
    quantize_(model, Int8WeightOnlyConfig())
    return model


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the model's parameters and persistent buffers, tied ones once."""
    stored = set(model.state_dict())
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored]
    return sum(_bytes(tensor) for tensor in [*model.parameters(), *buffers])


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor; of a quantised one, those of the tensors inside."""
    inner = getattr(tensor, "__tensor_flatten__", None)
    return sum(_bytes(getattr(tensor, name)) for name in inner()[0]) if inner else tensor.nbytes
