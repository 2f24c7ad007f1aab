"""Gluon kernel for all three gradients of attention on Hopper (sm_90) in one pass over blocks of keys.

As ``hopper_backward.hopper_keys``, whose notation and rings it uses, with dQ in addition: the consumers write ds (keys,
queries) to shared memory, and each computes half of the columns of dQ from the ds of both. It needs 5 products where
separate kernels need 7. dQ is added to float32 sums in global memory, as the blocks of keys come, or, where ORDERED,
in the order of the blocks from the last to the first: then the results are deterministic.

The sums of 64 queries lie in the order of the accumulator's registers: a thread adds to one address and constant
offsets, and a warp to whole lines. ``kernels.attention_collect_queries`` reads them back.

ORDERED: ``counters`` counts the blocks that have added to a tile of queries. One warp waits for the counts (turn), one
counts after both consumers have added (added, then released); each has a barrier per slot of the ring. Programs start
in the order of their numbers, and a block waits for blocks with smaller numbers only, so that all of them end. Should
a turn not come in POLLS reads, about a second, the block adds out of turn, instead of hanging.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (the arguments of a jit function are descriptors and sizes, typed where it is compiled)

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    warpgroup_mma,
    warpgroup_mma_wait,
)

from scalekernels.attention.hopper_backward import _key_weights, _keys_producer, _next_slot, _own_block, _ring

RUNTIME_SIZES = ("batches", "query_heads", "group", "query_length", "key_length", "padded_length", "section")
POLLS = gl.constexpr(1 << 20)


@gluon.jit
def _fragment_offsets(M: gl.constexpr, COLUMNS: gl.constexpr, layout: gl.constexpr):
    """Where the sums of (M, COLUMNS) lie: the pairs of a thread 256 apart, those of a warp's threads side by side."""
    row = gl.expand_dims(gl.arange(0, M, layout=gl.SliceLayout(1, layout)), 1)
    column = gl.expand_dims(gl.arange(0, COLUMNS, layout=gl.SliceLayout(0, layout)), 0)
    thread = row // 16 * 32 + row % 8 * 4 + column // 2 % 4
    return column // 8 * 512 + row // 8 % 2 * 256 + thread * 2 + column % 2


@gluon.jit
def _add_queries(target, row, dq, turn, added, slot, phase, D: gl.constexpr, ORDERED: gl.constexpr):
    """Add dQ of the tile of queries at ``row`` of all heads' rows to its sums."""
    if ORDERED:
        mbarrier.wait(turn.index(slot), phase)
    gl.atomic_add(target + row.to(gl.int64) * D, dq, sem="relaxed")
    if ORDERED:
        mbarrier.arrive(added.index(slot))


