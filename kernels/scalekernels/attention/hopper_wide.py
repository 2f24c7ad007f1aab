"""Gluon kernels of the backward pass of attention on Hopper (sm_90) for D of 256: dK and dV, and dQ.

As ``hopper_backward``, whose notation, rings and producer they share, but for sums that are twice as wide:

- dK and dV of 64 keys. Each consumer owns half of the columns of both. Of a pair of tiles of M queries each computes
  the scores of one, and passes p and ds to the other through shared memory.
- dQ of 2 x 64 queries, 64 for each consumer, by tiles of N keys, in pairs, of which the second runs beside the first.

Both are deterministic. They have not been timed: ``hopper_gradients.methods`` offers them to be.
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

from scalekernels.attention.hopper_backward import (
    _key_weights,
    _next_slot,
    _own_block,
    _queries_producer,
    _ring,
    _score_differences,
)

RUNTIME_SIZES = ("batches", "query_heads", "group", "query_length", "key_length", "padded_length", "section")


@gluon.jit
def _add_both(weights, tiles, first, total, WHO: gl.constexpr, M: gl.constexpr, D: gl.constexpr):
    """Issue total (KEYS, D / 2) += weights (KEYS, M) x the consumer's columns of a tile (M, D), for a pair of each."""
    HALF: gl.constexpr = D // 2
    for half in gl.static_range(2):
        tile = tiles.index(first + half).reshape([M, D]).slice(WHO * HALF, HALF, dim=1)
        total = warpgroup_mma(weights.index(half), tile, total, is_async=True)
    return total


