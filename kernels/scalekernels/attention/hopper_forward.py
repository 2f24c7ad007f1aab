"""The forward pass of exact attention for Hopper (sm_90), written in Gluon: warp-specialized, wgmma, TMA.

A program computes CONSUMERS x 64 queries of one head at a time. One warp is the producer: it fetches the queries and
the tiles of keys and values, last tile first, into rings of STAGES buffers by TMA. Each consumer warpgroup (4 warps)
has 64 queries. In step j it issues the product Q K_j, then P V_{j-1}, and computes the softmax of tile j while
P V_{j-1} runs. With PING_PONG the consumers take turns to issue their products, so that one computes its softmax while
the tensor cores work for the other (FlashAttention-3, Shah et al. 2024, arXiv 2407.08608).

Barriers, all mbarriers in shared memory: q_full, one for each consumer, k_full and v_full, one for each stage, complete
when the bytes of a tile have landed; q_empty, k_empty and v_empty when the consumers have read it; turn, one for each
consumer, is for PING_PONG. A barrier's n-th use waits for parity n & 1; the first wait on an empty barrier passes.

A program may have several tiles of queries (see ``_own_tile``): while the consumers finish one, the producer fetches
what the next needs. The output passes through buffers of its own, or, with SHARED_OUT, through those of the queries,
which saves memory and has the next queries wait.

Queries, keys, values and output are 4-D descriptors (batch, heads, length, D) with their own strides. TMA reads rows
beyond the length as zeros and does not write them. The keys that a row may not see get a score of -inf; only the tiles
that need it are masked. A row that sees no key of its first tiles has peak -inf, which ``_softmax`` handles.
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

RUNTIME_SIZES = ["heads", "query_heads", "group", "section", "query_length", "key_length"]  # one machine code for all
ROWS = gl.constexpr(64)  # queries of one consumer warpgroup: the height of a wgmma


@gluon.jit
def _next(slot, phase, STAGES: gl.constexpr):
    """The ring position after ``slot``; the phase flips where the ring starts again. No division."""
    slot = slot + 1
    if slot == STAGES:
        slot = slot * 0
        phase = phase ^ 1
    return slot, phase


def _split_columns(columns: int) -> gl.DistributedLinearLayout:
    """Layout of scores (64, columns) of 4 warps as (64, columns / 8, 4, 2): which row and column a register holds."""
    eighths = [[0, 1 << bit, 0, 0] for bit in range((columns // 8).bit_length() - 1)]
    return gl.DistributedLinearLayout(
        reg_bases=[[0, 0, 0, 1], [8, 0, 0, 0], *eighths],
        lane_bases=[[0, 0, 1, 0], [0, 0, 2, 0], [1, 0, 0, 0], [2, 0, 0, 0], [4, 0, 0, 0]],
        warp_bases=[[16, 0, 0, 0], [32, 0, 0, 0]],
        block_bases=[],
        shape=[64, columns // 8, 4, 2],
    )


SPLIT_64, SPLIT_128 = gl.constexpr(_split_columns(64)), gl.constexpr(_split_columns(128))


@gluon.jit
def _mask(scores, row0, first_key, key_length, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, layout: gl.constexpr):
    """Scores (64, BLOCK_N) with -inf for keys that do not exist or, with CAUSAL, come after the row's query.

    A thread's columns are 8 i + 2 (lane % 4) + 0 or 1, of which i and the last are known when it is compiled: so
    constants are compared with one number for each row. Sums with the lane would take a register for each column.
    """
    split: gl.constexpr = SPLIT_64 if BLOCK_N == 64 else SPLIT_128
    rows_layout: gl.constexpr = gl.SliceLayout(1, gl.SliceLayout(2, gl.SliceLayout(3, split)))
    eighths_layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(2, gl.SliceLayout(3, split)))
    pairs_layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(3, split)))
    ones_layout: gl.constexpr = gl.SliceLayout(0, gl.SliceLayout(1, gl.SliceLayout(2, split)))
    eighths = gl.arange(0, BLOCK_N // 8, layout=eighths_layout)
    eighths = gl.expand_dims(gl.expand_dims(gl.expand_dims(eighths, 0), 2), 3)
    pairs = gl.expand_dims(gl.expand_dims(gl.expand_dims(gl.arange(0, 4, layout=pairs_layout), 0), 1), 3)
    ones = gl.expand_dims(gl.expand_dims(gl.expand_dims(gl.arange(0, 2, layout=ones_layout), 0), 1), 2)
    if CAUSAL:
        end = gl.minimum(row0 + gl.arange(0, ROWS, layout=rows_layout) + 1, key_length)
    else:
        end = gl.full([ROWS], key_length, gl.int32, rows_layout)
    end = gl.expand_dims(gl.expand_dims(gl.expand_dims(end - first_key, 1), 2), 3)
    keep = gl.reshape(eighths * 8 + ones < end - pairs * 2, [ROWS, BLOCK_N])
    return gl.where(gl.convert_layout(keep, layout), scores, float("-inf"))


@gluon.jit
def _softmax(scores, peak, total, scale_log2):
    """Weights, correction of what was summed before, and the new peak and total of every row (base 2)."""
    new_peak = gl.maximum(peak, gl.max(scores, 1) * scale_log2)
    # -inf - -inf would be NaN: a row that has seen no key yet has weights of 2^-inf = 0.
    shift = gl.where(new_peak == float("-inf"), 0.0, new_peak)
    weights = gl.exp2(scores * scale_log2 - gl.expand_dims(shift, 1))
    correction = gl.exp2(peak - shift)
    total = total * correction + gl.sum(weights, 1)
    return weights, correction, new_peak, total


@gluon.jit
def _hold(total):
    """The same sums, which what follows cannot overtake: a volatile store that never happens, for no sum is negative.

    Without it ptxas moves the wait for P V above the exponentials, which then run with idle tensor cores.
    """
    return gl.inline_asm_elementwise(
        "{ .reg .pred q; .reg .b32 a; mov.b32 a, 0; setp.lt.f32 q, $1, 0f00000000; "
        "@q st.volatile.shared.b32 [a], a; mov.b32 $0, $1; }",
        "=r,r", [total], dtype=gl.float32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _own_place(base, odd):
    """This program's place in the round that begins at ``base``; every other round is dealt from the last program."""
    return base + (gl.num_programs(0) - 1 - gl.program_id(0) if odd else gl.program_id(0))


