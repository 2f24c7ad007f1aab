"""Triton's interpreter with less repeated work computes what it computes without."""

from __future__ import annotations

import pytest
import quick_interpreter
import torch
import triton
import triton.language as tl
from triton.runtime import interpreter


@triton.jit
def combine(first, other, next_first, next_other):
    return first * 0.5 + next_first, other + next_first * next_other


@triton.jit
def reduce_pairs(source, out, AXIS: tl.constexpr, KEEP: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, 8)[:, None] * 4 + tl.arange(0, 4)[None, :]
    value = tl.load(source + at)
    sums, products = tl.reduce((value, value + 1), AXIS, combine, keep_dims=KEEP)
    index = tl.arange(0, SIZE)
    tl.store(out + index, tl.reshape(sums, (SIZE,)))
    tl.store(out + SIZE + index, tl.reshape(products, (SIZE,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("axis", "size"), [(0, 4), (1, 8)])
def test_reductions_by_slices_have_the_bits_of_those_by_numbers(monkeypatch, axis, size, keep, dtype):
    source = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    slices, numbers = torch.zeros(2, 2 * size, dtype=dtype)
    reduce_pairs[(1,)](source, slices, AXIS=axis, KEEP=keep, SIZE=size)
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", quick_interpreter._reduce_numbers)
    reduce_pairs[(1,)](source, numbers, AXIS=axis, KEEP=keep, SIZE=size)
    assert numbers.any()
    assert torch.equal(slices, numbers)
