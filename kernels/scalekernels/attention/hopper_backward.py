"""Gluon kernels of the backward pass of attention on Hopper (sm_90): dK and dV by blocks of keys, dQ by queries.

Each program has three partitions: two consumer warpgroups, which own 64 rows of the result each and keep its float32
sums in registers, and a producer warp, whose TMA copies fill a ring of tiles in shared memory. A ring slot has two
mbarriers: ``full`` completes when the bytes of a tile have arrived, ``empty`` when both consumers have read it. Nothing
is added atomically, and every sum has a fixed order: the results are deterministic.

With s = scale q kᵀ, p = softmax(s) and dp = g vᵀ, where g is the gradient of the output, delta the sum of g x output in
each row, and ds = p (dp - delta): dv = pᵀ g, dk = scale dsᵀ q, dq = scale ds k. ``statistics`` holds two float32 rows
per head, base-2 log-sum-exp and delta, padded with zeros to whole tiles. TMA reads rows beyond the end of a tensor as
zero and does not write there: such queries have q = g = delta = 0 and add exactly 0 to dk and dv, without a mask. Such
keys would weigh exp2(0 - lse), which may overflow, so that dQ masks them.

wgmma groups end in the order of their issue. All are drained before a loop's next round: ptxas serialises every product
of a kernel where the result of one is waited for in another round than it was issued in.

Tensors are (B, H, T, D) through descriptors with any strides that TMA takes. ``hopper_gradients`` launches the kernels.
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

from scalekernels.attention.hopper_order import hold_differences
from scalekernels.attention.hopper_rings import RUNTIME_SIZES, _next_slot, _own_block, _ring


@gluon.jit
def _mask_queries(s, first_key, first_row, KEYS: gl.constexpr, M: gl.constexpr, layout: gl.constexpr):
    """Scores (keys, queries) with minus infinity where the query comes before the key."""
    keys = first_key + gl.arange(0, KEYS, layout=gl.SliceLayout(1, layout))
    rows = first_row + gl.arange(0, M, layout=gl.SliceLayout(0, layout))
    return gl.where(gl.expand_dims(rows, 0) >= gl.expand_dims(keys, 1), s, float("-inf"))


@gluon.jit
def _key_weights(s, lse_buffer, first_key, first_row, scale_log2, CAUSAL: gl.constexpr, KEYS: gl.constexpr,
                 M: gl.constexpr, layout: gl.constexpr):  # fmt: skip
    """Return p (keys, queries) of raw scores."""
    if CAUSAL:  # noqa: SIM102
        if first_row < first_key + KEYS - 1:
            s = _mask_queries(s, first_key, first_row, KEYS, M, layout)
    lse = lse_buffer.load(gl.SliceLayout(0, layout))
    return gl.exp2(s * scale_log2 - gl.expand_dims(lse, 0))


@gluon.jit
def _keys_consumer(  # noqa: PLR0915
    k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty, done,
    first_key, first_row, tiles, group, scale, scale_log2,
    WHO: gl.constexpr, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr, IN_REGISTERS: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """dK and dV of KEYS keys, over ``tiles`` tiles of each query head of the group. All scores are (keys, queries).

    A round issues the products dK (of the round before), s, dp, dV. LATE rounds ds in the round that multiplies it.
    AGAIN, where Triton 3.7 and ptxas 13.5 spill otherwise, computes the addresses of the own keys in every round, from
    ``base``, which is 0; elsewhere that only adds instructions.
    """
    AGAIN: gl.constexpr = CAUSAL and D == 128 and not IN_REGISTERS
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, M, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    column: gl.constexpr = gl.SliceLayout(0, scores)
    dtype: gl.constexpr = k_buffers.dtype
    first_key += WHO * KEYS
    zero = gl.zeros([KEYS, M], gl.float32, scores)
    dk = gl.zeros([KEYS, D], gl.float32, sums)
    dv = gl.zeros([KEYS, D], gl.float32, sums)
    # The first round adds 0 to dK.
    ds = gl.zeros([KEYS, M], gl.float32, scores) if LATE else gl.zeros([KEYS, M], dtype, operand)
    slot = 0
    phase = 0
    before = 0
    row = first_row
    last_row = first_row + (tiles - 1) * M
    mbarrier.wait(own_full, 0)
    if not AGAIN:
        k = k_buffers.index(WHO).reshape([KEYS, D])
        v = v_buffers.index(WHO).reshape([KEYS, D])
    if IN_REGISTERS:
        k = k.load(gl.DotOperandLayout(0, scores, 2))
        v = v.load(gl.DotOperandLayout(0, scores, 2))
    for step in range(group * tiles):
        if AGAIN:
            base = slot >> 8
            k = k_buffers.index(base + WHO).reshape([KEYS, D])
            v = v_buffers.index(base + WHO).reshape([KEYS, D])
        mbarrier.wait(full.index(slot), phase)
        q = q_buffers.index(slot).reshape([M, D])
        g = g_buffers.index(slot).reshape([M, D])
        factor = gl.convert_layout(ds.to(dtype), operand) if LATE else ds
        dk = warpgroup_mma(factor, q_buffers.index(before).reshape([M, D]), dk, is_async=True)
        s = warpgroup_mma(k, q.permute((1, 0)), zero, use_acc=False, is_async=True)
        dp = warpgroup_mma(v, g.permute((1, 0)), zero, use_acc=False, is_async=True)
        dk, s = warpgroup_mma_wait(1, deps=(dk, s))  # the exponentials run beside dp
        p = _key_weights(s, lse_buffers.index(slot), first_key, row, scale_log2, CAUSAL, KEYS, M, scores)
        dv = warpgroup_mma(gl.convert_layout(p.to(dtype), operand), g, dv, is_async=True)
        dp = warpgroup_mma_wait(1, deps=(dp,))  # ds runs beside dV
        mbarrier.arrive(empty.index(before), pred=step > 0)
        ds = p * (dp - gl.expand_dims(delta_buffers.index(slot).load(column), 0))
        if LATE:
            dv, ds = warpgroup_mma_wait(0, deps=(dv, ds))
        else:
            ds = gl.convert_layout(ds.to(dtype), operand)
            dv = warpgroup_mma_wait(0, deps=(dv,))
        before = slot
        slot, phase = _next_slot(slot, phase, STAGES)
        row = gl.where(row == last_row, first_row, row + M)
    factor = gl.convert_layout(ds.to(dtype), operand) if LATE else ds
    dk = warpgroup_mma(factor, q_buffers.index(before).reshape([M, D]), dk, is_async=True)
    dk = warpgroup_mma_wait(0, deps=(dk,))
    k_buffers.index(WHO).reshape([KEYS, D]).store((dk * scale).to(dtype))  # nothing reads this memory any more
    v_buffers.index(WHO).reshape([KEYS, D]).store(dv.to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit
def _keys_producer(
    q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers, q_buffers, g_buffers,
    lse_buffers, delta_buffers, own_full, full, empty, done, batch, key_head, first_key, first_row, tiles, group,
    query_heads, padded_length, delta_offset, KEYS: gl.constexpr, M: gl.constexpr, STAGES: gl.constexpr,
    BLOCKS: gl.constexpr = 2,
):  # fmt: skip
    """Copy BLOCKS blocks of KEYS keys, then the tiles of queries in order; write the gradients of the blocks."""
    mbarrier.expect(own_full, 2 * BLOCKS * k_desc.block_type.nbytes)
    for who in gl.static_range(BLOCKS):
        row = first_key + who * KEYS
        tma.async_copy_global_to_shared(k_desc, [batch, key_head, row, 0], own_full, k_buffers.index(who))
        tma.async_copy_global_to_shared(v_desc, [batch, key_head, row, 0], own_full, v_buffers.index(who))
    slot = 0
    phase = 0
    for member in range(group):
        head = key_head * group + member
        statistics = (batch * query_heads + head) * padded_length
        for tile in range(tiles):
            row = first_row + tile * M
            bar = full.index(slot)
            mbarrier.wait(empty.index(slot), phase ^ 1)
            mbarrier.expect(bar, 2 * q_desc.block_type.nbytes + 2 * statistics_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [batch, head, row, 0], bar, q_buffers.index(slot))
            tma.async_copy_global_to_shared(g_desc, [batch, head, row, 0], bar, g_buffers.index(slot))
            tma.async_copy_global_to_shared(statistics_desc, [statistics + row], bar, lse_buffers.index(slot))
            tma.async_copy_global_to_shared(
                statistics_desc, [delta_offset + statistics + row], bar, delta_buffers.index(slot)
            )
            slot, phase = _next_slot(slot, phase, STAGES)
    mbarrier.wait(done, 0)
    for who in gl.static_range(BLOCKS):
        row = first_key + who * KEYS
        tma.async_copy_shared_to_global(dk_desc, [batch, key_head, row, 0], k_buffers.index(who))
        tma.async_copy_shared_to_global(dv_desc, [batch, key_head, row, 0], v_buffers.index(who))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_keys(
    q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, IN_REGISTERS: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """dK and dV of 2 x KEYS keys of one key head. Grid: (blocks of keys x batches x key heads,).

    ``IN_REGISTERS`` as in ``hopper_queries``.
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
    k_buffers = gl.allocate_shared_memory(dtype, [2, 1, 1, KEYS, D], k_desc.layout)
    v_buffers = gl.allocate_shared_memory(dtype, [2, 1, 1, KEYS, D], v_desc.layout)
    q_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, M, D], q_desc.layout)
    g_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, M, D], g_desc.layout)
    lse_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    delta_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(done, count=2)
    full, empty = _ring(STAGES)
    fence_async_shared()
    first_row = first_tile * M
    delta_offset = batches * query_heads * padded_length
    gl.warp_specialize([
        (_keys_consumer, (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty,
                          done, first_key, first_row, tiles, group, scale, scale_log2,
                          0, CAUSAL, KEYS, M, D, STAGES, IN_REGISTERS, LATE)),
        (_keys_consumer, (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty,
                          done, first_key, first_row, tiles, group, scale, scale_log2,
                          1, CAUSAL, KEYS, M, D, STAGES, IN_REGISTERS, LATE)),
        (_keys_producer, (q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers,
                          q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty, done, batch,
                          key_head, first_key, first_row,
                          tiles, group, query_heads, padded_length, delta_offset, KEYS, M, STAGES)),
    ], [4, 1], [REGISTERS, 24])  # fmt: skip


