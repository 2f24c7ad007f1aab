"""Exact attention without the matrix of scores in memory: out = softmax(scale · q kᵀ + mask) v.

Symbols: B batch, Hq query heads, Hkv key heads (Hq a multiple; query head h reads key head h // (Hq / Hkv)), Tq and Tk
lengths of at least 1, D the head dimension: 16, 32, 64, 128 or 256; others up to 256 are padded with zeros to the next.
Shapes: q, out (B, Hq, Tq, D); k, v (B, Hkv, Tk, D); in float16, bfloat16 or float32, any strides with a contiguous last
dimension. ``causal`` is aligned at the top left: query i sees keys up to i, also where Tq and Tk differ.

Forward, for a tile of queries, over tiles of keys (online softmax, Milakov and Gimelshein 2018, arXiv 1805.02867;
FlashAttention-2, Dao 2023, arXiv 2307.08691), with scores s = scale · log2(e) · q kᵀ so that exponentials are base 2:
    m' = max(m, max s),  p = 2^(s - m'),  acc = acc · 2^(m - m') + p v,  l = l · 2^(m - m') + Σ p
    out = acc / l,  lse = m + log2 l    (B, Hq, Tq), float32, kept for the backward pass.
Backward, with the incoming gradient g:
    delta = Σ_d out g,  p = 2^(s - lse),  ds = p (g vᵀ - delta),  dv = pᵀ g,  dk = scale · dsᵀ q,  dq = scale · ds k.
The deterministic form has one pass for dK and dV and one for dQ, each summing in a fixed order, so that the scores are
computed twice (7 matrix products); the other adds dQ atomically in float32 in the first pass (5 products, no fixed
order).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.utils.flop_counter import register_flop_formula

from scalekernels.attention import oracle
from scalekernels.attention.alternatives import Run, alternatives, prepared
from scalekernels.attention.cases import CASES, GOALS, LADDER, LARGER, Case, cost, flops, inputs
from scalekernels.attention.descriptors import undescribed
from scalekernels.attention.tiles import HEAD_DIMENSIONS, like
from scalekernels.device import INTERPRETED, autocast, refuse_tangents, require_dtype, unavailable_reason
from scalekernels.providers import Provider, Unsupported

__all__ = [
    "CASES", "DTYPES", "GOALS", "HEAD_DIMENSIONS", "LADDER", "LARGER", "Case", "attention", "attention_over_cache",
    "compilations", "cost", "eager_in_parts", "inputs", "providers", "reference", "results",
    "terms",
]  # fmt: skip

DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def reference(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None
) -> dict[str, Tensor]:
    """Return ``out`` (B, Hq, Tq, D) and the base-2 log-sum-exp ``lse`` (B, Hq, Tq), written out in any float dtype."""
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    grouped = q.unflatten(1, (k.shape[1], -1))  # (B, Hkv, group, Tq, D): keys and values are not repeated
    scores = grouped @ k.unsqueeze(2).mT * scale
    if causal:
        hidden = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -math.inf)
    out = torch.softmax(scores, -1) @ v.unsqueeze(2)
    return {"out": out.flatten(1, 2), "lse": torch.logsumexp(scores, -1).flatten(1, 2) / math.log(2)}


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None, deterministic: bool = True,
    descriptors: bool = False, gluon: bool = True,
) -> Tensor:  # fmt: skip
    """Return softmax(scale · q kᵀ) v, of the shape, dtype and layout of ``q``; differentiable once.

    ``scale`` (above 0) defaults to 1/sqrt(D). ``deterministic=False`` allows a backward pass with atomic additions,
    whose results differ in their last bits from run to run. Gradients have the layouts of the inputs; those not needed
    are not computed. ``descriptors=True`` lets the forward pass and the one for dQ load keys and values through tensor
    descriptors where possible (``descriptors.undescribed``): compute capability 9.0 and 10.0, 16-bit dtypes, D of 64
    and more, base and strides multiples of 16 bytes. Off by default: correct on a GPU, but its speed is not measured.
    On compute capability 9.0 the kernels are those written in Gluon unless ``hopper.unsupported`` returns a reason;
    ``gluon=False`` disables them. Under ``torch.autocast`` q, k and v are cast as for ``scaled_dot_product_attention``.
    Raises ``TypeError`` for dtypes, ``ValueError`` for shapes, strides, ``scale`` and devices, ``Unsupported`` for D
    above 256 and if the kernels cannot run on this machine, and ``RuntimeError`` for second and forward-mode
    derivatives.
    """
    refuse_tangents("attention", q=q, k=k, v=v)
    q, k, v, scale = _prepared_inputs(q, k, v, scale)
    out, _ = _attention(*_padded(q, k, v), causal, scale, deterministic, descriptors, gluon)
    return _cropped(out, q.shape[3])


def attention_over_cache(q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None) -> Tensor:
    """Return causal attention of queries that are the last of the keys: query i of Tq sees keys up to Tk - Tq + i.

    A single query sees every key and needs no mask. Several queries attend to earlier keys (all of them) and to
    themselves (causally) separately; the parts are combined by their log-sum-exps: out = Σ 2^(lse_j - lse) out_j,
    lse = log2 Σ 2^lse_j. Shapes and errors are those of :func:`attention`; also raises ``ValueError`` for fewer keys
    than queries, and ``RuntimeError`` if gradients of several queries over earlier keys are required.
    """
    refuse_tangents("attention_over_cache", q=q, k=k, v=v)
    q, k, v, scale = _prepared_inputs(q, k, v, scale)
    past, dimension = k.shape[2] - q.shape[2], q.shape[3]
    if past < 0:
        raise ValueError(f"q has length {q.shape[2]} and k {k.shape[2]}; the queries must be the last of the keys")
    if past == 0 or q.shape[2] == 1:
        return attention(q, k, v, causal=past == 0, scale=scale)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in (q, k, v)):
        raise RuntimeError(
            "several queries after keys of the past have no gradient here; call it under torch.no_grad()"
        )
    q, k, v = _padded(q, k, v)
    before, before_lse = _attention(q, k[:, :, :past], v[:, :, :past], False, scale, True)
    among, among_lse = _attention(q, k[:, :, past:], v[:, :, past:], True, scale, True)
    lse = torch.logaddexp2(before_lse, among_lse)
    before_share, among_share = (torch.exp2(part - lse).unsqueeze(3) for part in (before_lse, among_lse))
    return _cropped((before * before_share + among * among_share).to(q.dtype), dimension)


def _prepared_inputs(q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> tuple[Tensor, Tensor, Tensor, float]:
    """Cast q, k and v as autocast would, check dtypes and shapes, and return them with the scale to use."""
    q, k, v = autocast(q, k, v)
    require_dtype(DTYPES, q=q, k=k, v=v)
    for name, tensor in (("k", k), ("v", v)):
        if tensor.dtype != q.dtype:
            raise TypeError(f"{name} is {tensor.dtype} and q is {q.dtype}: give all three one dtype")
    _require_shapes(q, k, v)
    scale = 1 / math.sqrt(q.shape[3]) if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale is {scale}; allowed: a finite number above 0")
    return q, k, v, scale


def _padded(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Append zeros to the last dimension up to one that the kernels have; the first D of out and gradients are exact.

    Zeros in q and k add nothing to the scores; zeros in v give outputs that are cut off.
    """
    dimension = tensors[0].shape[3]
    missing = next(size for size in HEAD_DIMENSIONS if size >= dimension) - dimension
    return tuple(pad(tensor, (0, missing)) for tensor in tensors) if missing else tensors


