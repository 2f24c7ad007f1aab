"""Gluon kernel for dK and dV of attention on Hopper (sm_90) where D is 256.

As ``hopper_backward.hopper_keys``, whose notation and rings it uses, but both sums of 64 keys would take all registers
of a consumer. Here a program owns 64 keys, and each consumer half of the columns of both sums. Of a pair of tiles of M
queries each computes the scores of one, and passes p and ds to the other through shared memory.

Not timed yet: ``hopper_gradients.methods`` lists it for tuning. Compiled (bfloat16; Triton 3.6 and 3.7, ptxas 12.8 and
13.5): 214,576 bytes of shared memory, no spills, 320 to 381 instructions for a pair of tiles, all exponentials beside
a product.
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

from scalekernels.attention.hopper_backward import _key_weights, _keys_producer
from scalekernels.attention.hopper_rings import RUNTIME_SIZES, _next_slot, _own_block, _ring


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
                          delta_offset, KEYS, M, STAGES, 1)),
    ], [4, 1], [REGISTERS, 24])  # fmt: skip