@gluon.jit
def _mask_keys(s, first_key, whole, bound, N: gl.constexpr, layout: gl.constexpr):
    """Scores (queries, keys); keys before ``whole`` need no mask, others end at ``bound``."""
    if first_key + N > whole:
        keys = first_key + gl.arange(0, N, layout=gl.SliceLayout(0, layout))
        s = gl.where(gl.expand_dims(keys, 0) < gl.expand_dims(bound, 1), s, float("-inf"))
    return s


@gluon.jit
def _score_differences(s, dp, lse, delta, first_key, whole, bound, scale_log2, N: gl.constexpr, layout: gl.constexpr):
    """Return ds / scale (queries, keys) of raw scores."""
    s = _mask_keys(s, first_key, whole, bound, N, layout)
    p = gl.exp2(s * scale_log2 - gl.expand_dims(lse, 1))
    return p * (dp - gl.expand_dims(delta, 1))


@gluon.jit
def _queries_consumer(  # noqa: PLR0915
    q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done,
    statistics_row, delta_offset, first_row, tiles, key_length, scale, scale_log2,
    WHO: gl.constexpr, CAUSAL: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    IN_REGISTERS: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """dQ of M queries, over ``tiles`` pairs of N keys, the last first. The second of a pair runs beside the first.

    ptxas has the second's exponentials wait for the first's dQ; LATE keeps that wait behind the second's ds. AGAIN as
    in ``_keys_consumer``, for g.
    """
    AGAIN: gl.constexpr = CAUSAL and D == 128 and not IN_REGISTERS
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    of_row: gl.constexpr = gl.SliceLayout(1, scores)
    dtype: gl.constexpr = q_buffers.dtype
    first_row += WHO * M
    q = q_buffers.index(WHO).reshape([M, D])
    if not AGAIN:
        g = g_buffers.index(WHO).reshape([M, D])
    own = statistics + statistics_row + WHO * M + gl.arange(0, M, layout=of_row)
    lse = gl.load(own)
    delta = gl.load(own + delta_offset)
    whole = key_length
    bound = gl.full([M], key_length, gl.int32, of_row)
    if CAUSAL:
        whole = gl.minimum(whole, first_row + 1)
        bound = gl.minimum(bound, first_row + 1 + gl.arange(0, M, layout=of_row))
    zero = gl.zeros([M, N], gl.float32, scores)
    dq = gl.zeros([M, D], gl.float32, sums)
    ds = gl.zeros([M, N], dtype, operand)  # the first round adds 0
    slot = 0
    phase = 0
    before = 0
    first_key = (tiles - 1) * 2 * N
    mbarrier.wait(own_full, 0)
    if IN_REGISTERS:
        q = q.load(gl.DotOperandLayout(0, scores, 2))
        g = g.load(gl.DotOperandLayout(0, scores, 2))
    for step in range(tiles):
        if AGAIN:
            base = slot >> 8
            g = g_buffers.index(base + WHO).reshape([M, D])
        mbarrier.wait(full.index(slot), phase)
        k = k_buffers.index(slot).reshape([N, D])
        v = v_buffers.index(slot).reshape([N, D])
        s = warpgroup_mma(q, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        dp = warpgroup_mma(g, v.permute((1, 0)), zero, use_acc=False, is_async=True)
        dq = warpgroup_mma(ds, k_buffers.index(before).reshape([N, D]), dq, is_async=True)
        second, phase = _next_slot(slot, phase, STAGES)
        mbarrier.wait(full.index(second), phase)
        k_second = k_buffers.index(second).reshape([N, D])
        v_second = v_buffers.index(second).reshape([N, D])
        s_second = warpgroup_mma(q, k_second.permute((1, 0)), zero, use_acc=False, is_async=True)
        dp_second = warpgroup_mma(g, v_second.permute((1, 0)), zero, use_acc=False, is_async=True)
        s, dp = warpgroup_mma_wait(3, deps=(s, dp))
        ds = _score_differences(s, dp, lse, delta, first_key, whole, bound, scale_log2, N, scores)
        ds = gl.convert_layout(ds.to(dtype), operand)
        dq = warpgroup_mma(ds, k, dq, is_async=True)
        s, dp = warpgroup_mma_wait(1, deps=(s_second, dp_second))
        mbarrier.arrive(empty.index(before), pred=step > 0)
        ds = _score_differences(s, dp, lse, delta, first_key + N, whole, bound, scale_log2, N, scores)
        ds = ds.to(dtype)
        if LATE:
            ds = hold_differences(ds)
        ds = gl.convert_layout(ds, operand)
        dq = warpgroup_mma_wait(0, deps=(dq,))
        mbarrier.arrive(empty.index(slot))
        before = second
        slot, phase = _next_slot(second, phase, STAGES)
        first_key -= 2 * N
    dq = warpgroup_mma(ds, k_buffers.index(before).reshape([N, D]), dq, is_async=True)
    dq = warpgroup_mma_wait(0, deps=(dq,))
    q_buffers.index(WHO).reshape([M, D]).store((dq * scale).to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit
def _queries_producer(
    work, M: gl.constexpr, N: gl.constexpr, STAGES: gl.constexpr, TILES: gl.constexpr, CONSUMERS: gl.constexpr
):
    """Copy the queries of all consumers, then TILES tiles of keys for each round, the last round's first; write dQ."""
    (q_desc, g_desc, k_desc, v_desc, dq_desc, q_buffers, g_buffers, k_buffers, v_buffers, own_full, full, empty, done,
     batch, head, key_head, first_row, rounds) = work  # fmt: skip
    mbarrier.expect(own_full, 2 * CONSUMERS * q_desc.block_type.nbytes)
    for who in gl.static_range(CONSUMERS):
        row = first_row + who * M
        tma.async_copy_global_to_shared(q_desc, [batch, head, row, 0], own_full, q_buffers.index(who))
        tma.async_copy_global_to_shared(g_desc, [batch, head, row, 0], own_full, g_buffers.index(who))
    slot = 0
    phase = 0
    for step in range(TILES * rounds):
        key = (rounds - 1 - step // TILES) * TILES * N + step % TILES * N  # in order within a round
        bar = full.index(slot)
        mbarrier.wait(empty.index(slot), phase ^ 1)
        mbarrier.expect(bar, 2 * k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [batch, key_head, key, 0], bar, k_buffers.index(slot))
        tma.async_copy_global_to_shared(v_desc, [batch, key_head, key, 0], bar, v_buffers.index(slot))
        slot, phase = _next_slot(slot, phase, STAGES)
    mbarrier.wait(done, 0)
    for who in gl.static_range(CONSUMERS):
        tma.async_copy_shared_to_global(dq_desc, [batch, head, first_row + who * M, 0], q_buffers.index(who))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_queries(
    q_desc, k_desc, v_desc, g_desc, dq_desc, statistics,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, IN_REGISTERS: gl.constexpr, LATE: gl.constexpr,
):  # fmt: skip
    """dQ of 2 x M queries of one head. Grid: (blocks of queries x batches x query heads,).

    ``IN_REGISTERS`` multiplies the rows that a consumer owns from registers, where these are enough, not from memory.
    """
    blocks = gl.cdiv(query_length, 2 * M)
    block, index = _own_block(blocks, batches * query_heads, section)
    batch = index // query_heads
    head = index % query_heads
    end = key_length
    if CAUSAL:
        block = blocks - 1 - block
        end = gl.minimum(end, (block + 1) * 2 * M)
    first_row = block * 2 * M
    tiles = gl.cdiv(end, 2 * N)
    dtype: gl.constexpr = q_desc.dtype
    q_buffers = gl.allocate_shared_memory(dtype, [2, 1, 1, M, D], q_desc.layout)
    g_buffers = gl.allocate_shared_memory(dtype, [2, 1, 1, M, D], g_desc.layout)
    k_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, N, D], k_desc.layout)
    v_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, N, D], v_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(done, count=2)
    full, empty = _ring(STAGES)
    fence_async_shared()
    statistics_row = index * padded_length + first_row
    delta_offset = batches * query_heads * padded_length
    gl.warp_specialize([
        (_queries_consumer, (q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done,
                             statistics_row, delta_offset, first_row, tiles, key_length, scale, scale_log2,
                             0, CAUSAL, M, N, D, STAGES, IN_REGISTERS, LATE)),
        (_queries_consumer, (q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done,
                             statistics_row, delta_offset, first_row, tiles, key_length, scale, scale_log2,
                             1, CAUSAL, M, N, D, STAGES, IN_REGISTERS, LATE)),
        (_queries_producer, ((q_desc, g_desc, k_desc, v_desc, dq_desc, q_buffers, g_buffers, k_buffers, v_buffers,
                              own_full, full, empty, done, batch, head, head // group, first_row, tiles),
                             M, N, STAGES, 2, 2)),
    ], [4, 1], [REGISTERS, 24])  # fmt: skip
