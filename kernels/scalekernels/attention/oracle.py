"""Attention in float64 by blocks of heads and queries, for shapes whose scores do not fit into memory; and PyTorch's.

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

BLOCK_BYTES = 512 << 20  # of the scores of a block; some five tensors of this size are held at a time


@dataclass(frozen=True)
class Block:
    """Heads and queries that are computed at once, and how many keys the last of these queries sees."""

    heads: slice
    queries: slice
    keys: int


def blocks(case: Case, block_bytes: int) -> Iterator[Block]:
    """Cut a case so that the scores of each block, in float64, take at most ``block_bytes``, or are one row a head."""
    heads, group = case.batch * case.key_heads, case.query_heads // case.key_heads
    row_bytes = 8 * group * case.key_length
    rows = min(max(block_bytes // row_bytes, 1), case.query_length)
    together = max(block_bytes // (row_bytes * rows), 1)
    for head in range(0, heads, together):
        for first in range(0, case.query_length, rows):
            last = min(first + rows, case.query_length)
            keys = min(last, case.key_length) if case.causal else case.key_length
            yield Block(slice(head, head + together), slice(first, last), keys)


def exact_results(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, block_bytes: int = BLOCK_BYTES
) -> dict[str, Tensor]:
    """Return ``out``, or with ``backward`` ``grad_q``, ``grad_k`` and ``grad_v``, in float64 and the inputs' shapes."""
    queries = (case.batch * case.key_heads, -1, case.query_length, case.head_dimension)
    q, g = (inputs[name].detach().reshape(queries) for name in ("q", "grad_out"))
    k, v = (inputs[name].detach().flatten(0, 1) for name in ("k", "v"))
    names = {"grad_q": q, "grad_k": k, "grad_v": v} if backward else {"out": q}
    results = {name: torch.zeros_like(like, dtype=torch.float64) for name, like in names.items()}
    for block in blocks(case, block_bytes):
        heads, rows, keys = block.heads, block.queries, block.keys
        parts = (q[heads, :, rows], k[heads, :keys], v[heads, :keys])
        # With the rows of a group one after another, products are over (heads, group · rows, ·) matrices.
        qs, ks, vs = (part.double().flatten(1, -2) for part in parts)
        p = _probabilities(case, qs, ks, rows)
        if not backward:
            results["out"][heads, :, rows] = (p @ vs).unflatten(1, (-1, rows.stop - rows.start))
            continue
        gs = g[heads, :, rows].double().flatten(1, -2)
        results["grad_v"][heads, :keys] += p.mT @ gs
        ds = _score_gradients(p, gs, vs).mul_(1 / math.sqrt(case.head_dimension))
        results["grad_k"][heads, :keys] += ds.mT @ qs
        results["grad_q"][heads, :, rows] = (ds @ ks).unflatten(1, (-1, rows.stop - rows.start))
    shapes = {"out": "q", "grad_q": "q", "grad_k": "k", "grad_v": "v"}
    return {name: tensor.view(inputs[shapes[name]].shape) for name, tensor in results.items()}


def _probabilities(case: Case, q: Tensor, k: Tensor, rows: slice) -> Tensor:
    """Return softmax of the masked scores, (heads, group · rows, keys)."""
    scores = (q @ k.mT).mul_(1 / math.sqrt(case.head_dimension))
    if case.causal:
        places = torch.arange(rows.start, rows.stop, device=q.device).repeat(q.shape[1] // (rows.stop - rows.start))
        scores.masked_fill_(torch.arange(k.shape[1], device=q.device) > places.unsqueeze(1), -math.inf)
    scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    return scores.div_(scores.sum(-1, keepdim=True))


def _score_gradients(p: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Return p (g vᵀ - delta), of the shape of ``p``."""
    delta = ((p @ v) * g).sum(-1, keepdim=True)
    return (g @ v.mT).sub_(delta).mul_(p)


def in_parts(
    case: Case, inputs: Mapping[str, Tensor], backward: bool, compute: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Return a case's results by ``compute(q, k, v)``, differentiable, of one batch and query head at a time.

    The gradients of a key head are those of its query heads, rounded to the inputs' dtype and then summed, as autograd
    does for the whole.
    """
    group = case.query_heads // case.key_heads
    names = {"grad_q": "q", "grad_k": "k", "grad_v": "v"} if backward else {"out": "q"}
    # Sums over a group's heads are taken in float32 at least, and rounded once.
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
