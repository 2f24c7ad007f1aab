"""The jit functions of exact attention; ``attention.py`` launches them and holds the mathematics.

Every program owns one tile of the result and runs over the tiles of the other sequence twice: through those that every
row sees whole, without any mask, and through those on the diagonal or at the end of a sequence, with masks. Nothing is
written twice except the float32 sum of dQ when ``ATOMIC``.

Tiles are loaded through pointers, which take any view and compile to 16-byte asynchronous copies where the tensors are
aligned. The forward pass and that for dQ can load keys and values through tensor descriptors instead, where
``DESCRIPTORS``; what these want of a tensor is in ``descriptors.py``, what the compiler makes of them in ``tiles.py``.
Offsets are 64-bit from the first product with a stride on, so that tensors beyond 2^31 elements are addressed rightly.

Written against known miscompilations on Hopper (Triton 3.4 to 3.7): no product takes the transpose of an accumulator
(scores are computed transposed where their transpose is needed), and dQ, where it comes from transposed scores, is
itself computed transposed. Products of float32 are exact to float32 (``ieee``), not TF32.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (the arguments of a jit function are pointers and sizes, typed where it is compiled)

from __future__ import annotations

import triton
import triton.language as tl

RUNTIME_SIZES = ["query_heads", "group", "query_length", "key_length"]  # one machine code for all


@triton.jit
def _rows_of(base, first, stride, BLOCK: tl.constexpr, D: tl.constexpr):
    """Pointers to (BLOCK, D) elements from row ``first`` on; the last dimension is contiguous.

    Each row is widened before the product: offsets split into a scalar and a tile part made ptxas serialise wgmma.
    """
    rows = first + tl.arange(0, BLOCK)
    return base + rows.to(tl.int64)[:, None] * stride + tl.arange(0, D)[None, :]


@triton.jit
def _load_rows(base, first, stride, length, BLOCK: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr):
    """A (rows, D) tile; rows at or beyond ``length`` are zero where MASKED, and promised not to occur where not."""
    pointers = _rows_of(base, first, stride, BLOCK, D)
    if MASKED:
        tile = tl.load(pointers, mask=(first + tl.arange(0, BLOCK) < length)[:, None], other=0.0)
    else:
        tile = tl.load(pointers)
    return tile


@triton.jit
def _load_keys(source, batch, head, first, stride, length, BLOCK: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr,
               DESCRIPTORS: tl.constexpr):  # fmt: skip
    """A (keys, D) tile, from a head's pointer, or by the descriptor of all heads, which reads zero beyond the end."""
    if DESCRIPTORS:
        tile = tl.reshape(source.load([batch, head, first, 0]), [BLOCK, D])
    else:
        tile = _load_rows(source, first, stride, length, BLOCK, D, MASKED)
    return tile


@triton.jit
def _load_vector(base, rows, length, other, MASKED: tl.constexpr):
    """One float32 per row; ``other`` beyond ``length``."""
    return tl.load(base + rows, mask=rows < length, other=other) if MASKED else tl.load(base + rows)