@gluon.jit
def _own_turns(sizes, BLOCK: gl.constexpr, DEALT: gl.constexpr):
    """How many tiles this program has, and the heads of a section; see ``_own_tile``."""
    heads, _query_heads, _group, section, query_length, _key_length = sizes
    tiles = gl.cdiv(query_length, BLOCK)
    programs = gl.num_programs(0)
    if DEALT:
        section = gl.minimum(gl.maximum(section, gl.cdiv(programs, tiles)), heads)
        whole, rounds = heads // section, gl.cdiv(section * tiles, programs)
        rest = heads - whole * section
        rest_rounds = gl.cdiv(rest * tiles, programs)
        # Of the sections with even and odd number, and of what is left after the whole ones.
        even = _own_share(section * tiles, rounds, rounds - 1)
        odd = _own_share(section * tiles, rounds, 2 * rounds - 1)
        turns = (whole + 1) // 2 * even + whole // 2 * odd
        turns += _own_share(rest * tiles, rest_rounds, whole * rounds + rest_rounds - 1)
    else:
        rounds = tiles * heads // programs
        turns = rounds + 1 if _own_place(rounds * programs, rounds & 1) < tiles * heads else rounds
    return turns, section


@gluon.jit
def _own_share(tiles, rounds, last):
    """How many of a section's tiles this program has; its last round is number ``last`` of all."""
    in_last = _own_place((rounds - 1) * gl.num_programs(0), last & 1) < tiles
    return rounds if in_last else rounds - 1


@gluon.jit
def _own_tile(state, sizes, BLOCK: gl.constexpr, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, DEALT: gl.constexpr):
    """Index of batch x heads, first query, number of key tiles of a program's next tile, and the state after it.

    Heads are taken ``section`` at a time, so that their keys fit the L2 cache. Where attention is causal, within a
    section all heads' last tiles come first, as these have the most keys. In round r, of P programs p has tile r P + p,
    or (r + 1) P - 1 - p where r is odd, so that two rounds together take all programs equally long. With DEALT every
    section begins a new round: else some programs would have its long tiles beside those of the section before.
    ``state`` is the section's first head, the number of the round's first tile, and whether the round is odd.
    """
    heads, _query_heads, _group, section, query_length, key_length = sizes
    first, base, odd = state
    tiles = gl.cdiv(query_length, BLOCK)
    place = _own_place(base, odd)
    if DEALT:
        size = gl.minimum(section, heads - first)
        if place >= size * tiles:  # the section is over, or has no tile for this program in its last round
            odd = odd ^ 1 if base < size * tiles else odd
            first, base = first + section, base * 0
            size = gl.minimum(section, heads - first)
            place = _own_place(base, odd)
    else:
        first = place // (section * tiles) * section
        size = gl.minimum(section, heads - first)
        place -= first * tiles
    tile = place // size
    index = first + place % size
    if CAUSAL:
        tile = tiles - 1 - tile
    row0 = tile * BLOCK
    # Without a causal mask it is key_length, in a form that depends on the turn: else the compiler makes the masks
    # before the first turn, and has no registers for them.
    end = gl.minimum(key_length, row0 + BLOCK) if CAUSAL else gl.maximum(key_length, 0 - base)
    return index, row0, gl.cdiv(end, BLOCK_N), (first, base + gl.num_programs(0), odd ^ 1)


