"""RMS norm and layer norm over the last dimension, with an optional residual sum before it, forward and backward.

    s = x + residual                      rounded to the inputs' precision; s = x without a residual
    RMS norm:    r = 1/√(mean(s²) + eps),             y = s·r·weight              (arXiv:1910.07467)
    layer norm:  μ = mean(s), r = 1/√(mean((s−μ)²) + eps),  y = (s−μ)·r·weight + bias   (arXiv:1607.06450)

``x`` and ``residual`` are (…, C) in float16, bfloat16 or float32 with any stride between rows (a last dimension that is
not contiguous is copied first); ``weight`` and ``bias`` are (C,) in the dtype of ``x`` or in float32. Statistics
are float32 and y is rounded once. The gradients with respect to x and residual are the same tensor; those of weight
and bias are summed in float32 in a fixed order, so that results are bitwise reproducible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from scalekernels.cache_keys import settled
from scalekernels.compilation import Compilation
from scalekernels.device import refuse_tangents, require_device, require_dtype, unavailable_reason
from scalekernels.norm import kernels
from scalekernels.norm.cases import (
    CASES,
    GOALS,
    LADDER,
    LARGER,
    LAYER_EPS,
    RMS_EPS,
    Case,
    alternatives,
    cost,
    evaluation,
    inputs,
    prepared,
)
from scalekernels.providers import Provider, Unsupported

__all__ = [
    "CASES", "DTYPES", "GOALS", "LADDER", "LARGER", "LAYER_EPS", "RMS_EPS", "Case", "compilations", "cost", "inputs",
    "layer_norm", "providers", "reference", "results", "rms_norm", "terms",
]  # fmt: skip

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INTERPRETED_MULTIPROCESSORS = 1  # the interpreter runs programs one after another: few are enough


def reference(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, residual: Tensor | None = None,
    *, kind: str = "rms", eps: float | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """Return {"normed"}, and "summed" if there is a residual, in plain torch, any dtype."""
    eps = (RMS_EPS if kind == "rms" else LAYER_EPS) if eps is None else eps
    summed = x if residual is None else x + residual
    centred = summed if kind == "rms" else summed - summed.mean(-1, keepdim=True)
    normed = centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt()
    normed = normed if weight is None else normed * weight
    normed = normed if bias is None else normed + bias
    return {"normed": normed} if residual is None else {"normed": normed, "summed": summed}


def _rows(tensor: Tensor) -> Tensor:
    """Return (…, C) as (rows, C) with a contiguous last dimension: a view if possible."""
    rows = tensor.reshape(-1, tensor.shape[-1])
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def _require(x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None) -> None:
    if x.dim() == 0 or x.shape[-1] == 0:
        raise ValueError(f"x has shape {tuple(x.shape)}; a norm needs a last dimension of at least 1")
    require_device(x=x, weight=weight, bias=bias, residual=residual)
    require_dtype(DTYPES, x=x)
    require_dtype((x.dtype,), residual=residual)
    require_dtype((x.dtype, torch.float32), weight=weight, bias=bias)
    for name, tensor, shape in (("weight", weight, x.shape[-1:]), ("bias", bias, x.shape[-1:])):
        if tensor is not None and tensor.shape != shape:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; x of {tuple(x.shape)} needs {tuple(shape)}")
    if residual is not None and residual.shape != x.shape:
        raise ValueError(f"residual has shape {tuple(residual.shape)}; it must have that of x, {tuple(x.shape)}")


@torch.library.custom_op("scalekernels::norm", mutates_args=())
def _norm(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, residual: Tensor | None, eps: float, layer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (normed, summed, mean, 1/deviation); summed is empty without a residual, mean for RMS norm."""
    _require(x, weight, bias, residual)
    out, summed, mean, rstd = _outputs(x, residual is not None, layer)
    source, rows, width = _rows(x), rstd.shape[0], x.shape[-1]
    if not rows:
        return out, summed, mean, rstd
    other = None if residual is None else _rows(residual)
    tile = kernels.tile_for(kernels.FORWARD_TILES, width)
    kernel = kernels.forward if width <= kernels.WIDEST else kernels.forward_wide
    with torch.cuda.device_of(x):
        settled(kernel)[((rows + tile.rows - 1) // tile.rows,)](
            source, other, _plain(weight), _plain(bias), out, None if other is None else summed,
            mean if layer else None, rstd, rows, width, source.stride(0), 0 if other is None else other.stride(0), eps,
            ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.num_warps, num_stages=kernels.NUM_STAGES,
        )  # fmt: skip
    return out, summed, mean, rstd


def _outputs(x: Tensor, residual: bool, layer: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.numel() // x.shape[-1]
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    summed = torch.empty(x.shape if residual else 0, dtype=x.dtype, device=x.device)
    mean = torch.empty(rows if layer else 0, dtype=torch.float32, device=x.device)
    return out, summed, mean, torch.empty(rows, dtype=torch.float32, device=x.device)


def _plain(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


@_norm.register_fake
def _(
    x: Tensor, _weight: Tensor | None, _bias: Tensor | None, residual: Tensor | None, _eps: float, layer: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _outputs(x, residual is not None, layer)


@torch.library.custom_op("scalekernels::norm_gradients", mutates_args=())
def _norm_gradients(
    grad: Tensor, grad_summed: Tensor | None, summed: Tensor, weight: Tensor | None, mean: Tensor, rstd: Tensor,
    layer: bool, weight_dtype: torch.dtype | None, bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (dx, dweight, dbias), the latter two in the given dtypes, empty for None."""
    width, rows = summed.shape[-1], rstd.shape[0]
    dx, dweight, dbias = _gradients(summed, weight_dtype, bias_dtype)
    if not rows:
        return dx, dweight.zero_(), dbias.zero_()
    tile = kernels.tile_for(kernels.BACKWARD_TILES, width)
    wide = width > kernels.WIDEST
    programs = _programs(summed.device, rows, kernels.WIDE_PARAMETERS_TILE if wide else tile)
    parts = [
        None if dtype is None else torch.empty((programs, width), dtype=torch.float32, device=summed.device)
        for dtype in (weight_dtype, bias_dtype)
    ]
    incoming, value = _rows(grad), _rows(summed)
    more = None if grad_summed is None else _rows(grad_summed)
    kernel, grid = (kernels.backward_wide, (rows,)) if wide else (kernels.backward, (programs,))
    centre = mean if layer else None
    with torch.cuda.device_of(summed):
        settled(kernel)[grid](
            incoming, more, value, _plain(weight), centre, rstd, dx, *((None, None) if wide else parts), rows, width,
            incoming.stride(0), 0 if more is None else more.stride(0), value.stride(0),
            num_warps=tile.num_warps, num_stages=kernels.NUM_STAGES,
            **_constants(tile, summed.dtype, layer, more is not None),
        )  # fmt: skip
        if weight_dtype is not None or bias_dtype is not None:
            if wide:
                _wide_parameters(incoming, value, centre, rstd, parts, programs)
            _finish(parts, dweight, dbias)
    return dx, dweight, dbias


def _gradients(
    summed: Tensor, weight_dtype: torch.dtype | None, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx = torch.empty(summed.shape, dtype=summed.dtype, device=summed.device)
    width = summed.shape[-1]
    dweight, dbias = (
        torch.empty(0 if dtype is None else width, dtype=dtype or torch.float32, device=summed.device)
        for dtype in (weight_dtype, bias_dtype)
    )
    return dx, dweight, dbias


def _finish(parts: Sequence[Tensor | None], dweight: Tensor, dbias: Tensor) -> None:
    """Sum the programs' partial gradients of weight and bias, in one launch."""
    tile = kernels.FINISH_TILE
    programs, width = next(part.shape for part in parts if part is not None)
    wanted = sum(part is not None for part in parts)
    settled(kernels.finish)[((width + tile.block - 1) // tile.block, wanted)](
        *parts, *(None if part is None else out for part, out in zip(parts, (dweight, dbias), strict=True)),
        programs, width, ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.num_warps, num_stages=kernels.NUM_STAGES,
    )  # fmt: skip


def _wide_parameters(
    grad: Tensor, summed: Tensor, mean: Tensor | None, rstd: Tensor, parts: Sequence[Tensor | None], programs: int
) -> None:
    tile, (rows, width) = kernels.WIDE_PARAMETERS_TILE, summed.shape
    settled(kernels.parameters_wide)[(programs, (width + tile.block - 1) // tile.block)](
        grad, summed, mean, rstd, *parts, rows, width, grad.stride(0), summed.stride(0),
        ROWS=tile.rows, BLOCK=tile.block, num_warps=tile.num_warps, num_stages=kernels.NUM_STAGES,
    )  # fmt: skip


def _programs(device: torch.device, rows: int, tile: kernels.Tile) -> int:
    """Return the number of programs: enough to fill the device once, and of equal numbers of tiles.

    With 528 programs for 16,384 tiles 16 would have a 32nd tile, which the others wait for; 512 have 32 each.
    """
    multiprocessors = INTERPRETED_MULTIPROCESSORS
    if device.type == "cuda":
        multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
    tiles = -(-rows // tile.rows)
    rounds = -(-tiles // (multiprocessors * tile.programs))
    return -(-tiles // rounds)


def _constants(tile: kernels.Tile, dtype: torch.dtype, layer: bool, residual: bool) -> dict[str, int | bool]:
    """Return the constants of the backward's machine code."""
    keep = kernels.keeps_weight(tile, dtype.itemsize, layer)
    stages = kernels.stages(tile, dtype.itemsize, layer, residual)
    return {"ROWS": tile.rows, "BLOCK": tile.block, "KEEP": keep, "STAGES": stages}


@_norm_gradients.register_fake
def _(
    _grad: Tensor, _grad_summed: Tensor | None, summed: Tensor, _weight: Tensor | None, _mean: Tensor, _rstd: Tensor,
    _layer: bool, weight_dtype: torch.dtype | None, bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return _gradients(summed, weight_dtype, bias_dtype)


@_norm_gradients.register_autograd
def _(_ctx: Any, *_: Any) -> None:
    raise RuntimeError("rms_norm and layer_norm have no second derivative; use torch.nn.functional's for one")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, residual, _, ctx.layer = inputs
    _, summed, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.residual = residual is not None
    ctx.dtypes = None if weight is None else weight.dtype, None if bias is None else bias.dtype
    ctx.save_for_backward(summed if ctx.residual else x, weight, mean, rstd)


def _backward(ctx: Any, grad: Tensor | None, grad_summed: Tensor | None, *_: None) -> tuple[Any, ...]:
    summed, weight, mean, rstd = ctx.saved_tensors
    more = grad_summed if ctx.residual else None
    if grad is None:  # y was not used, only the sum
        return more, None, None, more if ctx.residual else None, None, None
    wanted = [dtype if need else None for dtype, need in zip(ctx.dtypes, ctx.needs_input_grad[1:3], strict=True)]
    dx, *parameters = torch.ops.scalekernels.norm_gradients(grad, more, summed, weight, mean, rstd, ctx.layer, *wanted)
    dweight, dbias = (None if dtype is None else one for one, dtype in zip(parameters, wanted, strict=True))
    return dx, dweight, dbias, dx if ctx.residual else None, None, None


_norm.register_autograd(_backward, setup_context=_setup)


def rms_norm(
    x: Tensor, weight: Tensor | None = None, *, eps: float = RMS_EPS, residual: Tensor | None = None
) -> Tensor | tuple[Tensor, Tensor]:
    """Return the RMS norm of ``x`` (…, C) over its last dimension; with ``residual``, (norm of the sum, the sum).

    The result has the dtype of ``x``, under autocast too. Raises ``ValueError`` for a wrong shape or device,
    ``TypeError`` for a wrong dtype, ``Unsupported`` if the kernels cannot run on this machine, and ``RuntimeError`` for
    second and forward-mode derivatives.
    """
    refuse_tangents("rms_norm", x=x, weight=weight, residual=residual)
    normed, summed, _, _ = torch.ops.scalekernels.norm(x, weight, None, residual, eps, False)
    return normed if residual is None else (normed, summed)


def layer_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = LAYER_EPS,
    residual: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """Return the layer norm of ``x`` (…, C) over its last dimension; with ``residual``, (norm of the sum, the sum).

    Dtypes and errors are those of ``rms_norm``.
    """
    refuse_tangents("layer_norm", x=x, weight=weight, bias=bias, residual=residual)
    normed, summed, _, _ = torch.ops.scalekernels.norm(x, weight, bias, residual, eps, True)
    return normed if residual is None else (normed, summed)


def compilations(arch: int) -> Iterator[Compilation]:
    """Yield every tile of the table for every dtype, kind and residual; the same for all architectures."""
    del arch
    for dtype in DTYPES:
        for kind in ("rms", "layer"):
            for residual in (False, True):
                case = Case(kind, 0, 0, residual, dtype)
                yield from (_compilation(kernels.forward, tile, case) for tile in kernels.FORWARD_TILES.values())
                yield from (_compilation(kernels.backward, tile, case) for tile in kernels.BACKWARD_TILES.values())
                yield _compilation(kernels.forward_wide, kernels.WIDE_TILE, case)
                yield _compilation(kernels.backward_wide, kernels.WIDE_TILE, case)
            yield _compilation(kernels.parameters_wide, kernels.WIDE_PARAMETERS_TILE, Case(kind, 0, 0, False, dtype))
            yield _compilation(kernels.finish, kernels.FINISH_TILE, Case(kind, 0, 0, False, dtype))


def _compilation(function: Any, tile: kernels.Tile, case: Case) -> Compilation:
    layer, finishing = case.kind == "layer", function is kernels.finish
    given = {"residual": case.residual, "grad_summed": case.residual, "bias": layer, "mean": layer, "dbias": layer}
    given["dbias_parts"] = layer
    if function in (kernels.forward, kernels.forward_wide):
        given["summed"] = case.residual
    if function is kernels.backward_wide:  # leaves the parameters to parameters_wide
        given |= {"dweight": False, "dbias": False}
    constants = _constants(tile, case.dtype, layer, case.residual)
    sums = ("mean", "rstd", *(("dweight_parts", "dbias_parts") if finishing else ("dweight", "dbias")))
    rows = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}[case.dtype]
    scalars = {
        name: "i32" for name in function.arg_names if name in ("rows", "width", "parts") or name.endswith("_stride")
    }
    pointers = {
        name: "*fp32" if name in sums else rows
        for name in function.arg_names
        if name not in (*scalars, *constants, "eps") and given.get(name, True)
    }
    types = {**scalars, **pointers, "eps": "fp32"}
    return Compilation(
        kernel=f"norm.{function.__name__}",
        label=f"{case.kind} {rows[1:]} {tile.rows}x{tile.block}{' residual' * case.residual}",
        function=function,
        signature={name: types.get(name, "constexpr") for name in function.arg_names},
        constants={name: constants.get(name) for name in function.arg_names if name not in types},
        num_warps=tile.num_warps,
        num_stages=kernels.NUM_STAGES,
        work=tile.rows * tile.block,
        aligned=(*pointers, *(name for name in scalars if name not in ("rows", "parts"))),
        vector_bytes=16,
    )


def results(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Return the float64 oracle; with ``backward`` its gradients, by the names of the inputs."""
    copies = {name: tensor.double() for name, tensor in inputs.items()}
    return evaluation(lambda **tensors: reference(**tensors, kind=case.kind), copies, backward)()


def terms(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, float]:
    """Return the largest sum of magnitudes of the terms of each result, for the acceptance rule's floor.

    With g = gradient · weight and x̂ the normalised row, those of dx are r (|g| + |x̂| mean |g x̂| + mean |g|) plus a
    residual's gradient, of dweight Σ |gradient x̂|, of dbias Σ |gradient|. Forward, none cancel after the sum.
    """
    if not backward:
        return {}
    tensors = {name: tensor.double() for name, tensor in inputs.items()}
    plain = {name: tensors[name] for name in ("x", "residual") if name in tensors}
    summed = sum(plain.values(), torch.zeros(()))
    rows = reference(summed, kind=case.kind)["normed"].abs()
    centred = summed if case.kind == "rms" else summed - summed.mean(-1, keepdim=True)
    scale = 1 / (centred.square().mean(-1, keepdim=True) + (RMS_EPS if case.kind == "rms" else LAYER_EPS)).sqrt()
    grad, incoming = tensors["grad_normed"].abs(), (tensors["grad_normed"] * tensors["weight"]).abs()
    means = (incoming * rows).mean(-1, keepdim=True) * rows
    means = means if case.kind == "rms" else means + incoming.mean(-1, keepdim=True)
    dx = scale * (incoming + means) + tensors.get("grad_summed", torch.zeros(())).abs()
    sums = dict.fromkeys(plain, dx) | {"weight": (grad * rows).sum(0), "bias": grad.sum(0)}
    return {name: float(value.max()) for name, value in sums.items() if name in inputs and value.numel()}


def providers() -> dict[str, Provider]:
    """Return all implementations by name; forward returns normed (and summed), backward the inputs' gradients."""
    return {**alternatives(), "triton": Provider("this module", _prepare_triton)}


def _prepare_triton(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    if reason := unavailable_reason():
        raise Unsupported(reason)
    return prepared(_triton)(case, inputs, backward)


def _triton(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    function: Callable[..., Tensor | tuple[Tensor, Tensor]] = rms_norm if kind == "rms" else layer_norm
    found = function(**tensors)
    return {"normed": found} if isinstance(found, Tensor) else dict(zip(("normed", "summed"), found, strict=True))
