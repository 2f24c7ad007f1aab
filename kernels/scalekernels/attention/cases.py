"""Cases of attention for checks and comparisons, their inputs and costs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekernels.cost import Cost

_DTYPE_LABELS = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64"}


@dataclass(frozen=True)
class Case:
    """One attention: shapes, whether it is causal (top left: query i sees keys up to i), and the dtype."""

    batch: int
    query_heads: int
    key_heads: int
    query_length: int
    key_length: int
    head_dimension: int
    causal: bool
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """For example ``B1 H8/2 T512 D64 bf16 causal``; with different lengths ``T512x300``."""
        heads = f"{self.query_heads}" + (f"/{self.key_heads}" if self.key_heads != self.query_heads else "")
        length = f"{self.query_length}" + (f"x{self.key_length}" if self.key_length != self.query_length else "")
        kind = "causal" if self.causal else "full"
        return f"B{self.batch} H{heads} T{length} D{self.head_dimension} {_DTYPE_LABELS[self.dtype]} {kind}"


# Lengths that are no multiple of a tile, more queries than keys and fewer, one row, one key, groups of 1, 2 and 3.
CASES = (
    Case(2, 1, 1, 37, 37, 64, True, torch.float32),
    Case(1, 2, 1, 64, 64, 32, False, torch.float32),
    Case(1, 2, 1, 53, 101, 64, True, torch.float32),
    Case(1, 2, 2, 101, 53, 16, True, torch.float32),
    Case(1, 2, 1, 70, 33, 64, False, torch.float16),
    Case(1, 3, 1, 65, 65, 64, True, torch.float16),
    Case(1, 1, 1, 33, 47, 128, True, torch.float16),
    Case(1, 1, 1, 19, 35, 256, False, torch.float16),
    Case(2, 2, 2, 1, 40, 32, False, torch.float32),
    Case(1, 2, 2, 1, 1, 16, True, torch.float32),
)


def _ladder() -> Iterator[Case]:
    for head_dimension, heads in ((128, 16), (64, 32)):
        for causal in (False, True):
            for length in (1024, 2048, 4096, 8192, 16384):
                yield Case(16384 // length, heads, heads, length, length, head_dimension, causal, torch.bfloat16)
    for causal in (False, True):  # the shapes of cuDNN's published figures: 64 query heads over 8 key heads
        for length in (2048, 4096, 8192, 16384, 32768):
            yield Case(1, 64, 8, length, length, 128, causal, torch.bfloat16)


LADDER = tuple(_ladder())

# For the GPU check: odd lengths in every bucket of both tile tables, so that every tile is launched, and groups; and
# head dimensions that are padded.
LARGER = (
    *(
        Case(1, 2, 1, length, length, head_dimension, causal, torch.bfloat16)
        for head_dimension in (16, 32, 64, 128, 256)
        for length in (193, 1153, *([2305] if head_dimension in (64, 128) else []))
        for causal in (False, True)
    ),
    *(Case(1, 2, 1, 193, 193, head_dimension, True, torch.bfloat16) for head_dimension in (80, 192)),
)
# Shapes where speed matters: long sequences, grouped heads, and those of a small GPT.
GOALS = (
    *(
        Case(1, 16, 16, 8192, 8192, head_dimension, causal, torch.bfloat16)
        for head_dimension in (64, 128)
        for causal in (False, True)
    ),
    Case(1, 32, 8, 4096, 4096, 128, True, torch.bfloat16),
    Case(8, 12, 12, 1024, 1024, 64, True, torch.bfloat16),
)


def inputs(case: Case, device: torch.device | str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """``q``, ``k``, ``v`` and the incoming gradient ``grad_out``, normally distributed.

    They are drawn on the device, so they depend on the seed and the kind of device.
    """
    generator = torch.Generator(device).manual_seed(seed)
    queries = (case.batch, case.query_heads, case.query_length, case.head_dimension)
    keys = (case.batch, case.key_heads, case.key_length, case.head_dimension)
    shapes = {"q": queries, "k": keys, "v": keys, "grad_out": queries}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float32, device=device).to(case.dtype)
        for name, shape in shapes.items()
    }


def flops(batch: int, heads: int, query_length: int, key_length: int, head_dimension: int, causal: bool) -> int:
    """FLOPs of the forward pass, 4·B·H·Tq·Tk·D, halved if causal: the convention of FlashAttention's authors.

    The backward pass counts 2.5 times as much, whether scores are recomputed once or twice.
    """
    return 4 * batch * heads * query_length * key_length * head_dimension // (2 if causal else 1)


def cost(case: Case, backward: bool) -> Cost:
    """FLOPs by the convention of :func:`flops`, and bytes with every tensor read or written once."""
    queries = case.batch * case.query_heads * case.query_length
    query_bytes = queries * case.head_dimension * case.dtype.itemsize
    key_bytes = case.batch * case.key_heads * case.key_length * case.head_dimension * case.dtype.itemsize
    lse_bytes = queries * 4
    forward_flops = flops(
        case.batch, case.query_heads, case.query_length, case.key_length, case.head_dimension, case.causal
    )
    if not backward:  # read q, k, v; write out and lse
        return Cost(forward_flops, query_bytes + 2 * key_bytes, query_bytes + lse_bytes)
    # read q, k, v, out, grad_out and lse; write grad_q, grad_k and grad_v
    return Cost(forward_flops * 5 // 2, 3 * query_bytes + 2 * key_bytes + lse_bytes, query_bytes + 2 * key_bytes)