@gluon.jit
def _consume(buffers, barriers, out_desc, lse, turns, sizes, scale_log2, WHO: gl.constexpr,  # noqa: PLR0915, C901
             CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr,
             CONSUMERS: gl.constexpr, PING_PONG: gl.constexpr, SHARED_OUT: gl.constexpr,
             DEALT: gl.constexpr):  # fmt: skip
    """A consumer warpgroup: 64 queries of each tile over the tiles of keys, last to first, then out and lse."""
    score_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK_N, 16])
    acc_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    weight_layout: gl.constexpr = gl.DotOperandLayout(0, acc_layout, 2)
    row_layout: gl.constexpr = gl.SliceLayout(1, score_layout)
    dtype: gl.constexpr = out_desc.dtype
    q_bufs, k_bufs, v_bufs, o_bufs = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, turn = barriers
    query_heads, query_length, key_length = sizes[1], sizes[4], sizes[5]
    q = q_bufs.index(WHO).reshape([ROWS, D])
    o = o_bufs.index(WHO).reshape([ROWS, D])
    zeros = gl.zeros([ROWS, BLOCK_N], gl.float32, score_layout)
    slot, phase, q_phase = turns * 0, turns * 0, turns * 0
    turn_phase = turns * 0 + (1 if WHO == 0 else 0)  # the first turn is consumer 0's

    state = (turns * 0, turns * 0, turns * 0)
    for _own in range(turns):
        index, row0, tiles, state = _own_tile(state, sizes, CONSUMERS * ROWS, CAUSAL, BLOCK_N, DEALT)
        row0 = row0 + WHO * ROWS
        whole = key_length // BLOCK_N  # tiles that need no mask: before the end of the keys, and before the diagonal
        if CAUSAL:
            whole = gl.minimum(whole, (row0 + 1) // BLOCK_N)
        masked = tiles - whole
        acc = gl.zeros([ROWS, D], gl.float32, acc_layout)
        peak = gl.full([ROWS], float("-inf"), gl.float32, row_layout)
        total = gl.zeros([ROWS], gl.float32, row_layout)

        mbarrier.wait(q_full.index(WHO), q_phase)
        mbarrier.wait(k_full.index(slot), phase)
        if PING_PONG:
            mbarrier.wait(turn.index(WHO), turn_phase)
        keys = k_bufs.index(slot).reshape([BLOCK_N, D])
        score_token = warpgroup_mma(q, keys.permute((1, 0)), zeros, use_acc=False, is_async=True)
        if PING_PONG:
            mbarrier.arrive(turn.index((WHO + 1) % CONSUMERS), count=1)
        scores = warpgroup_mma_wait(0, deps=(score_token,))
        mbarrier.arrive(k_empty.index(slot), count=1)
        scores = _mask(scores, row0, (tiles - 1) * BLOCK_N, key_length, CAUSAL, BLOCK_N, score_layout)
        raw, _correction, peak, total = _softmax(scores, peak, total, scale_log2)
        weights = gl.convert_layout(raw.to(dtype), weight_layout)

        for step in range(1, tiles):
            before, before_phase = slot, phase
            slot, phase = _next(slot, phase, STAGES)
            turn_phase = turn_phase ^ 1
            keys = k_bufs.index(slot).reshape([BLOCK_N, D])
            values = v_bufs.index(before).reshape([BLOCK_N, D])
            mbarrier.wait(k_full.index(slot), phase)
            if PING_PONG:
                mbarrier.wait(turn.index(WHO), turn_phase)
            score_token = warpgroup_mma(q, keys.permute((1, 0)), zeros, use_acc=False, is_async=True)
            mbarrier.wait(v_full.index(before), before_phase)
            acc_token = warpgroup_mma(weights, values, acc, is_async=True)
            if PING_PONG:
                mbarrier.arrive(turn.index((WHO + 1) % CONSUMERS), count=1)
            scores = warpgroup_mma_wait(1, deps=(score_token,))
            mbarrier.arrive(k_empty.index(slot), count=1)
            if step < masked:
                first_key = (tiles - 1 - step) * BLOCK_N
                scores = _mask(scores, row0, first_key, key_length, CAUSAL, BLOCK_N, score_layout)
            raw, correction, peak, total = _softmax(scores, peak, total, scale_log2)
            total = _hold(total)
            # The weights stay float32 until the product that reads the ones before is over.
            acc, raw = warpgroup_mma_wait(0, deps=(acc_token, raw))
            mbarrier.arrive(v_empty.index(before), count=1)
            weights = gl.convert_layout(raw.to(dtype), weight_layout)
            acc = acc * gl.expand_dims(gl.convert_layout(correction, gl.SliceLayout(1, acc_layout)), 1)

        if not SHARED_OUT:
            mbarrier.arrive(q_empty.index(WHO), count=1)
        mbarrier.wait(v_full.index(slot), phase)
        acc_token = warpgroup_mma(weights, v_bufs.index(slot).reshape([BLOCK_N, D]), acc, is_async=True)
        rows = row0 + gl.arange(0, ROWS, layout=row_layout)
        places = lse + index.to(gl.int64) * query_length + rows
        gl.store(places, peak + gl.log2(total), mask=rows < query_length)
        tma.store_wait(0)  # the output before has left its buffer
        acc = warpgroup_mma_wait(0, deps=(acc_token,))
        mbarrier.arrive(v_empty.index(slot), count=1)
        acc = acc * gl.expand_dims(gl.convert_layout(1.0 / total, gl.SliceLayout(1, acc_layout)), 1)
        o.store(acc.to(dtype))
        fence_async_shared()
        place = [index // query_heads, index % query_heads, row0, 0]
        tma.async_copy_shared_to_global(out_desc, place, o_bufs.index(WHO))
        if SHARED_OUT:
            tma.store_wait(0)
            mbarrier.arrive(q_empty.index(WHO), count=1)
        slot, phase = _next(slot, phase, STAGES)
        turn_phase, q_phase = turn_phase ^ 1, q_phase ^ 1
    tma.store_wait(0)


@gluon.jit
def _produce(descriptors, buffers, barriers, turns, sizes, CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr,
             STAGES: gl.constexpr, CONSUMERS: gl.constexpr, DEALT: gl.constexpr):  # fmt: skip
    """The producer warp: keys of a tile before values of the one before, as consumers need them."""
    q_desc, k_desc, v_desc = descriptors
    q_bufs, k_bufs, v_bufs, _o_bufs = buffers
    q_full, q_empty, k_full, k_empty, v_full, v_empty, _turn = barriers
    slot, phase, q_phase = turns * 0, turns * 0, turns * 0
    query_heads, group = sizes[1], sizes[2]
    state = (turns * 0, turns * 0, turns * 0)
    for _own in range(turns):
        index, row0, tiles, state = _own_tile(state, sizes, CONSUMERS * ROWS, CAUSAL, BLOCK_N, DEALT)
        batch, head = index // query_heads, index % query_heads
        key_head = head // group
        first_key = (tiles - 1) * BLOCK_N
        mbarrier.wait(k_empty.index(slot), phase ^ 1)
        mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(k_desc, [batch, key_head, first_key, 0], k_full.index(slot), k_bufs.index(slot))
        for who in gl.static_range(CONSUMERS):
            mbarrier.wait(q_empty.index(who), q_phase ^ 1)
            mbarrier.expect(q_full.index(who), q_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(q_desc, [batch, head, row0 + who * ROWS, 0], q_full.index(who),
                                            q_bufs.index(who))  # fmt: skip
        for _step in range(1, tiles):
            before, before_phase = slot, phase
            slot, phase = _next(slot, phase, STAGES)
            mbarrier.wait(k_empty.index(slot), phase ^ 1)
            mbarrier.expect(k_full.index(slot), k_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(k_desc, [batch, key_head, first_key - BLOCK_N, 0], k_full.index(slot),
                                            k_bufs.index(slot))  # fmt: skip
            mbarrier.wait(v_empty.index(before), before_phase ^ 1)
            mbarrier.expect(v_full.index(before), v_desc.block_type.nbytes)
            tma.async_copy_global_to_shared(v_desc, [batch, key_head, first_key, 0], v_full.index(before),
                                            v_bufs.index(before))  # fmt: skip
            first_key -= BLOCK_N
        mbarrier.wait(v_empty.index(slot), phase ^ 1)
        mbarrier.expect(v_full.index(slot), v_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(v_desc, [batch, key_head, first_key, 0], v_full.index(slot), v_bufs.index(slot))
        slot, phase = _next(slot, phase, STAGES)
        q_phase = q_phase ^ 1


@gluon.jit(do_not_specialize=RUNTIME_SIZES)
def attention_forward_hopper(
    q_desc, k_desc, v_desc, out_desc, lse, heads, query_heads, group, section, query_length, key_length, scale_log2,
    CAUSAL: gl.constexpr, BLOCK_N: gl.constexpr, D: gl.constexpr, STAGES: gl.constexpr, CONSUMERS: gl.constexpr,
    PING_PONG: gl.constexpr, SHARED_OUT: gl.constexpr, DEALT: gl.constexpr, REGISTERS: gl.constexpr,
    PRODUCER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """CONSUMERS x 64 queries of one head at a time. Grid: any number of programs up to tiles x ``heads``; 4 warps.

    ``heads`` is batch x query heads. Descriptors move (1, 1, 64, D) of q and out, (1, 1, BLOCK_N, D) of k and v; lse is
    (batch, query heads, length).
    """
    sizes = (heads, query_heads, group, section, query_length, key_length)
    turns, section = _own_turns(sizes, CONSUMERS * ROWS, DEALT)
    sizes = (heads, query_heads, group, section, query_length, key_length)

    q_bufs = gl.allocate_shared_memory(q_desc.dtype, [CONSUMERS, 1, 1, ROWS, D], q_desc.layout)
    k_bufs = gl.allocate_shared_memory(k_desc.dtype, [STAGES, 1, 1, BLOCK_N, D], k_desc.layout)
    v_bufs = gl.allocate_shared_memory(v_desc.dtype, [STAGES, 1, 1, BLOCK_N, D], v_desc.layout)
    if SHARED_OUT:
        o_bufs = q_bufs
    else:
        o_bufs = gl.allocate_shared_memory(out_desc.dtype, [CONSUMERS, 1, 1, ROWS, D], out_desc.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    q_empty = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    turn = gl.allocate_shared_memory(gl.int64, [CONSUMERS, 1], mbarrier.MBarrierLayout())
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(CONSUMERS):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
        mbarrier.init(turn.index(i), count=1)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=CONSUMERS)
        mbarrier.init(v_empty.index(i), count=CONSUMERS)
    fence_async_shared()

    descriptors = (q_desc, k_desc, v_desc)
    buffers = (q_bufs, k_bufs, v_bufs, o_bufs)
    barriers = (q_full, q_empty, k_full, k_empty, v_full, v_empty, turn)
    # The list has to be written out: partitions are known when the kernel is compiled.
    if CONSUMERS == 2:
        gl.warp_specialize(
            [
                (_consume, (buffers, barriers, out_desc, lse, turns, sizes, scale_log2, 0, CAUSAL, BLOCK_N, D, STAGES,
                            CONSUMERS, PING_PONG, SHARED_OUT, DEALT)),
                (_consume, (buffers, barriers, out_desc, lse, turns, sizes, scale_log2, 1, CAUSAL, BLOCK_N, D, STAGES,
                            CONSUMERS, PING_PONG, SHARED_OUT, DEALT)),
                (_produce, (descriptors, buffers, barriers, turns, sizes, CAUSAL, BLOCK_N, STAGES, CONSUMERS,
                            DEALT)),
            ],
            [4, 1],
            [REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        gl.warp_specialize(
            [
                (_consume, (buffers, barriers, out_desc, lse, turns, sizes, scale_log2, 0, CAUSAL, BLOCK_N, D, STAGES,
                            CONSUMERS, PING_PONG, SHARED_OUT, DEALT)),
                (_consume, (buffers, barriers, out_desc, lse, turns, sizes, scale_log2, 1, CAUSAL, BLOCK_N, D, STAGES,
                            CONSUMERS, PING_PONG, SHARED_OUT, DEALT)),
                (_consume, (buffers, barriers, out_desc, lse, turns, sizes, scale_log2, 2, CAUSAL, BLOCK_N, D, STAGES,
                            CONSUMERS, PING_PONG, SHARED_OUT, DEALT)),
                (_produce, (descriptors, buffers, barriers, turns, sizes, CAUSAL, BLOCK_N, STAGES, CONSUMERS,
                            DEALT)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
