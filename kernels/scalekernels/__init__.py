"""Fused Triton kernels. This version ships none yet; ``unavailable_reason`` says so to whoever asks for them."""

from __future__ import annotations


def unavailable_reason() -> str | None:
    """Return why the fused kernels cannot be used here, or None when they can."""
    return "this version ships no fused kernels yet; use implementation = eager, sdpa or compile"