@gluon.jit
def _consumer(  # noqa: PLR0915
    work, WHO: gl.constexpr, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, ORDERED: gl.constexpr,
):  # fmt: skip
    """dK and dV of KEYS keys, and half of the columns of dQ of each tile of queries, a round after its ds.

    A round issues the products s, dK and dQ (of the round before), dV, dp. The addresses of memory that does not change
    are computed in every round, from ``base``, which is 0: kept over the loop, they would take 40 registers.
    """
    (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, ds_buffers, own_full, full, empty, ds_full,
     ds_empty, done, turn, added, sums, sums_row, padded_length, first_key, first_row, tiles, group, scale,
     scale_log2) = work  # fmt: skip
    HALF: gl.constexpr = D // 2
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, M, 16])
    totals: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    halves: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, totals, 2)
    column: gl.constexpr = gl.SliceLayout(0, scores)
    dtype: gl.constexpr = k_buffers.dtype
    first_key += WHO * KEYS
    zero = gl.zeros([KEYS, M], gl.float32, scores)
    dq_zero = gl.zeros([M, HALF], gl.float32, halves)
    dk = gl.zeros([KEYS, D], gl.float32, totals)
    dv = gl.zeros([KEYS, D], gl.float32, totals)
    target = sums + WHO * (M * HALF) + _fragment_offsets(M, HALF, halves)
    ds_buffers.index(WHO).store(gl.zeros([KEYS, M], dtype, scores))  # the first round adds 0 to dK
    fence_async_shared()
    mbarrier.arrive(ds_full)
    slot = 0
    phase = 0
    before = 0
    phase_before = 0
    row = first_row
    last_row = first_row + (tiles - 1) * M
    sums_row += first_row
    sums_row_before = sums_row
    mbarrier.wait(own_full, 0)
    for step in range(group * tiles):
        base = slot >> 8
        k_left = k_buffers.index(base).reshape([KEYS, D])
        k_right = k_buffers.index(base + 1).reshape([KEYS, D])
        k = k_buffers.index(base + WHO).reshape([KEYS, D])
        v = v_buffers.index(base + WHO).reshape([KEYS, D])
        ds_left = ds_buffers.index(base).permute((1, 0))
        ds_right = ds_buffers.index(base + 1).permute((1, 0))
        mbarrier.wait(full.index(slot), phase)
        q = q_buffers.index(slot).reshape([M, D])
        g = g_buffers.index(slot).reshape([M, D])
        s = warpgroup_mma(k, q.permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(ds_full, step & 1)
        q_before = q_buffers.index(before).reshape([M, D])
        dk = warpgroup_mma(ds_buffers.index(base + WHO), q_before, dk, is_async=True)
        dq = warpgroup_mma(ds_left, k_left.slice(WHO * HALF, HALF, dim=1), dq_zero, use_acc=False, is_async=True)
        dq = warpgroup_mma(ds_right, k_right.slice(WHO * HALF, HALF, dim=1), dq, is_async=True)
        s = warpgroup_mma_wait(3, deps=(s,))  # the exponentials run beside dK and dQ
        p = _key_weights(s, lse_buffers.index(slot), first_key, row, scale_log2, CAUSAL, KEYS, M, scores)
        dv = warpgroup_mma(gl.convert_layout(p.to(dtype), operand), g, dv, is_async=True)
        dk, dq = warpgroup_mma_wait(1, deps=(dk, dq))
        mbarrier.arrive(ds_empty)
        mbarrier.arrive(empty.index(before), pred=step > 0)
        if step > 0:
            _add_queries(target, sums_row_before, dq, turn, added, before, phase_before, D, ORDERED)
        dp = warpgroup_mma(v, g.permute((1, 0)), zero, use_acc=False, is_async=True)
        dp, dv = warpgroup_mma_wait(0, deps=(dp, dv))
        ds = p * (dp - gl.expand_dims(delta_buffers.index(slot).load(column), 0))
        mbarrier.wait(ds_empty, step & 1)
        ds_buffers.index(base + WHO).store(ds.to(dtype))
        fence_async_shared()
        mbarrier.arrive(ds_full)
        before = slot
        phase_before = phase
        slot, phase = _next_slot(slot, phase, STAGES)
        sums_row_before = sums_row
        sums_row = gl.where(row == last_row, sums_row + padded_length - last_row + first_row, sums_row + M)
        row = gl.where(row == last_row, first_row, row + M)

    mbarrier.wait(ds_full, (group * tiles) & 1)
    q_before = q_buffers.index(before).reshape([M, D])
    dk = warpgroup_mma(ds_buffers.index(WHO), q_before, dk, is_async=True)
    k_left = k_buffers.index(0).reshape([KEYS, D]).slice(WHO * HALF, HALF, dim=1)
    k_right = k_buffers.index(1).reshape([KEYS, D]).slice(WHO * HALF, HALF, dim=1)
    dq = warpgroup_mma(ds_buffers.index(0).permute((1, 0)), k_left, dq_zero, use_acc=False, is_async=True)
    dq = warpgroup_mma(ds_buffers.index(1).permute((1, 0)), k_right, dq, is_async=True)
    dk, dq = warpgroup_mma_wait(0, deps=(dk, dq))
    mbarrier.arrive(ds_empty)
    _add_queries(target, sums_row_before, dq, turn, added, before, phase_before, D, ORDERED)
    mbarrier.wait(ds_empty, (group * tiles) & 1)  # the other's dQ has read the keys, whose memory takes dK
    k_buffers.index(WHO).reshape([KEYS, D]).store((dk * scale).to(dtype))
    v_buffers.index(WHO).reshape([KEYS, D]).store(dv.to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit
def _contributors(row, block, blocks, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr):
    """How many blocks add to the tile of queries at ``row`` before this one; negative where it adds nothing but 0."""
    last = blocks - 1
    if CAUSAL:
        last = gl.minimum(last, (row + M - 1) // (2 * KEYS))
    return last - block


@gluon.jit
def _await_turns(
    counters, turn, released, order, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, STAGES: gl.constexpr
):
    sums_row, padded_length, first_row, tiles, group, block, blocks = order
    slot = 0
    phase = 0
    for member in range(group):
        for tile in range(tiles):
            row = first_row + tile * M
            counter = counters + (sums_row + member * padded_length + row) // M
            expected = _contributors(row, block, blocks, CAUSAL, KEYS, M)
            mbarrier.wait(released.index(slot), phase ^ 1)
            count = gl.load(counter, volatile=True)
            polls = 0
            while (count < expected) & (polls < POLLS):
                count = gl.load(counter, volatile=True)
                polls += 1
            mbarrier.arrive(turn.index(slot))
            slot, phase = _next_slot(slot, phase, STAGES)


@gluon.jit
def _count_turns(
    counters, added, released, order, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, STAGES: gl.constexpr
):
    sums_row, padded_length, first_row, tiles, group, block, blocks = order
    slot = 0
    phase = 0
    for member in range(group):
        for tile in range(tiles):
            row = first_row + tile * M
            mbarrier.wait(added.index(slot), phase)
            if _contributors(row, block, blocks, CAUSAL, KEYS, M) >= 0:
                gl.atomic_add(counters + (sums_row + member * padded_length + row) // M, 1, sem="release")
            mbarrier.arrive(released.index(slot))
            slot, phase = _next_slot(slot, phase, STAGES)


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_all(
    q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, sums, counters,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, ORDERED: gl.constexpr,
):  # fmt: skip
    """dK and dV of 2 x KEYS keys of one key head, and their part of dQ. Grid: (blocks of keys x batches x key heads,).

    ``sums`` is a zeroed float32 (batch, query heads, padded length, D) that holds dQ / scale in the order of
    ``_fragment_offsets``; ``counters``, where ORDERED, a zeroed int32 (batch, query heads, padded length / M).
    """
    key_heads = query_heads // group
    blocks = gl.cdiv(key_length, 2 * KEYS)
    block, index = _own_block(blocks, batches * key_heads, section)
    if ORDERED:
        block = blocks - 1 - block
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
    lse_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    delta_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ds_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(ds_full, count=2)
    mbarrier.init(ds_empty, count=2)
    mbarrier.init(done, count=2)
    full, empty = _ring(STAGES)
    turn, added = _ring(STAGES)
    released = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(released.index(slot), count=1)
    fence_async_shared()
    first_row = first_tile * M
    delta_offset = batches * query_heads * padded_length
    sums_row = (batch * query_heads + key_head * group) * padded_length
    work = (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, ds_buffers, own_full, full,
               empty, ds_full, ds_empty, done, turn, added, sums, sums_row, padded_length, first_key, first_row, tiles,
               group, scale, scale_log2)  # fmt: skip
    order = (sums_row, padded_length, first_row, tiles, group, block, blocks)
    if ORDERED:
        gl.warp_specialize([
            (_consumer, (work, 0, CAUSAL, KEYS, M, D, STAGES, ORDERED)),
            (_consumer, (work, 1, CAUSAL, KEYS, M, D, STAGES, ORDERED)),
            (_keys_producer, (q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers,
                             q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty, done, batch,
                             key_head, first_key, first_row, tiles, group, query_heads, padded_length, delta_offset,
                             KEYS, M, STAGES)),
            (_await_turns, (counters, turn, released, order, CAUSAL, KEYS, M, STAGES)),
            (_count_turns, (counters, added, released, order, CAUSAL, KEYS, M, STAGES)),
        ], [4, 1, 1, 1], [REGISTERS, 24, 24, 24])  # fmt: skip
    else:
        gl.warp_specialize([
            (_consumer, (work, 0, CAUSAL, KEYS, M, D, STAGES, ORDERED)),
            (_consumer, (work, 1, CAUSAL, KEYS, M, D, STAGES, ORDERED)),
            (_keys_producer, (q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers,
                             q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty, done, batch,
                             key_head, first_key, first_row, tiles, group, query_heads, padded_length, delta_offset,
                             KEYS, M, STAGES)),
        ], [4, 1], [REGISTERS, 24])  # fmt: skip
