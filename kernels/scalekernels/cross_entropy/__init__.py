"""Linear layer and cross entropy in one, with the logits of one chunk of tokens at a time.

    a = x · weightᵀ;  z = softcap · tanh(a / softcap), or a;  ℓ = ln Σ_v exp(z_v)
    loss = ℓ − z[target] + z_loss · ℓ²            for each token; 0 where target = ignore_index
    ∂loss/∂a_v = (softmax(z)_v · (1 + 2 · z_loss · ℓ) − [v = target]) · (1 − (z_v / softcap)²)

Class weights w and label smoothing s are those of ``F.cross_entropy``; they do not apply to the z_loss term:

    loss = (1 − s) · w[target] · (ℓ − z[target]) + s/V · Σ_v w_v · (ℓ − z_v) + z_loss · ℓ²

x is (…, C), weight (V, C) in the same dtype (float16, bfloat16, float32), target (…) int64. For each
chunk of tokens, a matrix product of PyTorch writes the logits in that dtype to a workspace, a kernel computes losses
and replaces the logits by their gradients, and two more products add these to the gradients of weight and x. This
happens in the forward pass; the backward pass multiplies by the incoming gradient. The division for the mean is part of
the logits' gradients, except in float16, where it could underflow and comes last. With ``reduction="none"`` every row
has a different incoming gradient, unknown in the forward pass, so the backward pass recomputes the logits.

Memory beyond inputs and returned gradients: the workspace and, if ``memory.plan`` sums weight's gradient in float32,
that sum. The first backward pass scales the gradients in place and returns them; another one through the same graph
(``retain_graph=True``) recomputes them. Under ``torch.compile`` the backward pass scales a copy, since it must not
modify tensors that a compiled forward pass has saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from scalekernels.cache_keys import settled
from scalekernels.cross_entropy import kernels, memory, oracle, products
from scalekernels.cross_entropy.cases import (
    CASES,
    GOALS,
    LADDER,
    LARGER,
    Case,
    Loss,
    alternatives,
    class_weight,
    cost,
    inputs,
    live,
    prepared,
)
from scalekernels.cross_entropy.products import weight_gradient_path
from scalekernels.device import autocast, refuse_tangents, require_device, require_dtype, unavailable_reason
from scalekernels.providers import Provider, Unsupported

__all__ = [
    "CASES", "DTYPES", "GOALS", "LADDER", "LARGER", "REDUCTIONS", "Case", "compilations", "cost", "inputs",
    "linear_cross_entropy", "live", "providers", "reference", "results", "weight_gradient_path",
]  # fmt: skip

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
compilations = kernels.compilations
REDUCTIONS = ("mean", "sum", "none")


def reference(
    x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean",
    softcap: float | None = None, z_loss: float = 0.0,
    class_weight: Tensor | None = None, label_smoothing: float = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Return {"loss"} in plain torch, any dtype."""
    logits = x @ weight.T
    logits = logits if softcap is None or math.isinf(softcap) else softcap * torch.tanh(logits / softcap)
    counted = target != ignore_index
    normaliser = logits.logsumexp(-1)
    label = target.where(counted, 0)
    each = logits.new_ones(weight.shape[0]) if class_weight is None else class_weight.to(logits.dtype)
    surprise = normaliser.unsqueeze(-1) - logits  # of each class
    own = each[label] * surprise.gather(-1, label.unsqueeze(-1)).squeeze(-1)
    losses = (1 - label_smoothing) * own + z_loss * normaliser.square()
    if label_smoothing:
        losses = losses + label_smoothing / weight.shape[0] * (surprise * each).sum(-1)
    losses = losses.where(counted, 0)
    if reduction == "none":
        return {"loss": losses}
    return {"loss": losses.sum() / each[label].where(counted, 0).sum() if reduction == "mean" else losses.sum()}