def _cropped(out: Tensor, dimension: int) -> Tensor:
    return out if out.shape[3] == dimension else out[..., :dimension]  # a slice copies its gradient, even a whole one


def _require_shapes(q: Tensor, k: Tensor, v: Tensor) -> None:
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        if tensor.ndim != 4 or 0 in tensor.shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; allowed: (batch, heads, length, head dimension)")
        if tensor.stride(3) != 1:
            raise ValueError(f"{name} has stride {tensor.stride(3)} in its last dimension: call {name}.contiguous()")
    batch, heads, _, head_dimension = q.shape
    if head_dimension > HEAD_DIMENSIONS[-1]:
        raise Unsupported(f"q has head dimension {head_dimension}; the kernels have at most {HEAD_DIMENSIONS[-1]}")
    if k.shape[0] != batch or k.shape[3] != head_dimension:
        raise ValueError(
            f"k has shape {tuple(k.shape)}; its batch and head dimension must be those of q, {tuple(q.shape)}"
        )
    if v.shape != k.shape:
        raise ValueError(f"v has shape {tuple(v.shape)}; it must be that of k, {tuple(k.shape)}")
    if heads % k.shape[1]:
        raise ValueError(f"q has {heads} heads and k {k.shape[1]}; the first must be a multiple of the second")


