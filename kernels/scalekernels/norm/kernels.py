"""The Triton functions behind ``scalekernels.norm``, and the table of tiles that they are launched with.

Rows are vectors of C numbers whose last dimension has stride 1; any distance between rows. A tile holds ROWS rows of
BLOCK ≥ C numbers in registers. Rows wider than the widest tile are walked in blocks, twice: once for the statistics,
once for the result, the second time mostly out of the L2 cache. A pointer that is ``None`` leaves its part out.
Everything is computed in float32 and rounded once, where it is stored.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl

from scalekernels.rounding import rounded


@dataclass(frozen=True)
class Tile:
    """Rows and columns that one program holds at a time, the warps that share them, programs per multiprocessor."""

    rows: int
    block: int
    num_warps: int
    programs: int = 1  # of a kernel whose programs take every programs-th tile; they are resident together


# Tiles by block, the smallest block that holds a row. No GPU has been at hand to time them: the evidence is what ptxas
# says for sm_80, sm_90 and sm_100: no spills for any dtype, kind or residual, 16-byte loads and stores, and registers
# that let as many programs of the backward be resident as the last column says (16-bit layer norm, the largest).
FORWARD_TILES = {
    128: Tile(16, 128, 4),
    256: Tile(8, 256, 4),
    512: Tile(4, 512, 4),
    1024: Tile(2, 1024, 4),
    2048: Tile(1, 2048, 4),
    4096: Tile(1, 4096, 4),
    8192: Tile(1, 8192, 8),
}
BACKWARD_TILES = {
    128: Tile(16, 128, 4, 4),
    256: Tile(8, 256, 4, 4),
    512: Tile(4, 512, 4, 4),
    1024: Tile(2, 1024, 4, 4),
    2048: Tile(1, 2048, 4, 4),
    4096: Tile(1, 4096, 8, 2),
    8192: Tile(1, 8192, 16, 1),
}
WIDEST = 8192
WIDE_TILE = Tile(1, 4096, 8)  # a row in blocks
WIDE_PARAMETERS_TILE = Tile(4, 1024, 4, 4)  # a band of columns, rows in blocks
NUM_STAGES = 1  # of loops that do not say otherwise
# Bytes of the next tiles that the programs of one multiprocessor copy while they compute on the present ones. At
# 4.2 TB/s (H200), two thirds of it reads, and about 1 us of latency under load, 132 multiprocessors need 21 KB each in
# flight at every moment; several times that keeps copies going while programs wait for sums over a row. All programs of
# a multiprocessor fit into the 100 KB that consumer devices have.
IN_FLIGHT_BYTES = 96 << 10
MOST_BUFFERS = 3
WIDE_STAGES = tl.constexpr(3)
FINISH_TILE = Tile(512, 32, 16)  # of partial sums: a program adds those of 32 columns, of up to 512 programs at once


def keeps_weight(tile: Tile, itemsize: int, layer: bool) -> bool:
    """Return whether the backward keeps weight in registers; beyond, fewer programs are resident, or it spills."""
    return tile.block <= (WIDEST if not layer else 4096 if itemsize == 2 else 1024)


def stages(tile: Tile, itemsize: int, layer: bool, residual: bool) -> int:
    """Return the stages of the backward's loop over tiles: one more than it has buffers.

    They hold tiles of the gradient, the rows, a residual's gradient, and of weight where registers do not.
    """
    tensors = 2 + residual + (not keeps_weight(tile, itemsize, layer)) / tile.rows
    tile_bytes = tile.programs * tile.rows * tile.block * itemsize * tensors
    return 1 + max(1, min(MOST_BUFFERS, int(IN_FLIGHT_BYTES / tile_bytes)))


def tile_for(tiles: dict[int, Tile], width: int) -> Tile:
    """Return the tile that holds rows of ``width`` columns, or the one to walk wider rows with."""
    return next((tile for block, tile in tiles.items() if width <= block), WIDE_TILE)


@triton.jit
def load_sum(x, residual, x_at, residual_at, inside):
    """x, or x + residual rounded to their precision: what is normalised."""
    value = tl.load(x + x_at, mask=inside, other=0.0)
    if residual is not None:
        other = tl.load(residual + residual_at, mask=inside, other=0.0)
        value = rounded(value.to(tl.float32) + other.to(tl.float32), value.dtype)
    return value


@triton.jit
def affine(value, weight, bias, column, width):
    """Value · weight + bias, for a tile of rows."""
    if weight is not None:
        scale = tl.load(weight + column, mask=column < width, other=0.0).to(tl.float32)
        value = value * scale[None, :]
    if bias is not None:
        value = value + tl.load(bias + column, mask=column < width, other=0.0).to(tl.float32)[None, :]
    return value


@triton.jit
def forward(
    x, residual, weight, bias, out, summed, mean, rstd, rows, width, x_stride, residual_stride, eps,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Normalise ROWS rows that fit a tile; ``mean`` given means layer norm, else RMS norm."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    present = row < rows
    inside = present[:, None] & (column < width)[None, :]
    at = row[:, None] * width + column[None, :]
    value = load_sum(
        x, residual, row[:, None] * x_stride + column[None, :], row[:, None] * residual_stride + column[None, :], inside
    )
    if summed is not None:
        tl.store(summed + at, value, mask=inside)
    value = value.to(tl.float32)
    if mean is not None:
        centre = tl.sum(value, axis=1) / width
        tl.store(mean + row, centre, mask=present)
        value = tl.where(inside, value - centre[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(value * value, axis=1) / width + eps)
    tl.store(rstd + row, scale, mask=present)
    result = affine(value * scale[:, None], weight, bias, column, width)
    tl.store(out + at, rounded(result, out.dtype.element_ty), mask=inside)


@triton.jit
def forward_wide(
    x, residual, weight, bias, out, summed, mean, rstd, rows, width, x_stride, residual_stride, eps,  # noqa: ARG001
    ROWS: tl.constexpr, BLOCK: tl.constexpr,  # noqa: ARG001 - the signature is that of forward
):  # fmt: skip
    """Normalise one row in blocks; means and squared deviations of blocks are merged by Chan's formula."""
    row = tl.program_id(0).to(tl.int64)
    x += row * x_stride
    if residual is not None:
        residual += row * residual_stride
    centre = 0.0
    squares = 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        value = load_sum(x, residual, column, column, inside).to(tl.float32)
        if mean is not None:
            count = tl.minimum(width - start, BLOCK)
            block_mean = tl.sum(value) / count
            value = tl.where(inside, value - block_mean, 0.0)
            difference = block_mean - centre
            share = count / (start + count)
            centre += difference * share
            squares += difference * difference * share * start
        squares += tl.sum(value * value)
    scale = tl.rsqrt(squares / width + eps)
    tl.store(rstd + row, scale)
    if mean is not None:
        tl.store(mean + row, centre)
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        value = load_sum(x, residual, column, column, inside)
        if summed is not None:
            tl.store(summed + row * width + column, value, mask=inside)
        value = (value.to(tl.float32) - centre) * scale
        if weight is not None:
            value *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        if bias is not None:
            value += tl.load(bias + column, mask=inside, other=0.0).to(tl.float32)
        tl.store(out + row * width + column, rounded(value, out.dtype.element_ty), mask=inside)


