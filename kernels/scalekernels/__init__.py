"""Fused Triton kernels, usable on their own with torch and triton alone."""

from __future__ import annotations

from scalekernels.device import unavailable_reason

__all__ = ["unavailable_reason"]
