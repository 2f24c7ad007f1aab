"""Device code that prepares a step: the norm of all gradients, then step count and scalars of each tensor.

``kernels`` describes the tables. Constants and device functions that both use are there.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from scalekernels.optimizer.kernels import (
    COLUMNS,
    ROW_GRAD,
    ROW_GROUP,
    ROW_NUMEL,
    ROW_STEP,
    STRIDE,
    load_tile,
    mix,
    place,
)


@triton.jit
def squares(g, start, left, total, BLOCK: tl.constexpr, VECTOR: tl.constexpr):
    """Add the squares of BLOCK elements to a vector of sums."""
    value = load_tile(g, start + tl.arange(0, BLOCK), left, VECTOR)
    return total + value * value


@triton.jit(do_not_specialize=["n", "done"])
def norm_kernel(
    pointers, chunks, partials, n, done, PARAM_TYPE: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Write the sum of squares of one chunk of gradient to its own place, so that the order of summing is fixed.

    ``done`` places belong to the chunks of other dtypes.
    """
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program)
    offset = tl.load(chunks + 2 * program + 1).to(tl.int64) * CHUNK
    g_at = tl.load(pointers + ROW_GRAD * n + tensor)
    total = tl.zeros([BLOCK], tl.float32)
    if g_at != 0:
        left = tl.load(pointers + ROW_NUMEL * n + tensor) - offset
        if ((g_at & 15) == 0) & (left >= CHUNK):
            g = place(g_at, offset, PARAM_TYPE, 16)
            for start in range(0, CHUNK, BLOCK):
                total = squares(g, start, left, total, BLOCK, True)
        else:
            g = place(g_at, offset, PARAM_TYPE, 1)
            for start in range(0, CHUNK, BLOCK):
                total = squares(g, start, left, total, BLOCK, False)
    tl.store(partials + done + program, tl.sum(total, axis=0))


@triton.jit
def clip_coefficient(partials, norm, count, limit, BLOCK: tl.constexpr):
    """Write the gradients' norm and return min(1, limit / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ does."""
    total = tl.zeros([BLOCK], tl.float64)
    start = 0
    while start < count:  # not range: Triton 3.6 interprets no range whose end is an argument
        index = start + tl.arange(0, BLOCK)
        start += BLOCK
        total += tl.load(partials + index, mask=index < count, other=0.0).to(tl.float64)
    size = tl.sqrt(tl.sum(total, axis=0)).to(tl.float32)
    tl.store(norm, size)
    coefficient = limit / (size + 1e-6)
    return tl.where(coefficient > 1.0, 1.0, coefficient)  # a norm that is NaN stays NaN, as in torch


@triton.jit(do_not_specialize=["n", "count", "seed_low", "seed_high"])
def advance_kernel(
    pointers, settings, partials, norm, scalars, keys, n, count, limit, seed_low, seed_high,
    ALGORITHM: tl.constexpr, CLIP: tl.constexpr, BLOCK: tl.constexpr, TENSORS: tl.constexpr,
):  # fmt: skip
    """Count the step of every tensor that has a gradient and write its scalars; each program some, before the update.

    Every program finishes the norm for itself, in the same order, and writes the same.

    Columns of scalars: 0 factor of the gradient (sign times clip coefficient), 1 factor of the parameter (decoupled
    decay), 2 decay added to the gradient, 3 step size, 4 a, 5 b, 6 eps, 7 extra, 8 1 - a, 9 1 - b; a and b are beta1
    and beta2 (Adam, Lion), momentum and alpha (RMSprop), momentum and the flag of Nesterov (SGD). Bias corrections are
    formed in float64, where 1 - 0.999^1 keeps its digits.
    """
    coefficient = tl.full((), 1.0, tl.float32)
    if CLIP:
        coefficient = clip_coefficient(partials, norm, count, limit, BLOCK)
    tensor = tl.program_id(0) * TENSORS + tl.arange(0, TENSORS)
    known = tensor < n
    active = known & (tl.load(pointers + ROW_GRAD * n + tensor, mask=known, other=0) != 0)
    step_at = tl.load(pointers + ROW_STEP * n + tensor, mask=known, other=0).to(tl.pointer_type(tl.float32))
    step = tl.load(step_at, mask=active, other=0.0) + 1.0
    tl.store(step_at, step, mask=active)
    option = settings + tl.load(pointers + ROW_GROUP * n + tensor, mask=known, other=0) * COLUMNS
    rate = tl.load(option, mask=active, other=0.0)
    decay = tl.load(option + 1, mask=active, other=0.0)
    decoupled = tl.load(option + 2, mask=active, other=0.0)
    sign = tl.load(option + 3, mask=active, other=1.0)
    a = tl.load(option + 4, mask=active, other=0.5)
    b = tl.load(option + 5, mask=active, other=0.5)
    eps = tl.load(option + 6, mask=active, other=0.0)
    extra = tl.load(option + 7, mask=active, other=0.0)
    now = step.to(tl.float64)
    shrink = 1.0 - rate * decay * decoupled
    if ALGORITHM == "adam":
        rate = rate / (1.0 - tl.where(a > 0, tl.exp(now * tl.log(tl.where(a > 0, a, 1.0))), 0.0))
        power = tl.where(b > 0, tl.exp(now * tl.log(tl.where(b > 0, b, 1.0))), 0.0)
        extra = 1.0 / tl.sqrt(1.0 - power)
    if ALGORITHM == "adagrad":
        rate = rate / (1.0 + (now - 1.0) * extra)  # extra is lr_decay
    if ALGORITHM == "sgd":
        extra = tl.where((now == 1.0) | (a == 0), 1.0, 1.0 - extra)  # extra is the dampening; the first is undamped
    row = scalars + tensor * STRIDE
    tl.store(row, sign.to(tl.float32) * coefficient, mask=active)
    tl.store(row + 1, shrink.to(tl.float32), mask=active)
    tl.store(row + 2, (decay * (1.0 - decoupled)).to(tl.float32), mask=active)
    tl.store(row + 3, rate.to(tl.float32), mask=active)
    tl.store(row + 4, a.to(tl.float32), mask=active)
    tl.store(row + 5, b.to(tl.float32), mask=active)
    tl.store(row + 6, eps.to(tl.float32), mask=active)
    tl.store(row + 7, extra.to(tl.float32), mask=active)
    tl.store(row + 8, (1.0 - a).to(tl.float32), mask=active)
    tl.store(row + 9, (1.0 - b).to(tl.float32), mask=active)
    seed = mix(seed_low.to(tl.uint32) ^ mix(seed_high.to(tl.uint32) + 0x9E3779B9))
    key = mix(mix(seed ^ step.to(tl.int32).to(tl.uint32)) + tensor.to(tl.uint32))
    tl.store(keys + tensor, key.to(tl.int32, bitcast=True), mask=active)
