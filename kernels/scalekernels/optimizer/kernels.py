"""Device code of the fused optimizers: one program updates one chunk of one tensor, found through tables.

``pointers`` is an int64 table [ROWS, n] of addresses and lengths of n tensors; ``chunks`` an int32 table [chunks, 2] of
(tensor, chunk within it); ``scalars`` a float32 table [n, SCALARS] that ``advance_kernel`` fills once per step from the
options of the parameter groups, so that a new learning rate or step changes numbers in memory and never machine code.

A whole chunk whose tensors start on 16 bytes takes loads of 16 bytes; the tail of a tensor, and one that starts
elsewhere, takes masked loads of single elements, decided per chunk on the device. Offsets of chunks are 64 bits wide,
so tensors may exceed 2^31 elements.

Rounding. float32 to bfloat16 adds either half a unit (nearest, ties to even) or 16 random bits (stochastic) before the
lower half is cut; both act on the bit pattern, so compiled and interpreted kernels agree exactly. Random bits come from
a counter-based hash (two rounds of multiply and xor-shift per element, "lowbias32" by C. Wellons) of seed, step, tensor
and element: repeatable, in about a tenth of the instructions of Philox.

8-bit state, in blocks of 256 with the block's largest magnitude as scale, uses a logarithmic map: code c of L levels is
scale * 2^((c - L) * octaves / (L - 1)), and code 0 is zero. Levels: 127 with a sign over 16 octaves for the first
moment, 255 over 32 octaves for the second, whose positive values never take code 0 (the denominator of an update must
not vanish). A linear or square-root map loses the small values of a block: over simulated blocks whose gradients have
log-normal scales (sigma 1.5), stochastically rounded, the root-mean-square error of log sqrt(v) was 4.1 (linear), 0.65
(square root), 0.19 (fourth root) and 0.12 (this map) over 4,000 steps at beta2 0.999; that of m, relative to m, 1.6
(linear), 0.17 (square root) and 0.08 (this map) at beta1 0.9. Codes are rounded stochastically, because beta2 = 0.999
moves v by 0.1 % a step and codes are 9 % apart; between zero and the lowest level to nearest, because there noise would
exceed the value itself.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

CHUNK = 8192  # elements of a program: 15,200 programs at 124 million parameters, 115 for each of 132 processors
BLOCK = 1024  # elements of one iteration: 8 per thread, two loads of 16 bytes per float32 tensor, one per 16-bit tensor
TAIL = 512  # of one iteration with masks: with 1024 the branch for tails takes most registers (Adam: 72, not 52)
NUM_WARPS = 4
NORM_BLOCK = 2048  # 16 elements per thread, four loads of 16 bytes in flight
ADVANCE_BLOCK = 1024  # partial sums that a program takes at once
ADVANCE_TENSORS = 128  # tensors of a program
QUANTUM = tl.constexpr(256)  # elements that share a scale

PARAM, GRAD, STEP, FIRST, SECOND, THIRD, FIRST_SCALE, SECOND_SCALE, NUMEL, GROUP = range(10)
ROWS = 10
ROW_PARAM, ROW_GRAD, ROW_STEP = tl.constexpr(PARAM), tl.constexpr(GRAD), tl.constexpr(STEP)
ROW_FIRST, ROW_SECOND, ROW_THIRD = tl.constexpr(FIRST), tl.constexpr(SECOND), tl.constexpr(THIRD)
ROW_FIRST_SCALE, ROW_SECOND_SCALE = tl.constexpr(FIRST_SCALE), tl.constexpr(SECOND_SCALE)
ROW_NUMEL, ROW_GROUP = tl.constexpr(NUMEL), tl.constexpr(GROUP)

OPTIONS = 10  # columns of a group, float64: lr, weight decay, decoupled, sign, a, b, eps, c, flag, unused
COLUMNS = tl.constexpr(OPTIONS)
SCALARS = 16  # columns of a tensor, float32; the first twelve are used, padded to one cache line
STRIDE = tl.constexpr(SCALARS)


@triton.jit
def mix(x):
    """Hash 32 bits to 32 bits."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def to_bfloat16(x, bits, stochastic):
    """Round float32 to bfloat16 with 16 random bits, or to nearest even."""
    raw = x.to(tl.uint32, bitcast=True)
    raised = raw + tl.where(stochastic, bits, 0x7FFF + ((raw >> 16) & 1))
    raised = tl.where(x == x, raised, raw | 0x400000)  # noqa: PLR0124 - a NaN must stay one
    return (raised >> 16).to(tl.uint16).to(tl.bfloat16, bitcast=True)


