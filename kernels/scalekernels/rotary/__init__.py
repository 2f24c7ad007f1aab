"""Rotary positions on a packed projection, in one pass forward, and one pass backward into one packed gradient.

Symbols: B batch, T tokens of a sequence, H heads, D head dimension (16, 32, 64, 128 or 256), P positions in the tables.
Features j and j + D/2 of a head are a pair, which is rotated by the angle a = angle[start + t, j] in q and k, but not
in v (Su et al. 2021, arXiv 2104.09864, in the form with halves):
    y[j] = x[j] cos a - x[j + D/2] sin a,    y[j + D/2] = x[j + D/2] cos a + x[j] sin a.
Backward rotates by -a, the transpose:
    dx[j] = dy[j] cos a + dy[j + D/2] sin a,    dx[j + D/2] = dy[j + D/2] cos a - dy[j] sin a.

``qkv`` is (B, T, 3, H, D) in float16, bfloat16 or float32, any strides with a contiguous last dimension: the output of
a linear layer with 3·H·D features, viewed in five dimensions. ``cos`` and ``sin`` are float32 (P, D/2), or (P, D) with
two equal halves, of which the first is read. q and k are returned as views (B, T, H, D) of one buffer (B, T, 2, H, D),
v as a view of ``qkv``: q and k are read and written once, v not at all, and every row that attention reads is aligned
to 16 bytes. The gradient is one contiguous tensor (B, T, 3, H, D), written in one pass from dq, dk and dv, which would
otherwise be rotated separately and stacked. Everything is computed in float32 and rounded once; dv is copied exactly.
Without tables nothing is rotated, and only the pass that joins the gradients remains.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scalekernels.cache_keys import settled
from scalekernels.compilation import Compilation
from scalekernels.device import refuse_tangents, require_device, require_dtype, unavailable_reason
from scalekernels.providers import Provider, Unsupported
from scalekernels.rotary import kernels
from scalekernels.rotary.cases import CASES, GOALS, LADDER, LARGER, Case, alternatives, cost, evaluation, inputs

__all__ = [
    "CASES", "DTYPES", "GOALS", "HEAD_DIMENSIONS", "LADDER", "LARGER", "Case", "compilations", "cost", "inputs",
    "providers", "reference", "results", "rotary",
]  # fmt: skip

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIMENSIONS = tuple(kernels.TILES)


def reference(qkv: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, start: int = 0) -> dict[str, Tensor]:
    """Return {"q", "k", "v"}, each (B, T, H, D), in plain torch, any dtype; without tables nothing is rotated."""
    q, k, v = qkv.unbind(2)
    if cos is None or sin is None:
        return {"q": q, "k": k, "v": v}
    half, places = qkv.shape[-1] // 2, slice(start, start + qkv.shape[1])
    cosine, sine = cos[places, None, :half], sin[places, None, :half]

    def turn(x: Tensor) -> Tensor:
        first, second = x[..., :half], x[..., half:]
        return torch.cat((first * cosine - second * sine, second * cosine + first * sine), dim=-1)

    return {"q": turn(q), "k": turn(k), "v": v}


def rotary(
    qkv: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, *, start: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """Return q, k, v (B, T, H, D) of ``qkv`` (B, T, 3, H, D), with q and k rotated by positions from ``start`` on.

    v is a view of ``qkv``, and so are q and k without tables. Differentiable once with respect to ``qkv``; the tables
    get no gradient. Raises ``ValueError`` for shapes, strides, ``start`` and devices, ``TypeError`` for dtypes,
    ``Unsupported`` if the kernels cannot run on this machine, and ``RuntimeError`` for second and forward-mode
    derivatives.
    """
    _require(qkv, cos, sin, start)
    refuse_tangents("rotary", qkv=qkv)
    q, k, v = _Split.apply(qkv, cos, sin, start)  # type: ignore[no-untyped-call]
    return q, k, v


def _require(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, start: int) -> None:
    if qkv.ndim != 5 or qkv.shape[2] != 3 or qkv.shape[4] not in HEAD_DIMENSIONS:
        allowed = ", ".join(map(str, HEAD_DIMENSIONS))
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}; allowed: (batch, length, 3, heads, one of {allowed})")
    if qkv.stride(4) != 1:
        raise ValueError(f"qkv has stride {qkv.stride(4)} in its last dimension: call qkv.contiguous()")
    require_dtype(DTYPES, qkv=qkv)
    require_dtype((torch.float32,), cos=cos, sin=sin)
    if (cos is None) != (sin is None):
        raise ValueError("give both cos and sin, or neither")
    if cos is None or sin is None:
        return
    if cos.ndim != 2 or cos.shape[1] not in (qkv.shape[4] // 2, qkv.shape[4]):
        raise ValueError(f"cos has shape {tuple(cos.shape)}; allowed: (places, D/2 or D) for D = {qkv.shape[4]}")
    if sin.shape != cos.shape or sin.stride() != cos.stride() or cos.stride(1) != 1:
        raise ValueError("cos and sin must have one shape and layout, with a contiguous last dimension")
    if start < 0 or start + qkv.shape[1] > cos.shape[0]:
        raise ValueError(f"positions {start} to {start + qkv.shape[1]} exceed the tables' {cos.shape[0]} positions")


class _Split(torch.autograd.Function):
    """Autograd function rather than custom operation, because v is a view of the input and all gradients one tensor."""

    @staticmethod
    def forward(qkv: Tensor, cos: Tensor | None, sin: Tensor | None, start: int) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.unbind(2)
        if cos is not None and sin is not None:
            q, k = _rotary(qkv, cos, sin, start).unbind(2)
        return q, k, v

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        del output
        _, cos, sin, ctx.start = inputs
        ctx.save_for_backward(cos, sin)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _rotary_gradients(*grads, *ctx.saved_tensors, ctx.start), None, None, None


@torch.library.custom_op("scalekernels::rotary", mutates_args=())
def _rotary(qkv: Tensor, cos: Tensor, sin: Tensor, start: int) -> Tensor:
    """Return q and k, rotated, (B, T, 2, H, D)."""
    require_device(qkv=qkv, cos=cos, sin=sin)
    out = _turned_buffer(qkv)
    batch, length, _, heads, dimension = qkv.shape
    if out.numel():
        tile = kernels.TILES[dimension]
        with torch.cuda.device_of(qkv):
            settled(kernels.forward)[(2 * batch * _tiles(length, tile),)](
                qkv, out, cos, sin, start, length, heads, *qkv.stride()[:4], cos.stride(0),
                HALF=dimension // 2, TOKENS=tile.tokens, HEADS=tile.heads,
                num_warps=tile.num_warps, num_stages=kernels.NUM_STAGES,
            )  # fmt: skip
    return out


def _turned_buffer(qkv: Tensor) -> Tensor:
    batch, length, _, heads, dimension = qkv.shape
    return torch.empty((batch, length, 2, heads, dimension), dtype=qkv.dtype, device=qkv.device)


def _tiles(length: int, tile: kernels.Tile) -> int:
    return (length + tile.tokens - 1) // tile.tokens


@_rotary.register_fake
def _(qkv: Tensor, _cos: Tensor, _sin: Tensor, _start: int) -> Tensor:
    return _turned_buffer(qkv)


@torch.library.custom_op("scalekernels::rotary_gradients", mutates_args=())
def _rotary_gradients(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor | None, sin: Tensor | None, start: int) -> Tensor:
    """Return the gradient of qkv (B, T, 3, H, D) from dq, dk and dv (B, T, H, D) of any strides."""
    require_device(dq=dq, dk=dk, dv=dv, cos=cos, sin=sin)
    out = _gradient_buffer(dq)
    batch, length, heads, dimension = dq.shape
    if out.numel():
        tile = kernels.TILES[dimension]
        grads = [grad if grad.stride(3) == 1 else grad.contiguous() for grad in (dq, dk, dv)]
        strides = [stride for grad in grads for stride in grad.stride()[:3]]
        with torch.cuda.device_of(dq):
            settled(kernels.gradients)[(3 * batch * _tiles(length, tile),)](
                *grads, out, cos, sin, start, length, heads, *strides, 0 if cos is None else cos.stride(0),
                HALF=dimension // 2, TOKENS=tile.tokens, HEADS=tile.heads,
                num_warps=tile.num_warps, num_stages=kernels.NUM_STAGES,
            )  # fmt: skip
    return out


def _gradient_buffer(dq: Tensor) -> Tensor:
    batch, length, heads, dimension = dq.shape
    return torch.empty((batch, length, 3, heads, dimension), dtype=dq.dtype, device=dq.device)


@_rotary_gradients.register_fake
def _(dq: Tensor, _dk: Tensor, _dv: Tensor, _cos: Tensor | None, _sin: Tensor | None, _start: int) -> Tensor:
    return _gradient_buffer(dq)


def _refuse(_ctx: Any, *_: Any) -> None:
    raise RuntimeError("rotary has no second derivative; write the turning out in torch for one")


_rotary_gradients.register_autograd(_refuse)


# --- what is compiled, and what is compared --------------------------------------------------------------------------

_SCALARS = ("start", "length", "heads")


def compilations(arch: int) -> Iterator[Compilation]:
    """Yield every head dimension in every dtype, rotated and not; the same for all architectures."""
    del arch
    for dtype in DTYPES:
        for dimension, tile in kernels.TILES.items():
            yield _compilation(kernels.forward, tile, dimension, dtype, True)
            yield _compilation(kernels.gradients, tile, dimension, dtype, True)
            yield _compilation(kernels.gradients, tile, dimension, dtype, False)


def _compilation(function: Any, tile: kernels.Tile, dimension: int, dtype: torch.dtype, rotate: bool) -> Compilation:
    element = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}[dtype]
    sizes = {"HALF": dimension // 2, "TOKENS": tile.tokens, "HEADS": tile.heads}
    types = dict.fromkeys(("qkv", "dq", "dk", "dv", "out"), element)
    types |= dict.fromkeys(("cos", "sin"), "*fp32") if rotate else {}
    types |= {name: "i32" for name in function.arg_names if name not in (*types, "cos", "sin", *sizes)}
    types = {name: kind for name, kind in types.items() if name in function.arg_names}
    return Compilation(
        kernel=f"rotary.{function.__name__}",
        label=f"{element[1:]} D{dimension} {tile.tokens}x{tile.heads}{' plain' * (not rotate)}",
        function=function,
        signature={name: types.get(name, "constexpr") for name in function.arg_names},
        constants={name: sizes.get(name) for name in function.arg_names if name not in types},
        num_warps=tile.num_warps,
        num_stages=kernels.NUM_STAGES,
        work=tile.tokens * tile.heads * dimension,
        aligned=tuple(name for name in types if name not in _SCALARS),
        vector_bytes=16,
    )


def results(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Return the float64 oracle; with ``backward`` the gradient of qkv."""
    return evaluation(reference, case, {name: tensor.double() for name, tensor in inputs.items()}, backward)()


def providers() -> dict[str, Provider]:
    """Return all implementations by name; forward returns q, k and v, backward the gradient of qkv."""
    return {**alternatives(), "triton": Provider("this module", _prepare_triton)}


def _prepare_triton(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    if reason := unavailable_reason():
        raise Unsupported(reason)
    return evaluation(_named, case, inputs, backward)


def _named(qkv: Tensor, **given: Any) -> dict[str, Tensor]:
    return dict(zip(("q", "k", "v"), rotary(qkv, **given), strict=True))
