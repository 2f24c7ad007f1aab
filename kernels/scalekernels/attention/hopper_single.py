"""Gluon kernel for dQ of attention on Hopper (sm_90) by single tiles of keys, with 2 or 3 consumer warpgroups.

As ``hopper_backward.hopper_queries``, whose notation and rings it uses, which takes tiles in pairs and so needs
registers for four tiles of scores. Single tiles need two: enough for sums of D 256, or for a third consumer at D 64.

Not timed yet: ``hopper_gradients`` lists it for tuning. Compiled (bfloat16; Triton 3.6 and 3.7, ptxas 12.8 and 13.5)
without spills, all exponentials beside a product: D 256 by 32 keys, 229,744 bytes of shared memory and 281 to 291
instructions a tile; D 64 by 64 keys with three consumers, 147,864 bytes and 328 to 344.
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

from scalekernels.attention.hopper_backward import _mask_keys, _queries_producer
from scalekernels.attention.hopper_order import hold_differences
from scalekernels.attention.hopper_rings import RUNTIME_SIZES, _next_slot, _own_block, _ring


@gluon.jit
def _queries_consumer(
    work, WHO: gl.constexpr, CAUSAL: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr,
    STAGES: gl.constexpr,
):  # fmt: skip
    """dQ of M queries, over ``tiles`` tiles of N keys, the last first, the exponentials beside dQ of the tile before.

    The addresses of the own rows depend on ``base``, which is 0, so as not to take registers over the loop.
    """
    (q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done, statistics_row, delta_offset,
     padded_length, first_row, tiles, key_length, scale, scale_log2) = work  # fmt: skip
    scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    sums: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    operand: gl.constexpr = gl.DotOperandLayout(0, sums, 2)
    of_row: gl.constexpr = gl.SliceLayout(1, scores)
    dtype: gl.constexpr = q_buffers.dtype
    first_row += WHO * M
    row = first_row + gl.arange(0, M, layout=of_row)
    own = statistics + statistics_row + row
    has_statistics = row < padded_length  # not all rows of a third consumer
    lse = gl.load(own, mask=has_statistics, other=0.0)
    delta = gl.load(own + delta_offset, mask=has_statistics, other=0.0)
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
        s = _mask_keys(s, first_key, whole, bound, N, scores)
        p = gl.exp2(s * scale_log2 - gl.expand_dims(lse, 1))
        ds = hold_differences((p * (dp - gl.expand_dims(delta, 1))).to(dtype))
        ds = gl.convert_layout(ds, operand)
        dq = warpgroup_mma_wait(0, deps=(dq,))
        mbarrier.arrive(empty.index(before), pred=step > 0)
        before = slot
        slot, phase = _next_slot(slot, phase, STAGES)
        first_key -= N
    dq = warpgroup_mma(ds, k_buffers.index(before).reshape([N, D]), dq, is_async=True)
    dq = warpgroup_mma_wait(0, deps=(dq,))
    q_buffers.index(WHO).reshape([M, D]).store((dq * scale).to(dtype))
    fence_async_shared()
    mbarrier.arrive(done)


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def hopper_queries_single(
    q_desc, k_desc, v_desc, g_desc, dq_desc, statistics,
    batches, query_heads, group, query_length, key_length, padded_length, section, scale, scale_log2,
    CAUSAL: gl.constexpr, M: gl.constexpr, N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
    REGISTERS: gl.constexpr, PRODUCER_REGISTERS: gl.constexpr, CONSUMERS: gl.constexpr,
):  # fmt: skip
    """dQ of CONSUMERS x M queries of one head. Grid: (blocks of queries x batches x query heads,)."""
    blocks = gl.cdiv(query_length, CONSUMERS * M)
    block, index = _own_block(blocks, batches * query_heads, section)
    batch = index // query_heads
    head = index % query_heads
    end = key_length
    if CAUSAL:
        block = blocks - 1 - block
        end = gl.minimum(end, (block + 1) * CONSUMERS * M)
    first_row = block * CONSUMERS * M
    tiles = gl.cdiv(end, N)
    dtype: gl.constexpr = q_desc.dtype
    q_buffers = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, 1, M, D], q_desc.layout)
    g_buffers = gl.allocate_shared_memory(dtype, [CONSUMERS, 1, 1, M, D], g_desc.layout)
    k_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, N, D], k_desc.layout)
    v_buffers = gl.allocate_shared_memory(dtype, [STAGES, 1, 1, N, D], v_desc.layout)
    own_full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    done = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(own_full, count=1)
    mbarrier.init(done, count=CONSUMERS)
    full, empty = _ring(STAGES, CONSUMERS)
    fence_async_shared()
    statistics_row = index * padded_length
    delta_offset = batches * query_heads * padded_length
    work = (q_buffers, g_buffers, k_buffers, v_buffers, statistics, own_full, full, empty, done, statistics_row,
            delta_offset, padded_length, first_row, tiles, key_length, scale, scale_log2)  # fmt: skip
    producer_work = (q_desc, g_desc, k_desc, v_desc, dq_desc, q_buffers, g_buffers, k_buffers, v_buffers, own_full,
                     full, empty, done, batch, head, head // group, first_row, tiles)  # fmt: skip
    # The list has to be written out: partitions are known when the kernel is compiled.
    if CONSUMERS == 2:
        gl.warp_specialize([
            (_queries_consumer, (work, 0, CAUSAL, M, N, D, STAGES)),
            (_queries_consumer, (work, 1, CAUSAL, M, N, D, STAGES)),
            (_queries_producer, (producer_work, M, N, STAGES, 1, CONSUMERS)),
        ], [4, 1], [REGISTERS, PRODUCER_REGISTERS])  # fmt: skip
    else:
        gl.warp_specialize([
            (_queries_consumer, (work, 0, CAUSAL, M, N, D, STAGES)),
            (_queries_consumer, (work, 1, CAUSAL, M, N, D, STAGES)),
            (_queries_consumer, (work, 2, CAUSAL, M, N, D, STAGES)),
            (_queries_producer, (producer_work, M, N, STAGES, 1, CONSUMERS)),
        ], [4, 4, 1], [REGISTERS, REGISTERS, PRODUCER_REGISTERS])  # fmt: skip
