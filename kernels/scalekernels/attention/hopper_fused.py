"""Gluon kernel for all three gradients of attention on Hopper (sm_90) in one pass over blocks of keys.

As ``hopper_backward.hopper_keys``, whose notation and rings it uses, with dQ in addition: the consumers write ds (keys,
queries) to shared memory, and each computes half of the columns of dQ from the ds of both. It needs 5 products where
separate kernels need 7. The tile's dQ goes to shared memory in float32, from where a warp of its own (the adder) has
TMA add it to sums in global memory, while the consumers go on; FlashAttention-3 (arXiv 2407.08608) does the same.

The blocks of keys add to a tile of queries as they come, or, where ORDERED, in the order of their numbers, so that the
results are deterministic: ``counters`` counts the blocks that have added to a tile. A block waits for blocks with
smaller numbers only, and programs start in the order of their numbers, so that all of them end. Should a turn not come
in POLLS reads, about a second, the block adds out of turn, instead of hanging. Tiles of queries are visited from the
last to the first: with a causal mask every block sees the last one.

Unlike in ``hopper_keys``, keys beyond the end are masked: their weight exp2(0 - lse) may overflow, and dQ would add
infinity times the zeros that TMA reads for them.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (the arguments of a jit function are descriptors and sizes, typed where it is compiled)

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from scalekernels.attention.hopper_adding import additions_wait, async_add_shared_to_global
from scalekernels.attention.hopper_backward import _keys_producer
from scalekernels.attention.hopper_rings import RUNTIME_SIZES, _next_slot, _own_block, _ring

POLLS = gl.constexpr(1 << 20)
LAST = gl.constexpr((1 << 31) - 1)  # no query sees a key that does not exist


@gluon.jit
def _weights(s, lse_buffer, first_key, first_row, key_length, scale_log2, CAUSAL: gl.constexpr, KEYS: gl.constexpr,
             M: gl.constexpr, layout: gl.constexpr):  # fmt: skip
    """Return p (keys, queries) of raw scores, 0 for keys that the query does not see or that do not exist."""
    end = key_length
    if CAUSAL:
        end = gl.minimum(end, first_row + 1)
    if first_key + KEYS > end:
        keys = first_key + gl.arange(0, KEYS, layout=gl.SliceLayout(1, layout))
        if CAUSAL:
            first_to_see = gl.where(keys < key_length, keys, LAST)
            rows = first_row + gl.arange(0, M, layout=gl.SliceLayout(0, layout))
            s = gl.where(gl.expand_dims(rows, 0) >= gl.expand_dims(first_to_see, 1), s, float("-inf"))
        else:
            s = gl.where(gl.expand_dims(keys < key_length, 1), s, float("-inf"))
    lse = lse_buffer.load(gl.SliceLayout(0, layout))
    return gl.exp2(s * scale_log2 - gl.expand_dims(lse, 0))


@gluon.jit
def _multiply_queries(k_buffers, ds_buffers, base, zero, WHO: gl.constexpr, KEYS: gl.constexpr, D: gl.constexpr):
    """Issue the two products of a consumer's half of the columns of dQ / scale (queries, D / 2)."""
    HALF: gl.constexpr = D // 2
    left = k_buffers.index(base).reshape([KEYS, D]).slice(WHO * HALF, HALF, dim=1)
    right = k_buffers.index(base + 1).reshape([KEYS, D]).slice(WHO * HALF, HALF, dim=1)
    dq = warpgroup_mma(ds_buffers.index(base).permute((1, 0)), left, zero, use_acc=False, is_async=True)
    return warpgroup_mma(ds_buffers.index(base + 1).permute((1, 0)), right, dq, is_async=True)


@gluon.jit
def _hand_over(dq, dq_buffer, dq_full, dq_empty, phase):
    """Write dQ to shared memory for the adder, once it has read the tile before."""
    mbarrier.wait(dq_empty, phase)
    dq_buffer.store(dq)
    fence_async_shared()
    mbarrier.arrive(dq_full)