@triton.jit
def to_code(x, scale, bits, stochastic, LEVELS: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the level (float32, 0 to LEVELS) of magnitudes x in [0, scale] on the logarithmic map."""
    coded = (x > 0) & (scale > 0) & (scale < float("inf"))
    ratio = tl.where(coded, x, 1.0) / tl.where(coded, scale, 1.0)
    exact = LEVELS + tl.log2(ratio) * ((LEVELS - 1) / OCTAVES)
    raised = tl.where(stochastic & (exact >= 1.0), bits.to(tl.float32) * (1.0 / 65536), 0.5)
    level = tl.floor(tl.maximum(exact, 0.0) + raised)
    return tl.where(coded, tl.minimum(level, LEVELS), 0.0)


@triton.jit
def from_code(level, scale, LEVELS: tl.constexpr, OCTAVES: tl.constexpr):
    """Return the magnitude of a level; a block that held inf or NaN comes back as NaN throughout."""
    factor = tl.exp2((level - LEVELS) * (OCTAVES / (LEVELS - 1)))
    return tl.where(level > 0, factor, 0.0) * scale


@triton.jit
def block_scale(x):
    """Return the largest magnitude of each row [R, 256] as [R, 1]; inf where a row has a value that is not finite."""
    magnitude = tl.where(x == x, tl.abs(x), float("inf"))  # noqa: PLR0124 - NaN counts as inf
    largest = tl.max(magnitude, axis=1)
    return tl.where(largest < 1.1754944e-38, 0.0, largest)[:, None]


@triton.jit
def load_tile(base, index, left, VECTOR: tl.constexpr):
    """Load elements as float32; past the end of the tensor they are zero."""
    tile = tl.load(base + index) if VECTOR else tl.load(base + index, mask=index < left, other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(base, index, left, value, VECTOR: tl.constexpr):
    """Store elements that are inside the tensor."""
    if VECTOR:
        tl.store(base + index, value)
    else:
        tl.store(base + index, value, mask=index < left)


@triton.jit
def load_state(base, scales, index, rows, left, SIGNED: tl.constexpr, VECTOR: tl.constexpr):
    """Load a tile of state as float32 whatever it is kept in."""
    value = load_tile(base, index, left, VECTOR)
    if base.dtype.element_ty.primitive_bitwidth == 8:
        scale = tl.load(scales + rows, mask=rows * QUANTUM < left, other=0.0)[:, None]
        if SIGNED:
            magnitude = from_code(tl.abs(value), scale, 127, 16)
            value = tl.where(value < 0, -magnitude, magnitude)
        else:
            value = from_code(value, scale, 255, 32)
    return value


@triton.jit
def store_state(base, scales, index, rows, left, value, bits, stochastic, SIGNED: tl.constexpr, VECTOR: tl.constexpr):
    """Store a tile of float32 values as state."""
    kept: tl.constexpr = base.dtype.element_ty
    if kept.primitive_bitwidth == 8:
        scale = block_scale(value)
        column = tl.zeros_like(scale).to(tl.int32)
        tl.store(scales + rows[:, None] + column, scale, mask=rows[:, None] * QUANTUM < left)
        if SIGNED:
            level = to_code(tl.abs(value), scale, bits, stochastic, 127, 16)
            code = tl.where(value < 0, -level, level).to(tl.int8)
        else:
            level = to_code(value, scale, bits, stochastic, 255, 32)
            code = tl.where(value > 0, tl.maximum(level, 1.0), 0.0).to(tl.int32).to(tl.uint8)
        store_tile(base, index, left, code, VECTOR)
    elif kept == tl.bfloat16:
        store_tile(base, index, left, to_bfloat16(value, bits, stochastic), VECTOR)
    else:
        store_tile(base, index, left, value, VECTOR)


@triton.jit
def new_values(p, g, m, v, c, scalars, ALGORITHM: tl.constexpr, M: tl.constexpr, C: tl.constexpr):
    """Return parameter and state after one step, all float32; scalars as ``advance_kernel`` writes them."""
    factor, shrink, decay, rate, a, b, eps, extra, a_rest, b_rest = scalars
    p = p * shrink
    g = g * factor
    if ALGORITHM == "lion":
        direction = a * m + a_rest * g
        p = p - rate * ((direction > 0).to(tl.float32) - (direction < 0).to(tl.float32))
        m = b * m + b_rest * g
    else:
        g = g + decay * p
    if ALGORITHM == "adam":
        m = m + a_rest * (g - m)
        v = b * v + b_rest * g * g
        p = p - rate * (m / (tl.sqrt(v) * extra + eps))
    if ALGORITHM == "adagrad":
        v = v + g * g
        p = p - rate * (g / (tl.sqrt(v) + eps))
    if ALGORITHM == "rmsprop":
        v = b * v + b_rest * g * g
        spread = v
        if C:
            c = c + extra * (g - c)
            spread = v - c * c
        step = g / (tl.sqrt(spread) + eps)
        if M:
            m = a * m + step
            step = m
        p = p - rate * step
    if ALGORITHM == "sgd":
        if M:
            m = a * m + extra * g
            g = tl.where(b > 0, g + a * m, m)
        p = p - rate * g
    return p, m, v, c


@triton.jit
def update_tile(
    p, g, first, second, third, first_scale, second_scale, scalars, key, start, left, stochastic,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Update BLOCK elements from ``start`` of a chunk; ``left`` are left in the tensor from its first."""
    rows = start // QUANTUM + tl.arange(0, BLOCK // QUANTUM)
    index = rows[:, None] * QUANTUM + tl.arange(0, QUANTUM)[None, :]
    noise = mix(key + index.to(tl.uint32))
    old = load_tile(p, index, left, VECTOR)
    grad = load_tile(g, index, left, VECTOR)
    m = load_state(first, first_scale, index, rows, left, True, VECTOR) if M else grad
    v = load_state(second, second_scale, index, rows, left, False, VECTOR) if V else grad
    c = load_tile(third, index, left, VECTOR) if C else grad
    new, m, v, c = new_values(old, grad, m, v, c, scalars, ALGORITHM, M, C)
    if M:
        store_state(first, first_scale, index, rows, left, m, noise & 0xFFFF, stochastic, True, VECTOR)
    if V:
        store_state(second, second_scale, index, rows, left, v, noise >> 16, stochastic, False, VECTOR)
    if C:
        store_tile(third, index, left, c, VECTOR)
    if p.dtype.element_ty == tl.bfloat16:
        store_tile(p, index, left, to_bfloat16(new, mix(noise ^ 0x9E3779B9) >> 16, stochastic), VECTOR)
    else:
        store_tile(p, index, left, new.to(p.dtype.element_ty), VECTOR)


@triton.jit
def address(pointers, row, n, tensor, USED: tl.constexpr):
    """Return an entry of the pointer table, or 0 where the algorithm keeps no such tensor."""
    found = tl.zeros((), tl.int64)
    if USED:
        found = tl.load(pointers + row * n + tensor)
    return found


@triton.jit
def place(start, offset, TYPE: tl.constexpr, BYTES: tl.constexpr):
    """Return a pointer ``offset`` elements after an address, known to be divisible by BYTES.

    The hint belongs to the operation that makes the pointer: the branch for unaligned tensors makes its own.
    """
    return tl.multiple_of(start.to(tl.pointer_type(TYPE)) + offset, BYTES)


@triton.jit
def update_chunk(
    p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, scalars, key, stochastic,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    PARAM_TYPE: tl.constexpr, FIRST_TYPE: tl.constexpr, SECOND_TYPE: tl.constexpr, STATE_BYTES: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Update the elements from ``offset``: CHUNK of them with wide loads, or with masks as many as are left."""
    p = place(p_at, offset, PARAM_TYPE, 16 if VECTOR else 1)
    g = place(g_at, offset, PARAM_TYPE, 16 if VECTOR else 1)
    first = place(m_at, offset, FIRST_TYPE, STATE_BYTES if VECTOR else 1)
    second = place(v_at, offset, SECOND_TYPE, STATE_BYTES if VECTOR else 1)
    third = place(c_at, offset, tl.float32, 16 if VECTOR else 1)
    first_scale = place(m_scale_at, offset // QUANTUM, tl.float32, 1)
    second_scale = place(v_scale_at, offset // QUANTUM, tl.float32, 1)
    for start in range(0, CHUNK, BLOCK):
        if VECTOR or start < left:
            update_tile(
                p, g, first, second, third, first_scale, second_scale, scalars, key, start, left, stochastic,
                ALGORITHM, M, V, C, BLOCK, VECTOR,
            )  # fmt: skip


@triton.jit(do_not_specialize=["n", "stochastic"])
def update_kernel(
    pointers, chunks, scalars, keys, n, stochastic,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    PARAM_TYPE: tl.constexpr, FIRST_TYPE: tl.constexpr, SECOND_TYPE: tl.constexpr, STATE_BYTES: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr,
):  # fmt: skip
    """Update one chunk. M, V, C say whether the first, second and third state exist."""
    program = tl.program_id(0).to(tl.int64)
    tensor = tl.load(chunks + 2 * program)
    chunk = tl.load(chunks + 2 * program + 1)
    g_at = tl.load(pointers + ROW_GRAD * n + tensor)
    if g_at != 0:
        offset = chunk.to(tl.int64) * CHUNK
        left = tl.load(pointers + ROW_NUMEL * n + tensor) - offset
        p_at = tl.load(pointers + ROW_PARAM * n + tensor)
        m_at = address(pointers, ROW_FIRST, n, tensor, M)
        v_at = address(pointers, ROW_SECOND, n, tensor, V)
        c_at = address(pointers, ROW_THIRD, n, tensor, C)
        m_scale_at = address(pointers, ROW_FIRST_SCALE, n, tensor, M)
        v_scale_at = address(pointers, ROW_SECOND_SCALE, n, tensor, V)
        row = scalars + tensor * STRIDE
        loaded = (
            tl.load(row), tl.load(row + 1), tl.load(row + 2), tl.load(row + 3), tl.load(row + 4),
            tl.load(row + 5), tl.load(row + 6), tl.load(row + 7), tl.load(row + 8), tl.load(row + 9),
        )  # fmt: skip
        key = mix(tl.load(keys + tensor).to(tl.uint32, bitcast=True) ^ mix(chunk.to(tl.uint32)))
        if (((p_at | g_at | m_at | v_at | c_at) & 15) == 0) & (left >= CHUNK):
            update_chunk(
                p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, loaded, key, stochastic != 0,
                ALGORITHM, M, V, C, PARAM_TYPE, FIRST_TYPE, SECOND_TYPE, STATE_BYTES, CHUNK, BLOCK, True,
            )  # fmt: skip
        else:
            update_chunk(
                p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, loaded, key, stochastic != 0,
                ALGORITHM, M, V, C, PARAM_TYPE, FIRST_TYPE, SECOND_TYPE, STATE_BYTES, CHUNK, TAIL, False,
            )  # fmt: skip


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
