"""Rounding of float32 in kernels: the same bits compiled and under Triton's interpreter."""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

import triton
import triton.language as tl

from scalekernels.device import INTERPRETED

COMPILED = tl.constexpr(not INTERPRETED)


@triton.jit
def to_bfloat16(x, bits, STOCHASTIC: tl.constexpr):
    """Round float32 to bfloat16 with 16 random bits, or to nearest even."""
    raw = x.to(tl.uint32, bitcast=True)
    raised = raw + (bits if STOCHASTIC else 0x7FFF + ((raw >> 16) & 1))
    raised = tl.where(x == x, raised, raw)  # noqa: PLR0124 - a NaN must stay one
    return (raised >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def rounded(x, dtype: tl.constexpr):
    """Round float32 to nearest even in ``dtype``. The interpreter's own conversion to bfloat16 cuts bits off."""
    if COMPILED or dtype != tl.bfloat16:
        return x.to(dtype)
    else:  # noqa: RET505 - a jit function returns from both branches or from neither
        return to_bfloat16(x, 0, False)