@torch.library.custom_op("scalekernels::attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, deterministic: bool, descriptors: bool = False,
    gluon: bool = True,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The output and its base-2 log-sum-exp; ``deterministic`` is saved for the backward pass."""
    from scalekernels.attention import launch

    del deterministic
    return launch.forward(q, k, v, causal, scale, descriptors, gluon)


@_attention.register_fake
def _attention_fake(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return like(q), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("scalekernels::attention_backward", mutates_args=())
def _attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
    deterministic: bool, need_q: bool, need_kv: bool, descriptors: bool = False, gluon: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from scalekernels.attention import launch

    needs = (deterministic, need_q, need_kv)
    return launch.backward(grad_out, q, k, v, out, lse, causal, scale, *needs, descriptors, gluon)


@_attention_backward.register_fake
def _attention_backward_fake(
    _grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, _out: Tensor, _lse: Tensor, _causal: bool, _scale: float,
    _deterministic: bool, need_q: bool, need_kv: bool, *_: Any,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    dq = like(q) if need_q else q.new_empty(0)
    return (dq, like(k), like(v)) if need_kv else (dq, q.new_empty(0), q.new_empty(0))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.causal, ctx.scale, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


def _differentiate(ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    need_q, need_k, need_v = ctx.needs_input_grad[:3]
    deterministic, descriptors, gluon = ctx.options
    need_kv = need_k or need_v
    dq, dk, dv = _attention_backward(
        grad_out, q, k, v, out, lse, ctx.causal, ctx.scale, deterministic, need_q, need_kv, descriptors, gluon
    )
    return dq if need_q else None, dk if need_k else None, dv if need_v else None, *(None,) * (2 + len(ctx.options))


def _refuse(_ctx: Any, *_: Any) -> None:
    raise RuntimeError("attention has no second derivative; use scaled_dot_product_attention's math backend for one")


_attention.register_autograd(_differentiate, setup_context=_keep)
_attention_backward.register_autograd(_refuse)


@register_flop_formula(torch.ops.scalekernels.attention)
def _forward_flops(q: Any, k: Any, _v: Any, causal: bool, *_: Any, **__: Any) -> int:
    return flops(q[0], q[1], q[2], k[2], q[3], causal)


@register_flop_formula(torch.ops.scalekernels.attention_backward)
def _backward_flops(_grad: Any, q: Any, k: Any, _v: Any, _out: Any, _lse: Any, causal: bool, *_: Any, **__: Any) -> int:
    return flops(q[0], q[1], q[2], k[2], q[3], causal) * 5 // 2


def results(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Return the oracle: ``out``, or ``grad_q``, ``grad_k`` and ``grad_v``, in float64 by blocks of the scores."""
    return oracle.exact_results(case, inputs, backward)


def terms(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, float]:
    """Return the largest sum of magnitudes of the terms of each result, for the acceptance rule's floor."""
    return oracle.largest_terms(case, inputs, backward)


def eager_in_parts(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Return the eager provider's results, one query head at a time, for shapes whose scores do not fit into memory."""
    return oracle.in_parts(case, inputs, backward, lambda q, k, v: _eager(case, q, k, v))


def _eager(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return reference(q, k, v, causal=case.causal)["out"]


def providers() -> dict[str, Provider]:
    """Return all implementations by name."""
    return {
        "eager": Provider("written out in PyTorch", prepared(_eager)),
        **alternatives(),
        "triton": Provider("fused, deterministic backward, in Gluon on Hopper", _fused()),
        "triton-pointers": Provider(
            "fused, deterministic backward, by the kernels of all devices", _fused(gluon=False)
        ),
        "triton-atomic": Provider("fused, gradients of queries added in any order", _fused(deterministic=False)),
        "triton-atomic-pointers": Provider(
            "fused, backward with atomic additions, by the kernels of all devices",
            _fused(deterministic=False, gluon=False),
        ),
        "triton-descriptors": Provider("fused, forward and dQ by tensor descriptors", _fused(descriptors=True)),
    }


def _fused(**options: bool) -> Any:
    """Return the ``prepare`` of attention with these options: ``deterministic``, ``descriptors``, ``gluon``."""
    deterministic, descriptors = options.get("deterministic", True), options.get("descriptors", False)

    def compute(case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q, k, v, causal=case.causal, **options)

    def prepare(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Run:
        if reason := unavailable_reason():
            raise Unsupported(reason)
        if INTERPRETED and case.dtype == torch.bfloat16:
            raise Unsupported("Triton's interpreter has no bfloat16 products")
        if not deterministic and not backward:
            raise Unsupported("differs from triton in the backward pass alone")
        if descriptors and (reason := undescribed(k=inputs["k"], v=inputs["v"])):
            raise Unsupported(reason)
        return prepared(compute)(case, inputs, backward)

    return prepare


def compilations(arch: int) -> Any:
    """Return every configuration that a launch can reach on architecture 80, 90 or 100, forward and backward."""
    from scalekernels.attention import launch

    return launch.compilations(arch)
