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


def halves_combined(first: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What ``combine`` makes of the first axis, half by half."""
    while len(first) > 1:
        (first, next_first), (other, next_other) = first.chunk(2), other.chunk(2)
        first, other = first * 0.5 + next_first, other + next_first * next_other
    return first[0], other[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(("axis", "size"), [(0, 4), (1, 8)])
def test_a_reduction_combines_the_halves_of_a_block(axis, size, keep, dtype):
    source = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    reduced = torch.zeros(2, 2 * size, dtype=dtype)[0]
    reduce_pairs[(1,)](source, reduced, AXIS=axis, KEEP=keep, SIZE=size)
    assert torch.equal(reduced, torch.cat(halves_combined(source.movedim(axis, 0), (source + 1).movedim(axis, 0))))


@triton.jit
def smaller(first, other, next_first, next_other):
    is_smaller = next_first < first
    return tl.where(is_smaller, next_first, first), tl.where(is_smaller, next_other, other)


@triton.jit
def find_smallest(source, out, AXIS: tl.constexpr, SIZE: tl.constexpr):
    at = tl.arange(0, 8)[:, None] * 4 + tl.arange(0, 4)[None, :]
    value = tl.load(source + at)
    least, place = tl.reduce((value, at), AXIS, smaller)
    index = tl.arange(0, SIZE)
    tl.store(out + index, least + place)


@pytest.mark.parametrize(("axis", "size"), [(0, 4), (1, 8)])
def test_where_the_order_changes_nothing_reductions_are_those_by_numbers(monkeypatch, axis, size):
    source = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    halves, numbers = torch.zeros(2, size)
    find_smallest[(1,)](source, halves, AXIS=axis, SIZE=size)
    monkeypatch.setattr(interpreter.ReduceOps, "generic_reduce", quick_interpreter.reduce_numbers)
    find_smallest[(1,)](source, numbers, AXIS=axis, SIZE=size)
    assert numbers.any()
    assert torch.equal(halves, numbers)
