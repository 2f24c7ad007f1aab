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

8-bit state, in blocks of 256 with the block's largest magnitude as scale, is a small floating-point number: a sign, 4
bits of exponent and 3 of mantissa for the first moment, 5 and 3 for the second, which has no sign. Level c with
exponent field e = c // 8 and mantissa m = c % 8 is (1 + m / 8) * 2^(e - top) for e > 0 and m / 8 * 2^(1 - top) for e =
0, times scale / 1.875, where ``top`` is 15 (levels 0 to 127) or 31 (levels 0 to 255), so that the highest level is the
scale. Level 0 is zero; a second moment that is not zero never takes it (the denominator of an update must not vanish).
Such a number is the upper part of a float32 bit pattern: coding is a product, an addition of random bits and a shift,
decoding a shift and two products, where a logarithmic map of the same range took a logarithm and an exponential: 64
instructions per element with bfloat16 parameters where that took 198, at the same quality. Over simulated blocks whose
gradients have log-normal scales (sigma 1.5), 4,000 steps, stochastically rounded: the root-mean-square error of log
sqrt(v) at beta2 0.999 is 0.115 for this map and 0.116 for the logarithmic one (linear: 4.1, square root: 0.65, fourth
root: 0.19); that of m, relative to m, at beta1 0.9 is 0.086 and 0.084 (linear: 1.6, square root: 0.17). Codes are
rounded stochastically, because beta2 = 0.999 moves v by 0.1 % a step and levels are 6 to 12 % apart; the levels being
linear between powers of two, the expected value is the value itself.
"""

# mypy: allow-untyped-defs, allow-untyped-decorators, allow-untyped-calls, allow-incomplete-defs
from __future__ import annotations

import triton
import triton.language as tl

from scalekernels.rounding import COMPILED, to_bfloat16

CHUNK = 8192  # elements of a program: 15,200 programs at 124 million parameters, 115 for each of 132 processors
BLOCK = 1024  # elements of one iteration: 8 per thread, two loads of 16 bytes per float32 tensor, one per 16-bit tensor
TAIL = 512  # of one iteration with masks: with 1024 the branch for tails takes most registers (Adam: 72, not 52)
NUM_WARPS = 4
STAGES = 1  # of the loop over blocks; the copies of more have not been timed
NORM_BLOCK = 2048  # 16 elements per thread, four loads of 16 bytes in flight
ADVANCE_BLOCK = 1024  # partial sums that a program takes at once
ADVANCE_TENSORS = 128  # tensors of a program
QUANTUM = tl.constexpr(256)  # elements that share a scale
LARGEST = tl.constexpr(1.875)  # the largest level's magnitude; its scale is the block's largest magnitude
SIGNED_UNIT = tl.constexpr(2.0**-112)  # from magnitudes to bit patterns: exponent 15 of the code is that of 1
POSITIVE_UNIT = tl.constexpr(2.0**-96)  # exponent 31

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
def noise_of(x):
    """Hash 32 bits, a key plus an element's number, to 32 bits of which the upper ones are as good as any.

    This is ``mix`` without its first shift, which numbers below 2^16 would not feel, nor its last, which serves the
    lower bits.
    """
    x = x * 0x7FEB352D
    return (x ^ (x >> 15)) * 0x846CA68B


@triton.jit
def draw(noise, STREAM: tl.constexpr, BITS: tl.constexpr):
    """Return BITS random bits of ``noise``. Streams 0, 1, 2 are its upper bits after multiplication by odd numbers.

    Whatever the upper half of ``noise``, its lower half makes the upper bits of such a product uniform: any two streams
    are independent.
    """
    if STREAM == 1:
        noise = noise * 0x9E3779B1
    if STREAM == 2:
        noise = noise * 0x85EBCA77
    return noise >> (32 - BITS)


@triton.jit
def to_level(x, inverse, bits, STOCHASTIC: tl.constexpr, UNIT: tl.constexpr):
    """Return the level of magnitudes x in [0, scale], rounded with 20 random bits or to nearest, as int32.

    The product with UNIT makes the levels' steps those of the float32 bit pattern from bit 20 on, its denormals
    included; a carry out of the mantissa goes to the next exponent, which is the next level.
    """
    raw = (x * inverse * UNIT).to(tl.int32, bitcast=True)
    return (raw + (bits.to(tl.int32) if STOCHASTIC else 0x80000)) >> 20


@triton.jit
def block_scale(x, SIGNED: tl.constexpr):
    """Return the largest magnitude of each row [R, 256] as [R, 1]; NaN where a row has a value that is not finite.

    Bit patterns are ordered as magnitudes are, infinity and NaN last; one without a sign needs none cleared.
    """
    if SIGNED:
        largest = tl.max(x.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1)
    else:
        largest = (tl.max(x.to(tl.uint32, bitcast=True), axis=1) & 0x7FFFFFFF).to(tl.int32)
    scale = tl.where(largest < 0x00800000, 0.0, largest.to(tl.float32, bitcast=True))
    return tl.where(largest < 0x7F800000, scale, float("nan"))[:, None]


@triton.jit
def inverse_of(scale):
    """Return what brings a row's magnitudes to [0, 1.875), just below so that no random bits carry beyond; or 0."""
    usable = scale > 0
    return tl.where(usable, LARGEST * (1.0 - 2.0**-20) / tl.where(usable, scale, 1.0), 0.0)


