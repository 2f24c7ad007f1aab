"""Attention in float64 by blocks of heads and queries, for shapes whose scores do not fit into memory.

With scores s = scale · q kᵀ, masked, p = softmax(s), out = p v, incoming gradient g and delta = Σ_d out g:
    ds = p (g vᵀ - delta),  dv = pᵀ g,  dk = scale · dsᵀ q,  dq = scale · ds k;
dk and dv are summed over the query heads that share a key head, and over the blocks of queries. Heads are (batch, key
head) pairs: q, g and out are (heads, group, Tq, D), k and v (heads, Tk, D).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekernels.attention.cases import Case

BLOCK_BYTES = 512 << 20  # of the scores of a block; about five tensors of this size exist at a time


@dataclass(frozen=True)
class ScoreBlock:
    """Heads and queries computed at once, and the number of keys that the last of these queries sees."""

    heads: slice
    queries: slice
    keys: int


def blocks(case: Case, block_bytes: int) -> Iterator[ScoreBlock]:
    """Divide a case into blocks whose float64 scores take at most ``block_bytes``, or one row per head."""
    heads, group = case.batch * case.key_heads, case.query_heads // case.key_heads
    row_bytes = 8 * group * case.key_length
    rows = min(max(block_bytes // row_bytes, 1), case.query_length)
    together = max(block_bytes // (row_bytes * rows), 1)
    for head in range(0, heads, together):
        for first in range(0, case.query_length, rows):
            last = min(first + rows, case.query_length)
            keys = min(last, case.key_length) if case.causal else case.key_length
            yield ScoreBlock(slice(head, head + together), slice(first, last), keys)


def exact_results(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, block_bytes: int = BLOCK_BYTES
) -> dict[str, Tensor]:
    """Return ``out``, or with ``backward`` ``grad_q``, ``grad_k`` and ``grad_v``, in float64 and the inputs' shapes."""
    return _by_blocks(case, inputs, backward, block_bytes, _gradients if backward else _output)


def largest_terms(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, block_bytes: int = BLOCK_BYTES
) -> dict[str, float]:
    """Return the largest sum of magnitudes of the terms of each result, to which rounding errors are proportional.

    Those of dv are p |g|, of dk scale · p (|g vᵀ| + |delta|) |q|, of dq the same with |k|, of out p |v|.
    """
    sums = _by_blocks(case, inputs, backward, block_bytes, _gradient_terms if backward else _output_terms)
    return {name: float(tensor.max()) if tensor.numel() else 0.0 for name, tensor in sums.items()}


# Products of a block: p (heads, group · rows, keys), q and g (heads, group · rows, D), k and v (heads, keys, D), scale.
Products = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, float], dict[str, Tensor]]


def _by_blocks(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, block_bytes: int, products: Products
) -> dict[str, Tensor]:
    """Compute results by blocks: those of queries are concatenated, those of keys summed."""
    queries = (case.batch * case.key_heads, -1, case.query_length, case.head_dimension)
    q, g = (inputs[name].detach().reshape(queries) for name in ("q", "grad_out"))
    k, v = (inputs[name].detach().flatten(0, 1) for name in ("k", "v"))
    names = {"grad_q": q, "grad_k": k, "grad_v": v} if backward else {"out": q}
    results = {name: torch.zeros_like(like, dtype=torch.float64) for name, like in names.items()}
    for block in blocks(case, block_bytes):
        heads, rows, keys = block.heads, block.queries, block.keys
        parts = (q[heads, :, rows], k[heads, :keys], v[heads, :keys], g[heads, :, rows])
        # With the rows of a group one after another, products are over (heads, group · rows, ·) matrices.
        qs, ks, vs, gs = (part.double().flatten(1, -2) for part in parts)
        p = _probabilities(case, qs, ks, rows)
        for name, found in products(p, qs, ks, vs, gs, 1 / math.sqrt(case.head_dimension)).items():
            if name in ("grad_k", "grad_v"):
                results[name][heads, :keys] += found
            else:
                results[name][heads, :, rows] = found.unflatten(1, (-1, rows.stop - rows.start))
    shapes = {"out": "q", "grad_q": "q", "grad_k": "k", "grad_v": "v"}
    return {name: tensor.view(inputs[shapes[name]].shape) for name, tensor in results.items()}


def _output(p: Tensor, _q: Tensor, _k: Tensor, v: Tensor, _g: Tensor, _scale: float) -> dict[str, Tensor]:
    return {"out": p @ v}


def _output_terms(p: Tensor, _q: Tensor, _k: Tensor, v: Tensor, _g: Tensor, _scale: float) -> dict[str, Tensor]:
    return {"out": p @ v.abs()}


def _gradients(p: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> dict[str, Tensor]:
    delta = ((p @ v) * g).sum(-1, keepdim=True)
    grad_v = p.mT @ g
    ds = (g @ v.mT).sub_(delta).mul_(p).mul_(scale)
    return {"grad_q": ds @ k, "grad_k": ds.mT @ q, "grad_v": grad_v}


def _gradient_terms(p: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, scale: float) -> dict[str, Tensor]:
    delta = ((p @ v) * g).sum(-1, keepdim=True).abs()
    grad_v = p.mT @ g.abs()
    ds = (g @ v.mT).abs_().add_(delta).mul_(p).mul_(scale)
    return {"grad_q": ds @ k.abs(), "grad_k": ds.mT @ q.abs(), "grad_v": grad_v}


def _probabilities(case: Case, q: Tensor, k: Tensor, rows: slice) -> Tensor:
    """Return softmax of the masked scores, (heads, group · rows, keys)."""
    scores = (q @ k.mT).mul_(1 / math.sqrt(case.head_dimension))
    if case.causal:
        places = torch.arange(rows.start, rows.stop, device=q.device).repeat(q.shape[1] // (rows.stop - rows.start))
        scores.masked_fill_(torch.arange(k.shape[1], device=q.device) > places.unsqueeze(1), -math.inf)
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def in_parts(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, compute: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return a case's results from the differentiable ``compute(q, k, v)``, one batch and query head at a time.

    The gradient of a key head is the sum of those of its query heads, each rounded to the inputs' dtype first, as in
    autograd.
    """
    group = case.query_heads // case.key_heads
    names = {"grad_q": "q", "grad_k": "k", "grad_v": "v"} if backward else {"out": "q"}
    # Sums over the heads of a group are in float32 or wider, and rounded once.
    dtype = torch.promote_types(case.dtype, torch.float32)
    sums = {name: torch.zeros_like(inputs[like], dtype=dtype) for name, like in names.items()}
    for batch in range(case.batch):
        for head in range(case.query_heads):
            places = {"q": head, "k": head // group, "v": head // group}
            q, k, v = (
                inputs[name][batch : batch + 1, place : place + 1].detach().requires_grad_(backward)
                for name, place in places.items()
            )
            with torch.set_grad_enabled(backward):
                out = compute(q, k, v)
            found = {"out": out}
            if backward:
                grad_out = inputs["grad_out"][batch : batch + 1, head : head + 1]
                found = dict(zip(names, torch.autograd.grad(out, (q, k, v), grad_out), strict=True))
            for name, tensor in found.items():
                sums[name][batch, places[names[name]]] += tensor[0, 0]
    return {name: tensor.to(case.dtype) for name, tensor in sums.items()}