def _walk(
    x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, softcap: float, z_loss: float,
    class_weight: Tensor | None, label_smoothing: float, *,
    loss: Tensor | None, row_gradient: Tensor | None, dx: Tensor, dweight: Tensor,
) -> None:  # fmt: skip
    """Fill ``loss`` (…), ``dx`` (…, C) and ``dweight`` (V, C) chunk by chunk, except those that are None or empty."""
    x, target = x.reshape(-1, x.shape[-1]), target.reshape(-1)
    classes, rows = weight.shape[0], dx.view(-1, x.shape[-1])
    tokens = _plan(x, weight).tokens if dweight.numel() else memory.chunk_tokens(x.shape[0], classes, x.dtype)
    smoothing, block, warps = None, kernels.BLOCK, kernels.NUM_WARPS
    if class_weight is not None:
        smoothing, block, warps = label_smoothing, kernels.WEIGHED_BLOCK, kernels.WEIGHED_WARPS
    workspace = torch.empty((tokens, memory.row_length(classes)), dtype=x.dtype, device=x.device)
    for start in range(0, x.shape[0], tokens):
        part = slice(start, start + tokens)
        logits = workspace[: x[part].shape[0], :classes]
        torch.mm(x[part], weight.t(), out=logits)
        settled(kernels.losses)[(logits.shape[0],)](
            workspace, target[part], None if loss is None else loss.view(-1)[part],
            None if row_gradient is None else row_gradient[part], classes, workspace.stride(0), ignore_index, softcap,
            z_loss, class_weight, smoothing, CAPPED=softcap > 0, GRADIENT=dx.numel() + dweight.numel() > 0, BLOCK=block,
            TILES=kernels.tiles(x.dtype.itemsize, softcap > 0, loss is not None, class_weight is not None),
            num_warps=warps, num_stages=kernels.NUM_STAGES,
        )  # fmt: skip
        if dx.numel():
            torch.mm(logits, weight, out=rows[part])
        if dweight.numel():
            products.accumulate(dweight, logits.t(), x[part], keep=start > 0)


