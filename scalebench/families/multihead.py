"""Attention of several heads that share a width exactly: the check of a Config, and the FLOPs."""

from __future__ import annotations

from scalebench.errors import InputError


def check_heads(width: int, heads: int) -> None:
    """Raise ``InputError`` unless ``width`` is a multiple of ``heads``."""
    if width % heads:
        raise InputError(f"width: {width} is not a multiple of heads = {heads}")


def attention_flops(width: int, queries: int, keys: int, *, causal: bool = False) -> int:
    """FLOPs of scores and weighted sum for one sample, 4 T S C, halved where causal."""
    return 4 * queries * keys * width // (2 if causal else 1)