@triton.jit
def quotient(x, y, APPROXIMATE: tl.constexpr):
    """Return x / y; APPROXIMATE: within 2 ulps, and numbers below 2^-126 count as zero, 1 / y too.

    The approximate division of PTX spends four more instructions on y above 2^126; a denominator is a square root.
    """
    if APPROXIMATE and COMPILED:
        return x * tl.inline_asm_elementwise(
            "rcp.approx.ftz.f32 $0, $1;", "=f,f", [y], dtype=tl.float32, is_pure=True, pack=1
        )
    else:  # noqa: RET505 - a jit function returns from both branches or from neither
        return x / y


@triton.jit
def root(x, APPROXIMATE: tl.constexpr):
    """Return the square root; APPROXIMATE: within 2^-22 of itself, and numbers below 2^-126 count as zero."""
    if APPROXIMATE and COMPILED:
        return tl.inline_asm_elementwise(
            "sqrt.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:  # noqa: RET505 - as above
        return tl.sqrt(x)


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
    if base.dtype.element_ty.primitive_bitwidth != 8:
        return load_tile(base, index, left, VECTOR)
    else:  # noqa: RET505 - a jit function returns from both branches or from neither
        scale = tl.load(scales + rows, mask=rows * QUANTUM < left, other=0.0)[:, None] * (1.0 / LARGEST)
        code = (tl.load(base + index) if VECTOR else tl.load(base + index, mask=index < left, other=0)).to(tl.int32)
        if SIGNED:
            raw = (tl.abs(code) << 20) | (code & -0x80000000)
            return raw.to(tl.float32, bitcast=True) * (1.0 / SIGNED_UNIT) * scale
        else:  # noqa: RET505
            return (code << 20).to(tl.float32, bitcast=True) * (1.0 / POSITIVE_UNIT) * scale


@triton.jit
def store_scale(scales, rows, left, scale, VECTOR: tl.constexpr):
    """Store a scale [R, 1] for every row that begins inside the tensor.

    Every thread of a row holds its scale. A store of Triton's would first hand it to another thread, through shared
    memory and two barriers; here all threads of a warp write the same number to the same place, which is one write.
    """
    if VECTOR and COMPILED:
        at = (scales + rows[:, None]).to(tl.int64)
        tl.inline_asm_elementwise(
            "st.global.f32 [$1], $2; mov.u32 $0, 0;", "=r,l,f", [at, scale], dtype=tl.int32, is_pure=False, pack=1
        )
    else:
        column = tl.zeros_like(scale).to(tl.int32)
        tl.store(scales + rows[:, None] + column, scale, mask=rows[:, None] * QUANTUM < left)


@triton.jit
def store_state(
    base, scales, index, rows, left, value, noise, SIGNED: tl.constexpr, STOCHASTIC: tl.constexpr, VECTOR: tl.constexpr
):
    """Store a tile of float32 values as state; the two states draw their own random bits."""
    kept: tl.constexpr = base.dtype.element_ty
    if kept.primitive_bitwidth == 8:
        scale = block_scale(value, SIGNED)
        store_scale(scales, rows, left, scale, VECTOR)
        inverse = inverse_of(scale)
        if SIGNED:
            level = to_level(tl.abs(value), inverse, draw(noise, 1, 20), STOCHASTIC, SIGNED_UNIT)
            code = tl.where(value < 0, -level, level).to(tl.int8)
        else:
            level = to_level(value, inverse, draw(noise, 0, 20), STOCHASTIC, POSITIVE_UNIT)
            above_zero = tl.minimum(value.to(tl.int32, bitcast=True), 1)  # 1 where the value is not 0
            code = tl.maximum(level, above_zero).to(tl.uint8)
        store_tile(base, index, left, code, VECTOR)
    elif kept == tl.bfloat16:
        store_tile(base, index, left, to_bfloat16(value, draw(noise, SIGNED, 16), STOCHASTIC), VECTOR)
    else:
        store_tile(base, index, left, value, VECTOR)


@triton.jit
def new_values(
    p, g, m, v, c, scalars, ALGORITHM: tl.constexpr, M: tl.constexpr, C: tl.constexpr, APPROXIMATE: tl.constexpr
):  # fmt: skip
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
        p = p - rate * quotient(m, root(v, APPROXIMATE) * extra + eps, APPROXIMATE)
    if ALGORITHM == "adagrad":
        v = v + g * g
        p = p - rate * quotient(g, root(v, APPROXIMATE) + eps, APPROXIMATE)
    if ALGORITHM == "rmsprop":
        v = b * v + b_rest * g * g
        spread = v
        if C:
            c = c + extra * (g - c)
            spread = v - c * c
        step = quotient(g, root(spread, APPROXIMATE) + eps, APPROXIMATE)
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
    p, g, first, second, third, first_scale, second_scale, scalars, key, start, left,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    STOCHASTIC: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr,
):  # fmt: skip
    """Update BLOCK elements from ``start`` of a chunk; ``left`` are left in the tensor from its first."""
    rows = start // QUANTUM + tl.arange(0, BLOCK // QUANTUM)
    index = rows[:, None] * QUANTUM + tl.arange(0, QUANTUM)[None, :]
    noise = noise_of(key + index.to(tl.uint32))
    old = load_tile(p, index, left, VECTOR)
    grad = load_tile(g, index, left, VECTOR)
    m = load_state(first, first_scale, index, rows, left, True, VECTOR) if M else grad
    v = load_state(second, second_scale, index, rows, left, False, VECTOR) if V else grad
    c = load_tile(third, index, left, VECTOR) if C else grad
    coded: tl.constexpr = first.dtype.element_ty.primitive_bitwidth == 8
    new, m, v, c = new_values(old, grad, m, v, c, scalars, ALGORITHM, M, C, coded)
    if M:
        store_state(first, first_scale, index, rows, left, m, noise, True, STOCHASTIC, VECTOR)
    if V:
        store_state(second, second_scale, index, rows, left, v, noise, False, STOCHASTIC, VECTOR)
    if C:
        store_tile(third, index, left, c, VECTOR)
    if p.dtype.element_ty == tl.bfloat16:
        store_tile(p, index, left, to_bfloat16(new, draw(noise, 2, 16), STOCHASTIC), VECTOR)
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
def update_part(
    p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, scalars, key,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    PARAM_TYPE: tl.constexpr, FIRST_TYPE: tl.constexpr, SECOND_TYPE: tl.constexpr, STATE_BYTES: tl.constexpr,
    STOCHASTIC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, VECTOR: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Update the elements from ``offset``: CHUNK of them with wide loads, or with masks as many as are left.

    From 2 STAGES on, the next blocks are copied to shared memory while one is computed.
    """
    p = place(p_at, offset, PARAM_TYPE, 16 if VECTOR else 1)
    g = place(g_at, offset, PARAM_TYPE, 16 if VECTOR else 1)
    first = place(m_at, offset, FIRST_TYPE, STATE_BYTES if VECTOR else 1)
    second = place(v_at, offset, SECOND_TYPE, STATE_BYTES if VECTOR else 1)
    third = place(c_at, offset, tl.float32, 16 if VECTOR else 1)
    first_scale = place(m_scale_at, offset // QUANTUM, tl.float32, 1)
    second_scale = place(v_scale_at, offset // QUANTUM, tl.float32, 1)
    for start in tl.range(0, CHUNK, BLOCK, num_stages=STAGES):
        if VECTOR or start < left:
            update_tile(
                p, g, first, second, third, first_scale, second_scale, scalars, key, start, left,
                ALGORITHM, M, V, C, STOCHASTIC, BLOCK, VECTOR,
            )  # fmt: skip


@triton.jit
def update_chunk(
    p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, scalars, key, whole,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    PARAM_TYPE: tl.constexpr, FIRST_TYPE: tl.constexpr, SECOND_TYPE: tl.constexpr, STATE_BYTES: tl.constexpr,
    STOCHASTIC: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Update a chunk in blocks of BLOCK with wide loads where it is ``whole``, else of TAIL with masks."""
    if whole:
        update_part(
            p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, scalars, key,
            ALGORITHM, M, V, C, PARAM_TYPE, FIRST_TYPE, SECOND_TYPE, STATE_BYTES, STOCHASTIC, CHUNK, BLOCK, True,
            STAGES,
        )  # fmt: skip
    else:
        update_part(
            p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, scalars, key,
            ALGORITHM, M, V, C, PARAM_TYPE, FIRST_TYPE, SECOND_TYPE, STATE_BYTES, STOCHASTIC, CHUNK, TAIL, False, 1,
        )  # fmt: skip


@triton.jit(do_not_specialize=["n", "stochastic"])
def update_kernel(
    pointers, chunks, scalars, keys, n, stochastic,
    ALGORITHM: tl.constexpr, M: tl.constexpr, V: tl.constexpr, C: tl.constexpr,
    PARAM_TYPE: tl.constexpr, FIRST_TYPE: tl.constexpr, SECOND_TYPE: tl.constexpr, STATE_BYTES: tl.constexpr,
    ROUNDS: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, TAIL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Update one chunk. M, V, C say whether the first, second and third state exist, ROUNDS whether any is rounded.

    Random and nearest rounding are two branches of a whole chunk, not a choice for every element.
    """
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
        whole = (((p_at | g_at | m_at | v_at | c_at) & 15) == 0) & (left >= CHUNK)
        if ROUNDS and stochastic == 0:
            update_chunk(
                p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, loaded, key, whole,
                ALGORITHM, M, V, C, PARAM_TYPE, FIRST_TYPE, SECOND_TYPE, STATE_BYTES, False, CHUNK, BLOCK, TAIL,
                STAGES,
            )  # fmt: skip
        else:
            update_chunk(
                p_at, g_at, m_at, v_at, c_at, m_scale_at, v_scale_at, offset, left, loaded, key, whole,
                ALGORITHM, M, V, C, PARAM_TYPE, FIRST_TYPE, SECOND_TYPE, STATE_BYTES, ROUNDS, CHUNK, BLOCK, TAIL,
                STAGES,
            )  # fmt: skip