def _plan(x: Tensor, weight: Tensor) -> memory.Plan:
    return memory.plan(x.numel() // x.shape[-1], int(weight.shape[1]), int(weight.shape[0]), x.dtype)


def _require(x: Tensor, weight: Tensor, target: Tensor, ignore_index: int) -> None:
    if x.dim() == 0 or weight.dim() != 2 or x.shape[-1] != weight.shape[-1]:
        raise ValueError(
            f"x has shape {tuple(x.shape)} and weight {tuple(weight.shape)}; they must be (…, C) and (V, C)"
        )
    if weight.numel() == 0:
        raise ValueError(f"weight has shape {tuple(weight.shape)}; at least one class and one column are needed")
    if target.shape != x.shape[:-1]:
        raise ValueError(f"target has shape {tuple(target.shape)}; x of {tuple(x.shape)} needs {tuple(x.shape[:-1])}")
    require_device(x=x, weight=weight, target=target)
    require_dtype(DTYPES, x=x)
    require_dtype((x.dtype,), weight=weight)
    require_dtype((torch.int64,), target=target)
    if target.device.type == "cpu":
        outside = (target != ignore_index) & ((target < 0) | (target >= weight.shape[0]))
        if outside.any():
            invalid = int(target[outside][0])
            raise IndexError(
                f"target {invalid} is out of bounds: classes are 0 to {weight.shape[0] - 1}, or {ignore_index}"
            )


@torch.library.custom_op("scalekernels::linear_cross_entropy", mutates_args=())
def _loss(
    x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, reduction: str, softcap: float, z_loss: float,
    x_gradient: bool, weight_gradient: bool, class_weight: Tensor | None = None, label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return (loss, a token's share of it, gradient for x in its dtype, gradient for weight in the plan's dtype).

    The last three are empty if not requested, and for ``reduction="none"``. ``softcap`` 0 means none. The gradients are
    those of the loss, but in float16 those of the sum, still to be multiplied by the share. ``class_weight`` is float32
    (V + 1,), contiguous, with its sum as the last element; required if ``label_smoothing`` is not 0.
    """
    _require(x, weight, target, ignore_index)
    dx, dweight = _gradients(x, weight, x_gradient and reduction != "none", weight_gradient and reduction != "none")
    losses = torch.empty(target.shape, dtype=torch.float32, device=x.device)
    counted, share = _counted(target, ignore_index, class_weight if reduction == "mean" else None)
    if reduction != "mean":
        counted, share = torch.ones_like(counted), torch.ones_like(share)
    weighed = reduction == "mean" and x.dtype != torch.float16 and dx.numel() + dweight.numel() > 0
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        _walk(
            x, weight, target, ignore_index, softcap, z_loss, class_weight, label_smoothing, loss=losses,
            row_gradient=share.repeat(target.numel()) if weighed else None, dx=dx, dweight=dweight,
        )  # fmt: skip
    if reduction == "none":
        return losses, losses.new_empty(0), dx, dweight
    return losses.sum() / counted, share, dx, dweight


def _counted(target: Tensor, ignore_index: int, class_weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the divisor of the mean (number or weight of targets) and its inverse, which is 0 for a weight of 0."""
    counted = target != ignore_index
    if class_weight is None:
        number = counted.sum()
        return number, 1 / number.clamp(min=1).float()
    # A target out of range makes the loss nan, whatever its weight.
    total = class_weight[target.clamp(0, class_weight.shape[0] - 2)].where(counted, 0).sum()
    return total, (1 / total).where(total > 0, 0)


def _gradients(x: Tensor, weight: Tensor, x_gradient: bool, weight_gradient: bool) -> tuple[Tensor, Tensor]:
    make = torch.empty if x.numel() else torch.zeros  # without tokens nothing is written to weight's gradient
    dx = torch.empty(x.shape if x_gradient else 0, dtype=x.dtype, device=x.device)
    # Plan only where needed: under torch.compile with dynamic shapes, each comparison in it is a guard.
    dtype = _plan(x, weight).accumulator if weight_gradient and x.dtype == torch.bfloat16 else torch.float32
    return dx, make(weight.shape if weight_gradient else 0, dtype=dtype, device=x.device)


@_loss.register_fake
def _(
    x: Tensor, weight: Tensor, target: Tensor, _ignore_index: int, reduction: str, _softcap: float, _z_loss: float,
    x_gradient: bool, weight_gradient: bool, _class_weight: Tensor | None = None, _label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    scalar = reduction != "none"
    loss = x.new_empty(() if scalar else target.shape, dtype=torch.float32)
    share = x.new_empty(() if scalar else 0, dtype=torch.float32)
    return loss, share, *_gradients(x, weight, x_gradient and scalar, weight_gradient and scalar)


@torch.library.custom_op("scalekernels::linear_cross_entropy_gradients", mutates_args=())
def _recomputed(
    row_gradient: Tensor, x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, softcap: float, z_loss: float,
    x_gradient: bool, weight_gradient: bool, class_weight: Tensor | None = None, label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return the gradients of Σ row_gradient · loss: for x in its dtype, for weight in the plan's; empty if unused."""
    dx, dweight = _gradients(x, weight, x_gradient, weight_gradient)
    with torch.cuda.device_of(x), torch.autocast(x.device.type, enabled=False):
        _walk(
            x, weight, target, ignore_index, softcap, z_loss, class_weight, label_smoothing, loss=None,
            row_gradient=row_gradient.reshape(-1).float().contiguous(), dx=dx, dweight=dweight,
        )  # fmt: skip
    return dx, dweight


@_recomputed.register_fake
def _(
    _row_gradient: Tensor, x: Tensor, weight: Tensor, _target: Tensor, _ignore_index: int, _softcap: float,
    _z_loss: float, x_gradient: bool, weight_gradient: bool, _class_weight: Tensor | None = None,
    _label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _gradients(x, weight, x_gradient, weight_gradient)


@torch.library.custom_op("scalekernels::scaled_gradient", mutates_args=())
def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient · factor (one number, float32) in ``dtype``, without a copy in between."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if out.numel():
        with torch.cuda.device_of(gradient):
            settled(kernels.scaled)[(-(-out.numel() // kernels.SCALE_BLOCK),)](
                gradient, factor, out, out.numel(), BLOCK=kernels.SCALE_BLOCK, num_warps=kernels.SCALE_WARPS,
                num_stages=kernels.NUM_STAGES,
            )  # fmt: skip
    return out


@_scaled.register_fake
def _(gradient: Tensor, _factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(gradient.shape, dtype=dtype, device=gradient.device)


@torch.library.custom_op("scalekernels::scale_gradient_", mutates_args=("gradient",))
def _scale(gradient: Tensor, factor: Tensor) -> None:
    """Gradient (contiguous) times factor (one number, float32), in place."""
    if gradient.numel():
        with torch.cuda.device_of(gradient):
            settled(kernels.scale)[(-(-gradient.numel() // kernels.SCALE_BLOCK),)](
                gradient, factor, gradient.numel(), BLOCK=kernels.SCALE_BLOCK, num_warps=kernels.SCALE_WARPS,
                num_stages=kernels.NUM_STAGES,
            )  # fmt: skip


@_scale.register_fake
def _(_gradient: Tensor, _factor: Tensor) -> None:
    return None


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, target, ignore_index, ctx.reduction, softcap, z_loss, *ready, class_weight, smoothing = inputs
    _, share, dx, dweight = output
    ctx.mark_non_differentiable(share, dx, dweight)
    ctx.set_materialize_grads(False)  # otherwise autograd would allocate zeros of the size of dweight
    ctx.numbers, ctx.smoothing = (ignore_index, softcap, z_loss), smoothing
    missing = any(need and not have for need, have in zip(ctx.needs_input_grad[:2], ready, strict=True))
    # Not saved by autograd: the backward pass modifies and returns them, so nothing else may refer to them.
    # missing: the operation was called without its flags.
    ctx.gradients = None if ctx.reduction == "none" or missing else (dx, dweight)
    ctx.save_for_backward(share, x, weight, target, class_weight)


class _OnceOnly(torch.autograd.Function):
    """Identity that raises if its result is differentiated: without it a second derivative would be silently zero."""

    @staticmethod
    def forward(gradient: Tensor, *_: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(_ctx: Any, *_: Tensor) -> tuple[Any, ...]:
        raise RuntimeError("linear_cross_entropy has no second derivative; use F.cross_entropy(F.linear(x, weight), …)")


_once_only: Callable[..., Tensor] = _OnceOnly.apply


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    with torch.no_grad():
        gradients = _first_gradients(ctx, grad)
    if torch.is_grad_enabled():  # create_graph=True
        _, x, weight, _, _ = ctx.saved_tensors
        gradients = tuple(None if one is None else _once_only(one, grad, x, weight) for one in gradients)
    return *gradients, *[None] * 9


def _first_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    wanted = tuple(ctx.needs_input_grad[:2])
    share, x, weight, target, class_weight = ctx.saved_tensors
    late = x.dtype == torch.float16  # not yet multiplied by the share
    made, ctx.gradients = ctx.gradients, None
    if made is None:
        rows = grad if ctx.reduction == "none" else (torch.ones_like(share) if late else share).expand(target.shape)
        made = torch.ops.scalekernels.linear_cross_entropy_gradients(
            rows, x, weight, target, *ctx.numbers, *wanted, class_weight, ctx.smoothing
        )
    if ctx.reduction == "none":
        made = tuple(gradient.to(x.dtype) for gradient in made)
    else:
        factor = grad * share if late else grad
        made = tuple(_times(gradient, factor, x.dtype) for gradient in made)
    return tuple(gradient if want else None for gradient, want in zip(made, wanted, strict=True))


def _times(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Return gradient · factor in ``dtype``: in place, unless the dtype differs or a graph is being traced.

    Traced tensors are not of class ``Tensor``. A traced graph keeps the gradients for a second backward pass.
    """
    if gradient.dtype != dtype or type(gradient) is not Tensor:
        return torch.ops.scalekernels.scaled_gradient(gradient, factor, dtype)
    torch.ops.scalekernels.scale_gradient_(gradient, factor)
    return gradient


_loss.register_autograd(_backward, setup_context=_setup)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean",
    softcap: float | None = None, z_loss: float = 0.0, class_weight: Tensor | None = None, label_smoothing: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return the cross entropy of ``x @ weight.T`` against ``target`` in nats, float32: a scalar, or (…) for "none".

    x (…, C) and weight (V, C) share a dtype; under ``torch.autocast`` both are cast as ``F.linear`` would. As in
    ``F.cross_entropy``, the mean is over targets other than ``ignore_index`` and nan (with gradients of 0) when there
    are none, and a target out of range raises ``IndexError`` on a CPU; on a GPU, where checking would wait for the
    device, its loss and gradients are nan. ``class_weight`` (V,) and ``label_smoothing`` are its ``weight`` and
    ``label_smoothing``. ``softcap`` caps the logits by tanh (None or infinity: no cap); ``z_loss`` is the weight of
    the squared log of the normaliser. Raises ``ValueError`` for a wrong shape, device or option,
    ``TypeError`` for a wrong dtype, and ``RuntimeError`` for a second derivative or one in forward mode.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}; it must be above 0, or None for no cap")
    if not z_loss >= 0:
        raise ValueError(f"z_loss is {z_loss}; it must be 0 or above")
    if softcap is not None and math.isinf(softcap):
        softcap = None
    class_weight = _classes_weighed(weight, class_weight, label_smoothing)
    refuse_tangents("linear_cross_entropy", x=x, weight=weight)
    x, weight = autocast(x, weight)
    wanted = (torch.is_grad_enabled() and x.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    return torch.ops.scalekernels.linear_cross_entropy(
        x, weight, target, ignore_index, reduction, softcap or 0.0, z_loss, *wanted, class_weight, label_smoothing
    )[0]


def _classes_weighed(weight: Tensor, class_weight: Tensor | None, label_smoothing: float) -> Tensor | None:
    """Return the kernels' weights: float32, ones if only labels are smoothed, with their sum appended; or None."""
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; it must be between 0 and 1")
    if class_weight is None:
        if not label_smoothing:
            return None
        class_weight = weight.detach().new_ones(weight.shape[:1], dtype=torch.float32)
    if class_weight.shape != weight.shape[:1]:
        needed = f"weight of {tuple(weight.shape)} needs {tuple(weight.shape[:1])}"
        raise ValueError(f"class_weight has shape {tuple(class_weight.shape)}; {needed}")
    if not class_weight.is_floating_point():
        raise TypeError(f"class_weight is {class_weight.dtype}; it must be floating point")
    if class_weight.requires_grad:
        raise ValueError("class_weight requires a gradient, which linear_cross_entropy does not compute: detach it")
    require_device(weight=weight, class_weight=class_weight)
    each = class_weight.float()
    return torch.cat([each, each.sum().view(1)])


def results(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Return the float64 oracle: {"loss"}, or with ``backward`` the gradients {"x", "weight"}."""

    def losses(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        weights = class_weight(case, x.device, x.dtype)
        options = {"softcap": case.softcap, "z_loss": case.z_loss, "class_weight": weights}
        return reference(x, weight, target, reduction="none", label_smoothing=case.smoothing, **options)["loss"]  # type: ignore[arg-type]

    return oracle.exact_results(case, inputs, backward, losses)


def providers() -> dict[str, Provider]:
    """Return all implementations by name; a timed backward is forward and backward for all of them."""
    return {**alternatives(), "triton": Provider("this module", prepared(_triton))}


def _triton(case: Case) -> Loss:
    if reason := unavailable_reason():
        raise Unsupported(reason)
    return lambda x, weight, target: linear_cross_entropy(
        x, weight, target, reduction=case.reduction, softcap=case.softcap, z_loss=case.z_loss,
        class_weight=class_weight(case, x.device), label_smoothing=case.smoothing,
    )  # fmt: skip
