"""Triton's interpreter with less repeated work computes what it computes without."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import quick_interpreter
import quick_operations
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


@pytest.mark.parametrize("names", [("fp32", "bf16"), ("bf16", "fp32")])
def test_conversions_by_moving_bits_have_the_bits_of_the_interpreters(names):
    random = np.random.default_rng(0)
    every = np.arange(2**16, dtype=np.uint16)
    wide = np.concatenate([every.astype(np.uint32) << 16, random.integers(0, 2**32, 5000, np.uint32)])
    values, bits, mantissa = (wide.view(np.float32), wide, 23) if names[0] == "fp32" else (every, every, 7)
    source, wanted = (tl.str_to_ty(name, None) for name in names)
    for part in (values, values[(bits >> mantissa) & 255 > 0]):  # with subnormal numbers and without
        quick = quick_operations.convert_float(part, source, wanted, None)
        assert np.array_equal(quick, quick_operations.general_convert(part, source, wanted, None))


@triton.jit
def operate(a, b, of_both, of_numbers, of_scalars, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    first, second = tl.load(a + at), tl.load(b + at, mask=at < SIZE - 1, other=3)
    tl.store(of_both + at, first * second + (second - first) - tl.where(first < second, first, second))
    tl.store(of_numbers + at, 3 - (first * 2 + 5))
    scalar = tl.load(b)
    tl.store(of_scalars + at, scalar * first + (first - scalar), mask=(at != 2) & (first > -4))


@pytest.mark.parametrize(
    "dtypes", [("int32", "int64"), ("int64", "int32"), ("float32", "float32"), ("int32", "float32")]
)
def test_operators_promote_broadcast_and_mask_as_torch_does(dtypes):
    a, b = (torch.arange(-5, 3).to(getattr(torch, name)) * scale for name, scale in zip(dtypes, (1, 3), strict=True))
    wider = torch.promote_types(a.dtype, b.dtype)
    of_both, of_numbers, of_scalars = (torch.full((8,), 77, dtype=kind) for kind in (wider, a.dtype, wider))
    operate[(1,)](a, b, of_both, of_numbers, of_scalars, SIZE=8)
    read = torch.cat([b[:-1], b.new_tensor([3])])
    assert torch.equal(of_both, a * read + (read - a) - torch.where(a < read, a.to(wider), read.to(wider)))
    assert torch.equal(of_numbers, 3 - (a * 2 + 5))
    chosen = (torch.arange(8) != 2) & (a > -4)
    assert torch.equal(of_scalars, torch.where(chosen, b[0] * a + (a - b[0]), torch.full_like(of_scalars, 77)))


@triton.jit
def access(a, out, BLOCK: tl.constexpr):
    row, column = tl.arange(0, 4), tl.arange(0, BLOCK)
    at = row[:, None] * BLOCK + column[None, :]
    inside = (column < BLOCK - 1)[None, :] & (row[:, None] > -1)
    whole, masked = tl.load(a + at), tl.load(a + at, mask=inside, other=0.0)
    filled, first = tl.load(a + at, mask=column[None, :] < 3, other=2.0), tl.load(a)  # a mask of another shape
    chosen = tl.where(inside, whole, 1.0) + tl.where(column[None, :] < 2, masked, filled)
    one = tl.where(first > 0, first, 4.0) + tl.where(inside, first, whole)
    tl.store(out + at, chosen + one, mask=inside)
    tl.store(out + 4 * BLOCK, first + tl.load(a + 1, mask=first > 100))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int32])
def test_reads_writes_and_choices_are_torchs(dtype):
    a = torch.arange(-15, 17).reshape(4, 8).to(dtype)
    out = torch.full((33,), 77, dtype=dtype)
    access[(1,)](a, out, BLOCK=8)
    column = torch.arange(8)[None, :]
    inside = (column < 7).expand(4, 8)
    masked, filled, first = a.where(inside, a.new_tensor(0)), a.where(column < 3, a.new_tensor(2)), a[0, 0]
    chosen = a.where(inside, a.new_tensor(1)) + masked.where(column < 2, filled)
    expected = chosen + (4 + first.where(inside, a))
    assert torch.equal(out[:32].view(4, 8), expected.where(inside, a.new_tensor(77)))
    assert out[32] == first


def test_what_does_not_fit_is_refused_as_by_triton():
    @triton.jit
    def wide_mask(a, out):
        at = tl.arange(0, 4)
        tl.store(out + at, tl.load(a + at, mask=tl.arange(0, 8) < 3))

    with pytest.raises(Exception, match=r"incompatible dimensions|Cannot make_shape_compatible"):
        wide_mask[(1,)](torch.zeros(8), torch.zeros(8))


@triton.jit
def integers(a, b, out, scalars, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    first, second = tl.load(a + at), tl.load(b + at)
    bits = (first.to(tl.uint32) * 3 + 1) ^ (first.to(tl.uint32) >> 30)
    tl.store(out + at, first // second)
    tl.store(out + SIZE + at, first % second)
    tl.store(out + 2 * SIZE + at, -(first >> 1) + (first << 2) + (17 // second) % 4)
    tl.store(out + 3 * SIZE + at, bits.to(tl.int32, bitcast=True))
    for place in tl.static_range(4):
        one, other = tl.load(a + place), tl.load(b + tl.constexpr(place))
        tl.store(scalars + place, one // other + tl.minimum(one, 2) * tl.maximum(other, 3).to(tl.int64))


def test_integers_are_divided_towards_zero_and_shifted_as_c_does():
    a, b = (
        torch.tensor(values, dtype=torch.int32) for values in ([-7, 7, 6, -(2**31), 5, 0, -1, 9], [2, -2, 7, 3] * 2)
    )
    out, scalars = torch.zeros(4, 8, dtype=torch.int32), torch.zeros(4, dtype=torch.int64)
    integers[(1,)](a, b, out, scalars, SIZE=8)
    quotient = torch.div(a, b, rounding_mode="trunc")
    assert torch.equal(out[0], quotient)
    assert torch.equal(out[1], torch.fmod(a, b))
    assert torch.equal(out[2], -(a >> 1) + (a << 2) + torch.fmod(torch.div(17, b, rounding_mode="trunc"), 4))
    wide = a.long() & 0xFFFFFFFF
    assert torch.equal(out[3].long() & 0xFFFFFFFF, ((wide * 3 + 1) & 0xFFFFFFFF) ^ (wide >> 30))
    assert torch.equal(scalars, (quotient + a.long().clamp(max=2) * b.clamp(min=3))[:4])


@triton.jit
def blocks(a, b, out, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    at = rows[:, None] * COLUMNS + columns[None, :]
    first = tl.load(a + at, mask=(rows < ROWS - 1)[:, None], other=-1.5).to(tl.float32)
    second = tl.load(b + at, mask=columns[None, :] > 0, other=0.0)
    product = tl.dot(first, tl.trans(first), input_precision="ieee")
    summed = tl.dot(product, second.to(tl.float32), tl.full((ROWS, COLUMNS), 0.5, tl.float32), input_precision="ieee")
    weights = tl.exp2(-tl.abs(summed)) + tl.sqrt(tl.abs(summed)) + tl.log2(tl.max(tl.abs(first), 1) + 1)[:, None]
    total = tl.sum(tl.sum(weights, 0)) + tl.sum(weights) - tl.max(weights, 0, keep_dims=True)
    tl.store(out + at, tl.where(columns[None, :] < 3, weights + total, float("nan")), mask=rows[:, None] > 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_blocks_are_multiplied_reduced_and_masked_by_rows_as_torch_does(dtype):
    a, b = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.full((16, 8), 77.0)
    blocks[(1,)](a, b, out, ROWS=16, COLUMNS=8)
    first, second = a.double(), b.double()
    first[-1], second[:, 0] = -1.5, 0.0
    summed = first @ first.mT @ second + 0.5
    weights = torch.exp2(-summed.abs()) + summed.abs().sqrt() + (first.abs().amax(1) + 1).log2()[:, None]
    expected = weights + 2 * weights.sum() - weights.amax(0, keepdim=True)
    assert torch.allclose(out[1:, :3].double(), expected[1:, :3], rtol=1e-5)
    assert out[1:, 3:].isnan().all()
    assert (out[0] == 77).all()


def test_constants_of_kernels_cannot_be_written_to():
    """They are shared by all launches."""
    semantic = interpreter.interpreter_semantic
    for made in (tl.arange(0, 8), tl.full((2, 2), 3.0, tl.float32), semantic.to_tensor(5)):
        with pytest.raises(ValueError, match="read-only"):
            made.handle.data += 1
    assert tl.arange(0, 8).handle.set_attr("tt.divisibility", [8]) is None
    assert tl.arange(0, 8).handle.attr == {}


@triton.jit
def with_default(out, value, scale: tl.constexpr = 2):
    tl.store(out, value * scale)


def test_launches_take_arguments_as_python_does():
    for arguments, named, expected in (((3,), {}, 6), ((), {"value": 4, "num_warps": 8}, 8), ((3,), {"scale": 5}, 15)):
        out = torch.zeros(1, dtype=torch.int32)
        with_default[(1,)](out, *arguments, **named)
        assert out.item() == expected
    for arguments, named in (((), {}), ((1, 2, 3), {}), ((1,), {"value": 2})):
        with pytest.raises(TypeError, match="argument"):
            with_default[(1,)](torch.zeros(1), *arguments, **named)


def test_the_same_source_in_two_modules_has_the_globals_of_each(tmp_path):
    source = "import triton\nimport triton.language as tl\nADDED = {}\n\n\n@triton.jit\ndef add(out):\n"
    source += "    x = 1\n    tl.store(out, tl.load(out) + x + ADDED)\n"
    for added in (10, 200):
        path = tmp_path / f"adding_{added}.py"
        path.write_text(source.format(f"tl.constexpr({added})"))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        out = torch.zeros(1, dtype=torch.int32)
        module.add[(1,)](out)
        assert out.item() == 1 + added