@gluon.jit
def _keys_consumer(  # noqa: PLR0915
    k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, p_buffers, ds_buffers, own_full, full,
    empty, p_full, p_empty, ds_full, ds_empty, done, first_key, first_row, pairs, group, scale, scale_log2,
    WHO: gl.constexpr, CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """Half of the columns of dK and dV, over ``pairs`` pairs of tiles of each query head of the group.

    A round issues the products s, dK (of the round before), dp, dV: exponentials run beside dK and dp, ds beside dV.
    Addresses of the own keys depend on ``base``, which is 0, so as not to take registers over the loop.
    """
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, M, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D // 2, 16])
    column: gl.constexpr = gl.SliceLayout(0, scores)
    dtype: gl.constexpr = k_buffers.dtype
    zero = gl.zeros([KEYS, M], gl.float32, scores)
    dk = gl.zeros([KEYS, D // 2], gl.float32, sums)
    dv = gl.zeros([KEYS, D // 2], gl.float32, sums)
    ds_buffers.index(WHO).store(gl.zeros([KEYS, M], dtype, scores))  # the first round adds 0 to dK
    fence_async_shared()
    mbarrier.arrive(ds_full)
    slot = 0
    phase = 0
    before = 0
    row = first_row
    last_row = first_row + (pairs - 1) * 2 * M
    mbarrier.wait(own_full, 0)
    for step in range(group * pairs):
        base = slot >> 8
        k = k_buffers.index(base).reshape([KEYS, D])
        v = v_buffers.index(base).reshape([KEYS, D])
        own = slot + WHO
        mbarrier.wait(full.index(slot), phase)
        mbarrier.wait(full.index(slot + 1), phase)
        q = q_buffers.index(own).reshape([M, D])
        g = g_buffers.index(own).reshape([M, D])
        s = warpgroup_mma(k, q.permute((1, 0)), zero, use_acc=False, is_async=True)
        mbarrier.wait(ds_full, step & 1)
        dk = _add_both(ds_buffers, q_buffers, before, dk, WHO, M, D)
        s = warpgroup_mma_wait(2, deps=(s,))
        dp = warpgroup_mma(v, g.permute((1, 0)), zero, use_acc=False, is_async=True)
        p = _key_weights(s, lse_buffers.index(own), first_key, row + WHO * M, scale_log2, CAUSAL, KEYS, M, scores)
        mbarrier.wait(p_empty, step & 1 ^ 1)
        p_buffers.index(WHO).store(p.to(dtype))
        fence_async_shared()
        mbarrier.arrive(p_full)
        dk = warpgroup_mma_wait(1, deps=(dk,))
        mbarrier.arrive(ds_empty)
        mbarrier.arrive(empty.index(before), pred=step > 0)
        mbarrier.arrive(empty.index(before + 1), pred=step > 0)
        mbarrier.wait(p_full, step & 1)
        dv = _add_both(p_buffers, g_buffers, slot, dv, WHO, M, D)
        dp = warpgroup_mma_wait(2, deps=(dp,))
        ds = p * (dp - gl.expand_dims(delta_buffers.index(own).load(column), 0))
        mbarrier.wait(ds_empty, step & 1)
        ds_buffers.index(WHO).store(ds.to(dtype))
        fence_async_shared()
        mbarrier.arrive(ds_full)
        dv = warpgroup_mma_wait(0, deps=(dv,))
        mbarrier.arrive(p_empty)
        before = slot
        slot, phase = _next_slot(slot + 1, phase, STAGES)
        row = gl.where(row == last_row, first_row, row + 2 * M)
    # The other's last ds is there: it reads its own keys no more, whose memory takes the results.
    mbarrier.wait(ds_full, group * pairs & 1)
    dk = _add_both(ds_buffers, q_buffers, before, dk, WHO, M, D)
    dk = warpgroup_mma_wait(0, deps=(dk,))
    HALF: gl.constexpr = D // 2
    k_buffers.index(0).reshape([KEYS, D]).slice(WHO * HALF, HALF, dim=1).store((dk * scale).to(dtype))
    v_buffers.index(0).reshape([KEYS, D]).slice(WHO * HALF, HALF, dim=1).store(dv.to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit
def _keys_producer(
    q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers, q_buffers, g_buffers,
    lse_buffers, delta_buffers, own_full, full, empty, done, batch, key_head, first_key, first_row, tiles, group,
    query_heads, padded_length, delta_offset, M: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    mbarrier.expect(own_full, 2 * k_desc.block_type.nbytes)
    tma.async_copy_global_to_shared(k_desc, [batch, key_head, first_key, 0], own_full, k_buffers.index(0))
    tma.async_copy_global_to_shared(v_desc, [batch, key_head, first_key, 0], own_full, v_buffers.index(0))
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
    tma.async_copy_shared_to_global(dk_desc, [batch, key_head, first_key, 0], k_buffers.index(0))
    tma.async_copy_shared_to_global(dv_desc, [batch, key_head, first_key, 0], v_buffers.index(0))
    tma.store_wait(0)


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_keys_wide(
    q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, KEYS: gl.constexpr, M: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """dK and dV of KEYS keys of one key head. Grid: (blocks of keys x batches x key heads,). STAGES is even."""
    key_heads = query_heads // group
    block, index = _own_block(gl.cdiv(key_length, KEYS), batches * key_heads, section)
    batch = index // key_heads
    key_head = index % key_heads
    first_key = block * KEYS
    # Keys that no query sees keep one pair, which is masked altogether and adds 0: every program has a round.
    query_pairs = gl.cdiv(query_length, 2 * M)
    first_pair = 0
    if CAUSAL:
        first_pair = gl.minimum(first_key // (2 * M), query_pairs - 1)
    pairs = query_pairs - first_pair
    dtype: gl.constexpr = q_desc.dtype
    weights: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=2 * M, element_bitwidth=16, rank=2)
    k_buffers = gl.allocate_shared_memory(dtype, [1, 1, 1, KEYS, D], k_desc.layout)
    v_buffers = gl.allocate_shared_memory(dtype, [1, 1, 1, KEYS, D], v_desc.layout)
    q_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, M, D], q_desc.layout)
    g_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, M, D], g_desc.layout)
    p_buffers = gl.allocate_shared_memory(dtype, [2, KEYS, M], weights)
    ds_buffers = gl.allocate_shared_memory(dtype, [2, KEYS, M], weights)
    lse_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    delta_buffers = gl.allocate_shared_memory(gl.float32, [STAGES, M], statistics_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    p_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    p_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ds_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    ds_empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(p_full, count=2)
    mbarrier.init(p_empty, count=2)
    mbarrier.init(ds_full, count=2)
    mbarrier.init(ds_empty, count=2)
    mbarrier.init(done, count=2)
    full, empty = _ring(STAGES)
    fence_async_shared()
    first_row = first_pair * 2 * M
    delta_offset = batches * query_heads * padded_length
    gl.warp_specialize([
        (_keys_consumer, (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, p_buffers,
                          ds_buffers, own_full, full, empty, p_full, p_empty, ds_full, ds_empty, done, first_key,
                          first_row, pairs, group, scale, scale_log2, 0, CAUSAL, KEYS, M, D, STAGES)),
        (_keys_consumer, (k_buffers, v_buffers, q_buffers, g_buffers, lse_buffers, delta_buffers, p_buffers,
                          ds_buffers, own_full, full, empty, p_full, p_empty, ds_full, ds_empty, done, first_key,
                          first_row, pairs, group, scale, scale_log2, 1, CAUSAL, KEYS, M, D, STAGES)),
        (_keys_producer, (q_desc, k_desc, v_desc, g_desc, dk_desc, dv_desc, statistics_desc, k_buffers, v_buffers,
                          q_buffers, g_buffers, lse_buffers, delta_buffers, own_full, full, empty, done, batch,
                          key_head, first_key, first_row, 2 * pairs, group, query_heads, padded_length,
                          delta_offset, M, STAGES)),
    ], [4, 1], [REGISTERS, 24])  # fmt: skip


@gluon.jit
def _hold(p):
    """The same weights, which what follows cannot overtake: a volatile store that never happens, as none is negative."""
    return gl.inline_asm_elementwise(
        "{ .reg .pred q; .reg .b32 a, b; or.b32 a, $8, $9; or.b32 b, $10, $11; or.b32 a, a, b; or.b32 b, $12, $13; "
        "or.b32 a, a, b; or.b32 b, $14, $15; or.b32 a, a, b; mov.b32 b, 0; "
        "setp.lt.s32 q, a, 0; @q st.volatile.shared.b32 [b], a; mov.b32 $0, $8; mov.b32 $1, $9; mov.b32 $2, $10; "
        "mov.b32 $3, $11; mov.b32 $4, $12; mov.b32 $5, $13; mov.b32 $6, $14; mov.b32 $7, $15; }",
        "=r,=r,=r,=r,=r,=r,=r,=r,r,r,r,r,r,r,r,r", [p], dtype=gl.float32, is_pure=False, pack=8,
    )  # fmt: skip


@gluon.jit
def _queries_consumer(  # noqa: PLR0915
    q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done,
    statistics_row, delta_offset, first_row, tiles, key_length, scale, scale_log2,
    WHO: gl.constexpr, CAUSAL: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dQ of M queries, over ``tiles`` pairs of N keys, the last first. The second's dp is issued after the first's ds.

    Three tiles of scores are there at a time, for lack of registers, and addresses depend on ``base``, which is 0.
    """
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    of_row: gl.constexpr = gl.SliceLayout(1, scores)
    dtype: gl.constexpr = q_buffers.dtype
    first_row += WHO * M
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
    first_key = (tiles - 1) * N
    mbarrier.wait(own_full, 0)
    for step in range(tiles):
        base = slot >> 8
        q = q_buffers.index(base + WHO).reshape([M, D])
        g = g_buffers.index(base + WHO).reshape([M, D])
        mbarrier.wait(full.index(slot), phase)
        k = k_buffers.index(slot).reshape([N, D])
        v = v_buffers.index(slot).reshape([N, D])
        s = warpgroup_mma(q, k.permute((1, 0)), zero, use_acc=False, is_async=True)
        dp = warpgroup_mma(g, v.permute((1, 0)), zero, use_acc=False, is_async=True)
        dq = warpgroup_mma(ds, k_buffers.index(before).reshape([N, D]), dq, is_async=True)
        s, dp = warpgroup_mma_wait(1, deps=(s, dp))
        if first_key + N > whole:
            keys = first_key + gl.arange(0, N, layout=gl.SliceLayout(0, scores))
            s = gl.where(gl.expand_dims(keys, 0) < gl.expand_dims(bound, 1), s, float("-inf"))
        p = _hold(gl.exp2(s * scale_log2 - gl.expand_dims(lse, 1)))
        ds = p * (dp - gl.expand_dims(delta, 1))
        dq, ds = warpgroup_mma_wait(0, deps=(dq, ds))
        mbarrier.arrive(empty.index(before), pred=step > 0)
        ds = gl.convert_layout(ds.to(dtype), operand)
        before = slot
        slot, phase = _next_slot(slot, phase, STAGES)
        first_key -= N
    dq = warpgroup_mma(ds, k_buffers.index(before).reshape([N, D]), dq, is_async=True)
    dq = warpgroup_mma_wait(0, deps=(dq,))
    q_buffers.index(WHO).reshape([M, D]).store((dq * scale).to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_queries_wide(
    q_desc, k_desc, v_desc, g_desc, dq_desc, statistics,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,
):  # fmt: skip
    """dQ of 2 x M queries of one head. Grid: (blocks of queries x batches x query heads,)."""
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
                             0, CAUSAL, M, N, D, STAGES)),
        (_queries_consumer, (q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done,
                             statistics_row, delta_offset, first_row, tiles, key_length, scale, scale_log2,
                             1, CAUSAL, M, N, D, STAGES)),
        (_queries_producer, (q_desc, g_desc, k_desc, v_desc, dq_desc, q_buffers, g_buffers, k_buffers, v_buffers,
                             own_full, full, empty, done, batch, head, head // group, first_row, tiles,
                             M, N, STAGES)),
    ], [4, 1], [REGISTERS, 504 - 2 * REGISTERS])  # fmt: skip
