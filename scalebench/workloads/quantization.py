"""Weights in fewer bytes for inference: bfloat16, or 8-bit integers with a scale per row (weight only)."""

from __future__ import annotations

import torch
from scalekernels import Unsupported
from torch import nn


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