@triton.jit
def _head(base, index, heads, stride_batch, stride_head):
    """The first element of head ``index`` of batch x heads."""
    batch = tl.cast(index // heads, tl.int64)
    return base + batch * stride_batch + tl.cast(index % heads, tl.int64) * stride_head


@triton.jit
def _key_head(index, query_heads, group):
    """The batch, and the key head that query head ``index`` of batch x query heads reads."""
    return index // query_heads, index % query_heads // group


@triton.jit
def _load_head(base, index, heads, stride_batch, stride_head, first, stride, length, BLOCK: tl.constexpr,
               D: tl.constexpr):  # fmt: skip
    """Rows from ``first`` on of head ``index`` of batch x heads, (BLOCK, D); zero beyond ``length``."""
    return _load_rows(_head(base, index, heads, stride_batch, stride_head), first, stride, length, BLOCK, D, True)


@triton.jit
def _own_tile(length, BLOCK: tl.constexpr, LAST_FIRST: tl.constexpr):
    """Which head of batch x heads this program works on, and where its tile of rows begins."""
    tiles = tl.cdiv(length, BLOCK)
    index = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    if LAST_FIRST:
        tile = tiles - 1 - tile
    return index, tile * BLOCK


@triton.jit
def _visible(rows, keys, key_length, CAUSAL: tl.constexpr):
    """Which keys exist and are seen, by broadcasting: query i sees keys up to i (top left)."""
    seen = keys < key_length
    if CAUSAL:
        seen = seen & (keys <= rows)
    return seen


@triton.jit
def _key_range(first_row, key_length, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """For a tile of queries: where its whole key tiles end, and where its keys end."""
    whole = key_length // BLOCK_N * BLOCK_N
    end = key_length
    if CAUSAL:
        whole = min(whole, (first_row + 1) // BLOCK_N * BLOCK_N)
        end = min(end, first_row + BLOCK_M)
    return whole, end


@triton.jit
def _attend(acc, total, peak, q, k, v, batch, head, stride_kt, stride_vt, rows, first, end, key_length, scale_log2,
            D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DESCRIPTORS: tl.constexpr,
            MASKED: tl.constexpr):  # fmt: skip
    """Add keys [first, end) to the running softmax: weighted values, total weight and largest score (base 2)."""
    for start in range(first, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_tile = _load_keys(k, batch, head, start, stride_kt, key_length, BLOCK_N, D, MASKED, DESCRIPTORS)
        scores = tl.dot(q, tl.trans(k_tile), input_precision="ieee")
        if MASKED:
            scores = tl.where(_visible(rows[:, None], keys[None, :], key_length, CAUSAL), scores, float("-inf"))
        new_peak = tl.maximum(peak, tl.max(scores, 1) * scale_log2)
        weights = tl.math.exp2(scores * scale_log2 - new_peak[:, None])
        correction = tl.math.exp2(peak - new_peak)
        acc = acc * correction[:, None]
        v_tile = _load_keys(v, batch, head, start, stride_vt, key_length, BLOCK_N, D, MASKED, DESCRIPTORS)
        acc = tl.dot(weights.to(v_tile.dtype), v_tile, acc, input_precision="ieee")
        total = total * correction + tl.sum(weights, 1)
        peak = new_peak
    return acc, total, peak


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def attention_forward(
    q, k, v, out, lse,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt,
    stride_vb, stride_vh, stride_vt, stride_ob, stride_oh, stride_ot,
    query_heads, group, query_length, key_length, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head. Grid: (tiles x batch x query heads,); the longest rows of a head first."""
    index, first_row = _own_tile(query_length, BLOCK_M, CAUSAL)
    rows = first_row + tl.arange(0, BLOCK_M)
    stride_kt, stride_vt = tl.cast(stride_kt, tl.int64), tl.cast(stride_vt, tl.int64)
    stride_qt, stride_ot = tl.cast(stride_qt, tl.int64), tl.cast(stride_ot, tl.int64)
    if not DESCRIPTORS:
        k = _head(k, index // group, query_heads // group, stride_kb, stride_kh)
        v = _head(v, index // group, query_heads // group, stride_vb, stride_vh)
    q_tile = _load_head(q, index, query_heads, stride_qb, stride_qh, first_row, stride_qt, query_length, BLOCK_M, D)

    batch, head = _key_head(index, query_heads, group)
    acc = tl.zeros([BLOCK_M, D], tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    whole, end = _key_range(first_row, key_length, CAUSAL, BLOCK_M, BLOCK_N)
    acc, total, peak = _attend(acc, total, peak, q_tile, k, v, batch, head, stride_kt, stride_vt, rows, 0, whole,
                               key_length, scale_log2, D, BLOCK_N, CAUSAL, DESCRIPTORS, False)  # fmt: skip
    acc, total, peak = _attend(acc, total, peak, q_tile, k, v, batch, head, stride_kt, stride_vt, rows, whole, end,
                               key_length, scale_log2, D, BLOCK_N, CAUSAL, DESCRIPTORS, True)  # fmt: skip

    inside = rows < query_length
    tl.store(lse + tl.cast(index, tl.int64) * query_length + rows, peak + tl.math.log2(total), mask=inside)
    pointers = _rows_of(_head(out, index, query_heads, stride_ob, stride_oh), first_row, stride_ot, BLOCK_M, D)
    tl.store(pointers, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def attention_delta(
    out, grad_out, delta,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt,
    query_heads, query_length,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """The row sums of out x grad_out in float32. Grid: (tiles x batch x query heads,)."""
    index, first_row = _own_tile(query_length, BLOCK_M, False)
    rows = first_row + tl.arange(0, BLOCK_M)
    stride_ot, stride_gt = tl.cast(stride_ot, tl.int64), tl.cast(stride_gt, tl.int64)
    o = _load_head(out, index, query_heads, stride_ob, stride_oh, first_row, stride_ot, query_length, BLOCK_M, D)
    g = _load_head(grad_out, index, query_heads, stride_gb, stride_gh, first_row, stride_gt, query_length, BLOCK_M, D)
    sums = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    tl.store(delta + tl.cast(index, tl.int64) * query_length + rows, sums, mask=rows < query_length)


@triton.jit(do_not_specialize=(*RUNTIME_SIZES, "padded_length", "delta_offset"))
def attention_statistics(
    out, grad_out, lse, statistics,
    stride_ob, stride_oh, stride_ot, stride_gb, stride_gh, stride_gt,
    query_heads, query_length, padded_length, delta_offset,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Copies of ``lse``, and row sums of out x grad_out: (2, batch, query heads, padded length), 0 in the padding.

    Grid: (tiles of the padded length x batch x query heads,).
    """
    index, first_row = _own_tile(padded_length, BLOCK_M, False)
    rows = first_row + tl.arange(0, BLOCK_M)
    stride_ot, stride_gt = tl.cast(stride_ot, tl.int64), tl.cast(stride_gt, tl.int64)
    o = _load_head(out, index, query_heads, stride_ob, stride_oh, first_row, stride_ot, query_length, BLOCK_M, D)
    g = _load_head(grad_out, index, query_heads, stride_gb, stride_gh, first_row, stride_gt, query_length, BLOCK_M, D)
    sums = tl.sum(o.to(tl.float32) * g.to(tl.float32), 1)
    logarithms = _load_vector(lse + tl.cast(index, tl.int64) * query_length, rows, query_length, 0.0, True)
    own = statistics + tl.cast(index, tl.int64) * padded_length + rows
    tl.store(own, logarithms)
    tl.store(own + delta_offset, sums)


@triton.jit
def _add_query_tile(dk, dv, k, v, q_base, g_base, lse, delta, dq_base, stride_qb, stride_qh, stride_qt, stride_gb,
                    stride_gh, stride_gt, index, query_heads, first_row, keys, query_length, key_length, padded_length,
                    scale_log2, D: tl.constexpr, BLOCK_M: tl.constexpr, CAUSAL: tl.constexpr, ATOMIC: tl.constexpr,
                    MASKED: tl.constexpr):  # fmt: skip
    """Add one tile of queries of head ``index`` to dK and dV, all scores transposed: (keys, queries)."""
    q_head = _head(q_base, index, query_heads, stride_qb, stride_qh)
    g_head = _head(g_base, index, query_heads, stride_gb, stride_gh)
    lse_head = lse + tl.cast(index, tl.int64) * query_length
    delta_head = delta + tl.cast(index, tl.int64) * query_length
    rows = first_row + tl.arange(0, BLOCK_M)
    q = _load_rows(q_head, first_row, stride_qt, query_length, BLOCK_M, D, MASKED)
    scores = tl.dot(k, tl.trans(q), input_precision="ieee")
    if MASKED:
        scores = tl.where(_visible(rows[None, :], keys[:, None], key_length, CAUSAL), scores, float("-inf"))
    lse = _load_vector(lse_head, rows, query_length, float("inf"), MASKED)
    weights = tl.math.exp2(scores * scale_log2 - lse[None, :])
    g = _load_rows(g_head, first_row, stride_gt, query_length, BLOCK_M, D, MASKED)
    dv = tl.dot(weights.to(g.dtype), g, dv, input_precision="ieee")
    dweights = tl.dot(v, tl.trans(g), input_precision="ieee")
    delta = _load_vector(delta_head, rows, query_length, 0.0, MASKED)
    dscores = (weights * (dweights - delta[None, :])).to(q.dtype)
    if ATOMIC:  # before dK, whose product then runs on while the sums go out
        dq = tl.dot(tl.trans(k), dscores, input_precision="ieee")
        dq_head = dq_base + tl.cast(index, tl.int64) * padded_length * D
        pointers = dq_head + tl.arange(0, D).to(tl.int64)[:, None] * padded_length + rows[None, :]
        tl.atomic_add(pointers, dq, sem="relaxed")
    dk = tl.dot(dscores, q, dk, input_precision="ieee")
    return dk, dv


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def attention_backward_keys(
    q, k, v, grad_out, lse, delta, dq, dk, dv,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_gb, stride_gh, stride_gt, stride_dkb, stride_dkh, stride_dkt, stride_dvb, stride_dvh, stride_dvt,
    query_heads, group, query_length, key_length, padded_length, scale, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, ATOMIC: tl.constexpr,
):  # fmt: skip
    """dK and dV of one tile of keys, over the query heads of its group in order. Grid: (tiles x batch x key heads,).

    ``dq`` is, where ATOMIC, a zeroed float32 (batch, query heads, D, padded length) that is added to; else unused.
    """
    index, first_key = _own_tile(key_length, BLOCK_N, False)
    keys = first_key + tl.arange(0, BLOCK_N)
    key_heads = query_heads // group
    stride_qt, stride_gt = tl.cast(stride_qt, tl.int64), tl.cast(stride_gt, tl.int64)
    stride_kt, stride_vt = tl.cast(stride_kt, tl.int64), tl.cast(stride_vt, tl.int64)
    k_tile = _load_head(k, index, key_heads, stride_kb, stride_kh, first_key, stride_kt, key_length, BLOCK_N, D)
    v_tile = _load_head(v, index, key_heads, stride_vb, stride_vh, first_key, stride_vt, key_length, BLOCK_N, D)

    # Tiles of queries: [first, clear) and [tail, tiles_m) need masks, [clear, tail) sees every key of this tile.
    tiles_m = tl.cdiv(query_length, BLOCK_M)
    first = 0
    clear = 0
    if CAUSAL:
        first = min(first_key // BLOCK_M, tiles_m)
        clear = min(tl.cdiv(first_key + BLOCK_N - 1, BLOCK_M), tiles_m)
    if first_key + BLOCK_N > key_length:
        clear = tiles_m
    tail = tl.maximum(clear, query_length // BLOCK_M)

    # One flat loop over (member of the group, tile): no registers held for another round, loads run ahead over heads.
    grad_k = tl.zeros([BLOCK_N, D], tl.float32)
    grad_v = tl.zeros([BLOCK_N, D], tl.float32)
    edges = clear - first + tiles_m - tail
    for step in range(group * edges):
        tile = step % edges
        tile = tl.where(tile < clear - first, first + tile, tail + tile - (clear - first))
        grad_k, grad_v = _add_query_tile(
            grad_k, grad_v, k_tile, v_tile, q, grad_out, lse, delta, dq, stride_qb, stride_qh, stride_qt, stride_gb,
            stride_gh, stride_gt, index * group + step // edges, query_heads, tile * BLOCK_M, keys, query_length,
            key_length, padded_length, scale_log2, D, BLOCK_M, CAUSAL, ATOMIC, True)  # fmt: skip
    wholes = tail - clear
    for step in range(group * wholes):
        grad_k, grad_v = _add_query_tile(
            grad_k, grad_v, k_tile, v_tile, q, grad_out, lse, delta, dq, stride_qb, stride_qh, stride_qt, stride_gb,
            stride_gh, stride_gt, index * group + step // wholes, query_heads, (clear + step % wholes) * BLOCK_M, keys,
            query_length, key_length, padded_length, scale_log2, D, BLOCK_M, CAUSAL, ATOMIC, False)  # fmt: skip

    inside = (keys < key_length)[:, None]
    stride_dkt, stride_dvt = tl.cast(stride_dkt, tl.int64), tl.cast(stride_dvt, tl.int64)
    dk_rows = _rows_of(_head(dk, index, key_heads, stride_dkb, stride_dkh), first_key, stride_dkt, BLOCK_N, D)
    dv_rows = _rows_of(_head(dv, index, key_heads, stride_dvb, stride_dvh), first_key, stride_dvt, BLOCK_N, D)
    tl.store(dk_rows, (grad_k * scale).to(dk.dtype.element_ty), mask=inside)
    tl.store(dv_rows, grad_v.to(dv.dtype.element_ty), mask=inside)


@triton.jit
def _add_key_tiles(dq, q, g, lse, delta, k, v, batch, head, stride_kt, stride_vt, rows, first, end, key_length,
                   scale_log2, D: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DESCRIPTORS: tl.constexpr,
                   MASKED: tl.constexpr):  # fmt: skip
    """Add keys [first, end) to dQ."""
    for start in range(first, end, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)
        k_tile = _load_keys(k, batch, head, start, stride_kt, key_length, BLOCK_N, D, MASKED, DESCRIPTORS)
        scores = tl.dot(q, tl.trans(k_tile), input_precision="ieee")
        if MASKED:
            scores = tl.where(_visible(rows[:, None], keys[None, :], key_length, CAUSAL), scores, float("-inf"))
        weights = tl.math.exp2(scores * scale_log2 - lse[:, None])
        v_tile = _load_keys(v, batch, head, start, stride_vt, key_length, BLOCK_N, D, MASKED, DESCRIPTORS)
        dweights = tl.dot(g, tl.trans(v_tile), input_precision="ieee")
        dscores = (weights * (dweights - delta[:, None])).to(k_tile.dtype)
        dq = tl.dot(dscores, k_tile, dq, input_precision="ieee")
    return dq


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def attention_backward_queries(
    q, k, v, grad_out, lse, delta, dq,
    stride_qb, stride_qh, stride_qt, stride_kb, stride_kh, stride_kt, stride_vb, stride_vh, stride_vt,
    stride_gb, stride_gh, stride_gt, stride_dqb, stride_dqh, stride_dqt,
    query_heads, group, query_length, key_length, scale, scale_log2,
    D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, CAUSAL: tl.constexpr, DESCRIPTORS: tl.constexpr,
):  # fmt: skip
    """dQ of one tile of queries. Grid: (tiles x batch x query heads,); the longest rows of a head first."""
    index, first_row = _own_tile(query_length, BLOCK_M, CAUSAL)
    rows = first_row + tl.arange(0, BLOCK_M)
    stride_kt, stride_vt = tl.cast(stride_kt, tl.int64), tl.cast(stride_vt, tl.int64)
    stride_qt, stride_gt = tl.cast(stride_qt, tl.int64), tl.cast(stride_gt, tl.int64)
    if not DESCRIPTORS:
        k = _head(k, index // group, query_heads // group, stride_kb, stride_kh)
        v = _head(v, index // group, query_heads // group, stride_vb, stride_vh)
    q_tile = _load_head(q, index, query_heads, stride_qb, stride_qh, first_row, stride_qt, query_length, BLOCK_M, D)
    g = _load_head(grad_out, index, query_heads, stride_gb, stride_gh, first_row, stride_gt, query_length, BLOCK_M, D)
    offset = tl.cast(index, tl.int64) * query_length
    lse_tile = _load_vector(lse + offset, rows, query_length, float("inf"), True)
    delta_tile = _load_vector(delta + offset, rows, query_length, 0.0, True)

    batch, head = _key_head(index, query_heads, group)
    grad_q = tl.zeros([BLOCK_M, D], tl.float32)
    whole, end = _key_range(first_row, key_length, CAUSAL, BLOCK_M, BLOCK_N)
    grad_q = _add_key_tiles(grad_q, q_tile, g, lse_tile, delta_tile, k, v, batch, head, stride_kt, stride_vt, rows,
                            0, whole, key_length, scale_log2, D, BLOCK_N, CAUSAL, DESCRIPTORS, False)  # fmt: skip
    grad_q = _add_key_tiles(grad_q, q_tile, g, lse_tile, delta_tile, k, v, batch, head, stride_kt, stride_vt, rows,
                            whole, end, key_length, scale_log2, D, BLOCK_N, CAUSAL, DESCRIPTORS, True)  # fmt: skip

    dq_head = _head(dq, index, query_heads, stride_dqb, stride_dqh)
    pointers = _rows_of(dq_head, first_row, tl.cast(stride_dqt, tl.int64), BLOCK_M, D)
    tl.store(pointers, (grad_q * scale).to(dq.dtype.element_ty), mask=(rows < query_length)[:, None])


@triton.jit(do_not_specialize=RUNTIME_SIZES)
def attention_convert_queries(
    sums, dq, stride_dqb, stride_dqh, stride_dqt, query_heads, query_length, padded_length, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dQ from its float32 sums (batch, query heads, D, padded length). Grid: (tiles x batch x query heads,)."""
    index, first_row = _own_tile(query_length, BLOCK_M, False)
    rows = first_row + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, D).to(tl.int64)
    base = sums + tl.cast(index, tl.int64) * padded_length * D
    inside = rows < query_length
    # Sums are padded to whole tiles: without a mask, which would cut the loads to single numbers.
    tile = tl.load(base + columns[:, None] * padded_length + rows[None, :])
    dq_head = _head(dq, index, query_heads, stride_dqb, stride_dqh)
    pointers = _rows_of(dq_head, first_row, tl.cast(stride_dqt, tl.int64), BLOCK_M, D)
    tl.store(pointers, tl.trans(tile * scale).to(dq.dtype.element_ty), mask=inside[:, None])


@triton.jit(do_not_specialize=("query_heads", "query_length", "padded_length"))
def attention_scale_queries(
    sums, dq, stride_dqb, stride_dqh, stride_dqt, query_heads, query_length, padded_length, scale,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """dQ from its float32 sums (batch, query heads, padded length, D). Grid: (tiles x batch x query heads,)."""
    index, first_row = _own_tile(query_length, BLOCK_M, False)
    own = sums + (tl.cast(index, tl.int64) * padded_length + first_row) * D
    rows, columns = tl.arange(0, BLOCK_M), tl.arange(0, D)
    tile = tl.load(own + rows[:, None] * D + columns[None, :])
    dq_head = _head(dq, index, query_heads, stride_dqb, stride_dqh)
    pointers = _rows_of(dq_head, first_row, tl.cast(stride_dqt, tl.int64), BLOCK_M, D)
    inside = first_row + rows < query_length
    tl.store(pointers, (scale * tile).to(dq.dtype.element_ty), mask=inside[:, None])