@gluon.jit
def _consumer(  # noqa: PLR0915
    work, WHO: gl.constexpr, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, IN_REGISTERS: gl.constexpr,
):  # fmt: skip
    """dK and dV of KEYS keys, and half of the columns of dQ of each tile of queries, a round after its ds.

    A round issues the products s, dQ and dK (of the round before), dp, dV. dQ is handed over beside dK, exponentials
    run beside dK and dp, ds is computed beside dV. ``IN_REGISTERS`` multiplies ds of dK from registers.

    The addresses of memory that does not change are computed in every round, from ``base``, which is 0: kept over the
    loop, they would take 40 registers.
    """
    (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, ds_buffers, dq_buffers, own_full, full,
     empty, ds_full, ds_empty, dq_full, dq_empty, done, key_length, first_key, first_row, last_row, tiles, group, scale,
     scale_log2) = work  # fmt: skip
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, M, 16])
    totals: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    halves: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D // 2, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, totals, 2)
    column: gl.constexpr = gl.SliceLayout(0, scores)
    dtype: gl.constexpr = k_buffers.dtype
    first_key += WHO * KEYS
    zero = gl.zeros([KEYS, M], gl.float32, scores)
    dq_zero = gl.zeros([M, D // 2], gl.float32, halves)
    dk = gl.zeros([KEYS, D], gl.float32, totals)
    dv = gl.zeros([KEYS, D], gl.float32, totals)
    ds_zero = gl.zeros([KEYS, M], dtype, scores)  # the first round adds 0 to dK, and leaves its dQ
    ds_buffers.index(WHO).store(ds_zero)
    ds_own = gl.convert_layout(ds_zero, operand)
    fence_async_shared()
    mbarrier.arrive(ds_full)
    slot = 0
    phase = 0
    before = 0
    row = last_row
    mbarrier.wait(own_full, 0)
    for step in range(group * tiles):
        base = slot >> 8
        mbarrier.wait(full.index(slot), phase)
        q = q_buffers.index(slot).reshape([M, D])
        g = g_buffers.index(slot).reshape([M, D])
        k = k_buffers.index(base + WHO).reshape([KEYS, D])
        v = v_buffers.index(base + WHO).reshape([KEYS, D])
        s = warpgroup_mma(k, q.permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(ds_full, step & 1)
        dq = _multiply_queries(k_buffers, ds_buffers, base, dq_zero, WHO, KEYS, D)
        q_before = q_buffers.index(before).reshape([M, D])
        if IN_REGISTERS:
            dk = warpgroup_mma(ds_own, q_before, dk, is_async=True)
        else:
            dk = warpgroup_mma(ds_buffers.index(base + WHO), q_before, dk, is_async=True)
        dq, s = warpgroup_mma_wait(1, deps=(dq, s))
        if IN_REGISTERS:
            mbarrier.arrive(ds_empty)
        if step > 0:
            _hand_over(
                dq, dq_buffers.index(base + WHO), dq_full.index(base + WHO), dq_empty.index(base + WHO), step & 1
            )
        dp = warpgroup_mma(v, g.permute((1, 0)), zero, use_acc=False, is_async=True)
        p = _weights(s, lse_buffers.index(slot), first_key + base, row, key_length, scale_log2, CAUSAL, KEYS, M, scores)
        dv = warpgroup_mma(gl.convert_layout(p.to(dtype), operand), g, dv, is_async=True)
        dk = warpgroup_mma_wait(2, deps=(dk,))
        if not IN_REGISTERS:
            mbarrier.arrive(ds_empty)
        mbarrier.arrive(empty.index(before), pred=step > 0)
        dp = warpgroup_mma_wait(1, deps=(dp,))
        ds = p * (dp - gl.expand_dims(delta_buffers.index(slot).load(column), 0))
        ds = ds.to(dtype)
        mbarrier.wait(ds_empty, step & 1)
        ds_buffers.index(base + WHO).store(ds)
        fence_async_shared()
        mbarrier.arrive(ds_full)
        if IN_REGISTERS:
            ds_own = gl.convert_layout(ds, operand)
        dv = warpgroup_mma_wait(0, deps=(dv,))
        before = slot
        slot, phase = _next_slot(slot, phase, STAGES)
        row = gl.where(row == first_row, last_row, row - M)

    rounds = group * tiles
    mbarrier.wait(ds_full, rounds & 1)
    q_before = q_buffers.index(before).reshape([M, D])
    dq = _multiply_queries(k_buffers, ds_buffers, 0, dq_zero, WHO, KEYS, D)
    dk = warpgroup_mma(ds_buffers.index(WHO), q_before, dk, is_async=True)
    dk, dq = warpgroup_mma_wait(0, deps=(dk, dq))
    mbarrier.arrive(ds_empty)
    _hand_over(dq, dq_buffers.index(WHO), dq_full.index(WHO), dq_empty.index(WHO), rounds & 1)
    mbarrier.wait(ds_empty, rounds & 1)  # the other's dQ has read the keys, whose memory takes dK
    k_buffers.index(WHO).reshape([KEYS, D]).store((dk * scale).to(dtype))
    v_buffers.index(WHO).reshape([KEYS, D]).store(dv.to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit
def _await_turn(counter, block):
    """Wait until ``block`` blocks have added to a tile."""
    count = gl.atomic_add(counter, 0, sem="acquire")
    polls = 0
    while (count < block) & (polls < POLLS):
        count = gl.atomic_add(counter, 0, sem="acquire")
        polls += 1


@gluon.jit
def _adder(sums_desc, counters, dq_buffers, dq_full, dq_empty, sums_row, padded_length, last_row, tiles, group, block,
           M: gl.constexpr, D: gl.constexpr, ORDERED: gl.constexpr):  # fmt: skip
    """Add each tile of dQ to its sums, the columns of each consumer apart."""
    for step in range(group * tiles):
        row = sums_row + step // tiles * padded_length + last_row - step % tiles * M
        counter = counters + row // M
        for who in gl.static_range(2):
            mbarrier.wait(dq_full.index(who), step & 1)
            if ORDERED and who == 0:
                _await_turn(counter, block)
            async_add_shared_to_global(sums_desc, [row, who * (D // 2)], dq_buffers.index(who))
        tma.store_wait(1)
        mbarrier.arrive(dq_empty.index(0))
        tma.store_wait(0)
        mbarrier.arrive(dq_empty.index(1))
        if ORDERED:
            gl.atomic_add(counters + additions_wait(row) // M, 1, sem="release")


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_all(
    q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, sums_desc, counters,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, IN_REGISTERS: gl.constexpr, ORDERED: gl.constexpr,
):  # fmt: skip
    """dK and dV of 2 x KEYS keys of one key head, and their part of dQ. Grid: (blocks of keys x batches x key heads,).

    ``sums_desc`` describes zeroed float32 sums of dQ / scale, (batch x query heads x padded length, D), by blocks of
    (M, D / 2); ``counters``, where ORDERED, a zeroed int32 (batch, query heads, padded length / M).
    """
    key_heads = query_heads // group
    block, index = _own_block(gl.cdiv(key_length, 2 * KEYS), batches * key_heads, section)
    batch = index // key_heads
    key_head = index % key_heads
    first_key = block * 2 * KEYS
    # Keys that no query sees keep one tile, which is masked altogether and adds 0: every program has a round.
    query_tiles = gl.cdiv(query_length, M)
    first_tile = 0
    if CAUSAL:
        first_tile = gl.minimum(first_key // M, query_tiles - 1)
    tiles = query_tiles - first_tile
    dtype: gl.constexpr = q_desc.dtype
    ds_layout: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    k_buffers = gl.allocate_shared_memory(dtype, [2, 1, 1, KEYS, D], k_desc.layout)
    v_buffers = gl.allocate_shared_memory(dtype, [2, 1, 1, KEYS, D], v_desc.layout)
    q_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, M, D], q_desc.layout)
    g_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, M, D], g_desc.layout)
    ds_buffers = gl.allocate_shared_memory(dtype, [2, KEYS, M], ds_layout)
    dq_buffers = gl.allocate_shared_memory(gl.float32, [2, M, D // 2], sums_desc.layout)
    lse_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    delta_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ds_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    dq_full = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    dq_empty = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(ds_full, count=2)
    mbarrier.init(ds_empty, count=2)
    mbarrier.init(done, count=2)
    for who in gl.static_range(2):
        mbarrier.init(dq_full.index(who), count=1)
        mbarrier.init(dq_empty.index(who), count=1)
    full, empty = _ring(STAGES)
    fence_async_shared()
    first_row = first_tile * M
    last_row = (query_tiles - 1) * M
    delta_offset = batches * query_heads * padded_length
    sums_row = (batch * query_heads + key_head * group) * padded_length
    work = (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, ds_buffers, dq_buffers, own_full,
            full, empty, ds_full, ds_empty, dq_full, dq_empty, done, key_length, first_key, first_row, last_row, tiles,
            group, scale, scale_log2)  # fmt: skip
    gl.warp_specialize([
        (_consumer, (work, 0, CAUSAL, KEYS, M, D, STAGES, IN_REGISTERS)),
        (_consumer, (work, 1, CAUSAL, KEYS, M, D, STAGES, IN_REGISTERS)),
        (_keys_producer, (q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers,
                          q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty, done, batch,
                          key_head, first_key, last_row, tiles, group, query_heads, padded_length, delta_offset,
                          KEYS, -M, STAGES)),
        (_adder, (sums_desc, counters, dq_buffers, dq_full, dq_empty, sums_row, padded_length, last_row, tiles, group,
                  block, M, D, ORDERED)),
    ], [4, 1, 1], [REGISTERS, 24, 24])  # fmt: skip