@triton.jit
def add_pairs(first, second, other_first, other_second):
    """Sum two quantities in one reduction, so that warps wait for each other once."""
    return first + other_first, second + other_second


@triton.jit
def backward(  # noqa: C901 - each branch is one optional pointer
    grad, grad_summed, summed, weight, mean, rstd, dx, dweight, dbias, rows, width, grad_stride, grad_summed_stride,
    summed_stride, ROWS: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Gradients of the rows, every programs-th tile of them; of the parameters, this program's part of the sums.

    With x̂ the normalised row and g = gradient · weight: dx = rstd · (g − x̂·mean(g·x̂) − mean(g)), the last term for
    layer norm alone; dweight = Σ gradient·x̂ and dbias = Σ gradient over rows. ``dweight`` and ``dbias`` are
    (programs, C) in float32.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    column = tl.arange(0, BLOCK)
    valid = column < width
    weight_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    bias_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    share = 1.0 / width
    if weight is not None and KEEP:
        factor = tl.load(weight + column, mask=valid, other=0.0).to(tl.float32)
    for tile in tl.range(program, tl.cdiv(rows, ROWS), programs, num_stages=STAGES):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        present = row < rows
        inside = present[:, None] & valid[None, :]
        incoming = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=inside, other=0.0)
        incoming = incoming.to(tl.float32)
        value = tl.load(summed + row[:, None] * summed_stride + column[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32)
        scale = tl.load(rstd + row, mask=present, other=0.0)
        if mean is not None:  # where columns are masked, incoming is 0, so value does not matter
            value -= tl.load(mean + row, mask=present, other=0.0)[:, None]
        value *= scale[:, None]
        if dweight is not None:
            weight_sum += incoming * value
        if dbias is not None:
            bias_sum += incoming
        if weight is not None:
            if not KEEP:
                factor = tl.load(weight + column, mask=valid, other=0.0).to(tl.float32)
            incoming *= factor[None, :]
        if mean is not None:
            product, total = tl.reduce((incoming * value, incoming), 1, add_pairs)
            result = incoming * scale[:, None] - (total * share * scale)[:, None]
        else:
            product = tl.sum(incoming * value, axis=1)
            result = incoming * scale[:, None]
        result -= value * (product * share * scale)[:, None]
        if grad_summed is not None:
            more = tl.load(grad_summed + row[:, None] * grad_summed_stride + column[None, :], mask=inside, other=0.0)
            result += more.to(tl.float32)
        tl.store(dx + row[:, None] * width + column[None, :], rounded(result, dx.dtype.element_ty), mask=inside)
    part = program.to(tl.int64) * width + column
    if dweight is not None:
        tl.store(dweight + part, tl.sum(weight_sum, axis=0), mask=valid)
    if dbias is not None:
        tl.store(dbias + part, tl.sum(bias_sum, axis=0), mask=valid)


@triton.jit
def backward_wide(
    grad, grad_summed, summed, weight, mean, rstd, dx, dweight, dbias, rows, width,  # noqa: ARG001
    grad_stride, grad_summed_stride, summed_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr, KEEP: tl.constexpr, STAGES: tl.constexpr,  # noqa: ARG001 - as backward
):  # fmt: skip
    """The rows' gradients as in ``backward``, one row in blocks; the parameters' are ``parameters_wide``'s."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(rstd + row)
    centre = 0.0
    if mean is not None:
        centre = tl.load(mean + row)
    products = 0.0
    total = 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        incoming = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            incoming *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(summed + row * summed_stride + column, mask=inside, other=0.0).to(tl.float32)
        products += tl.sum(incoming * (value - centre) * scale)
        total += tl.sum(incoming)
    products /= width
    total /= width
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        incoming = tl.load(grad + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
        if weight is not None:
            incoming *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
        value = tl.load(summed + row * summed_stride + column, mask=inside, other=0.0).to(tl.float32)
        result = incoming - (value - centre) * scale * products
        if mean is not None:
            result -= total
        result *= scale
        if grad_summed is not None:
            more = tl.load(grad_summed + row * grad_summed_stride + column, mask=inside, other=0.0)
            result += more.to(tl.float32)
        tl.store(dx + row * width + column, rounded(result, dx.dtype.element_ty), mask=inside)


@triton.jit
def parameters_wide(
    grad, summed, mean, rstd, dweight, dbias, rows, width, grad_stride, summed_stride,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The parameters' gradients as in ``backward`` for one band of columns; programs are (part, band)."""
    program = tl.program_id(0)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = column < width
    weight_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    bias_sum = tl.zeros((ROWS, BLOCK), tl.float32)
    for tile in tl.range(program, tl.cdiv(rows, ROWS), tl.num_programs(0), num_stages=WIDE_STAGES):
        row = tile * ROWS + tl.arange(0, ROWS).to(tl.int64)
        present = row < rows
        inside = present[:, None] & valid[None, :]
        incoming = tl.load(grad + row[:, None] * grad_stride + column[None, :], mask=inside, other=0.0)
        incoming = incoming.to(tl.float32)
        value = tl.load(summed + row[:, None] * summed_stride + column[None, :], mask=inside, other=0.0)
        value = value.to(tl.float32)
        if mean is not None:
            value -= tl.load(mean + row, mask=present, other=0.0)[:, None]
        weight_sum += incoming * value * tl.load(rstd + row, mask=present, other=0.0)[:, None]
        if dbias is not None:
            bias_sum += incoming
    part = program.to(tl.int64) * width + column
    if dweight is not None:
        tl.store(dweight + part, tl.sum(weight_sum, axis=0), mask=valid)
    if dbias is not None:
        tl.store(dbias + part, tl.sum(bias_sum, axis=0), mask=valid)


@triton.jit
def finish(dweight_parts, dbias_parts, dweight, dbias, parts, width, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Add the programs' partial sums (parts, C) in a fixed order; round to the parameters' dtype.

    Programs are (block of columns, parameter); where only one parameter is wanted, the second axis has one program.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    if dbias is None:
        add_parts(dweight_parts, dweight, parts, width, column, ROWS)
    elif dweight is None:
        add_parts(dbias_parts, dbias, parts, width, column, ROWS)
    elif tl.program_id(1) == 0:
        add_parts(dweight_parts, dweight, parts, width, column, ROWS)
    else:
        add_parts(dbias_parts, dbias, parts, width, column, ROWS)


@triton.jit
def add_parts(source, target, parts, width, column, ROWS: tl.constexpr):
    """Store the sum over the rows of (parts, width) at some columns."""
    total = tl.zeros((ROWS, column.shape[0]), tl.float32)
    for start in range(0, parts, ROWS):
        row = start + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < parts)[:, None] & (column < width)[None, :]
        total += tl.load(source + row[:, None] * width + column[None, :], mask=inside, other=0.0)
    tl.store(target + column, rounded(tl.sum(total, axis=0), target.dtype.element_ty), mask=column < width)
