"""Linear layer and cross entropy in one, without the logits of all tokens at once.

    a = x · weightᵀ;  z = softcap · tanh(a / softcap), or a;  ℓ = ln Σ_v exp(z_v)
    loss = ℓ − z[target] + z_loss · ℓ²            for each token; 0 where target = ignore_index
    ∂loss/∂a_v = (softmax(z)_v · (1 + 2 · z_loss · ℓ) − [v = target]) · (1 − (z_v / softcap)²)

x is (…, C), weight (V, C) in the same dtype (float16, bfloat16, float32), target (…) int64. Tokens go in chunks: a
library product fills one workspace with the chunk's logits in that dtype, a kernel turns them into losses and, in
place, into their gradients, and two more products add these to the gradients of weight (float32) and x. This happens in
the forward pass; the backward pass scales by the gradient that comes in, and divides by the number of tokens for the
mean, so that the 16-bit gradients of logits lie in [−1, 1] whatever the batch. For ``reduction="none"`` each row has an
incoming gradient of its own, which the forward pass cannot know: there the backward pass computes the logits again.

Above inputs and returned gradients this holds the workspace (sized by ``kernels.chunk_tokens``) and
weight's gradient in float32 once.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekernels.cost import Cost
from scalekernels.cross_entropy import kernels
from scalekernels.device import require_device, require_dtype, unavailable_reason
from scalekernels.providers import Provider, Unavailable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
compilations = kernels.compilations
REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class Case:
    """``tokens`` vectors of ``width`` against ``classes``; ``ignored`` says whether some targets are ignore_index."""

    tokens: int
    width: int
    classes: int
    dtype: torch.dtype
    reduction: str = "mean"
    softcap: float | None = None
    z_loss: float = 0.0
    ignored: bool = False

    @property
    def label(self) -> str:
        """What tells this case from the others."""
        dtype = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]
        extras = f"{f' cap{self.softcap:g}' if self.softcap else ''}{f' z{self.z_loss:g}' if self.z_loss else ''}"
        return f"{self.tokens}x{self.width}x{self.classes} {dtype} {self.reduction}{extras}{' ignored' * self.ignored}"


def reference(
    x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean",
    softcap: float | None = None, z_loss: float = 0.0,
) -> dict[str, Tensor]:  # fmt: skip
    """Return {"loss"} in plain torch, any dtype."""
    logits = x @ weight.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    counted = target != ignore_index
    normaliser = logits.logsumexp(-1)
    wanted = logits.gather(-1, target.where(counted, 0).unsqueeze(-1)).squeeze(-1)
    losses = (normaliser - wanted + z_loss * normaliser.square()).where(counted, 0)
    if reduction == "none":
        return {"loss": losses}
    return {"loss": losses.sum() / counted.sum() if reduction == "mean" else losses.sum()}


def _walk(
    x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, softcap: float, z_loss: float, *,
    loss: Tensor | None = None, row_gradient: Tensor | None = None, dx: Tensor | None = None,
    dweight: Tensor | None = None,
) -> None:  # fmt: skip
    """Fill ``loss`` (N,), ``dx`` (N, C) and ``dweight`` (V, C), those that are given, chunk by chunk."""
    tokens, classes = kernels.chunk_tokens(x.shape[0], weight.shape[0], x.dtype), weight.shape[0]
    workspace = torch.empty((tokens, kernels.row_length(classes)), dtype=x.dtype, device=x.device)
    for start in range(0, x.shape[0], tokens):
        part = slice(start, start + tokens)
        logits = workspace[: x[part].shape[0], :classes]
        torch.mm(x[part], weight.t(), out=logits)
        kernels.losses[(logits.shape[0],)](
            workspace, target[part], None if loss is None else loss[part],
            None if row_gradient is None else row_gradient[part], classes, workspace.stride(0), ignore_index, softcap,
            z_loss, CAPPED=softcap > 0, GRADIENT=dx is not None or dweight is not None, BLOCK=kernels.BLOCK,
            num_warps=kernels.NUM_WARPS, num_stages=kernels.NUM_STAGES,
        )  # fmt: skip
        if dx is not None:
            torch.mm(logits, weight, out=dx[part])
        if dweight is not None:
            _accumulate(dweight, logits.t(), x[part], keep=start > 0)


def _accumulate(total: Tensor, left: Tensor, right: Tensor, *, keep: bool) -> None:
    """Total (float32) = left · right, added to what it holds with ``keep``."""
    if right.dtype == torch.float32:
        total.addmm_(left, right, beta=float(keep))
    elif right.device.type == "cuda":  # 16-bit factors, float32 sums and result: the tensor cores' own mode
        torch.addmm(total, left, right, out_dtype=torch.float32, beta=float(keep), out=total)
    else:  # interpreted: the CPU's product has no such mode
        total.addmm_(left.float(), right.float(), beta=float(keep))


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
            found = int(target[outside][0])
            raise IndexError(
                f"target {found} is out of bounds: classes are 0 to {weight.shape[0] - 1}, or {ignore_index}"
            )


@torch.library.custom_op("scalekernels::linear_cross_entropy", mutates_args=())
def _loss(
    x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, reduction: str, softcap: float, z_loss: float,
    x_gradient: bool, weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(loss, share of a token in it, gradient of the sum for x in its dtype, the same for weight in float32).

    The last three are empty where they are not asked for, and for ``reduction="none"``. ``softcap`` 0 means none.
    """
    _require(x, weight, target, ignore_index)
    dx, dweight = _gradients(x, weight, x_gradient and reduction != "none", weight_gradient and reduction != "none")
    losses = torch.empty(target.shape, dtype=torch.float32, device=x.device)
    with torch.autocast(x.device.type, enabled=False):
        _walk(
            x.reshape(-1, x.shape[-1]), weight, target.reshape(-1), ignore_index, softcap, z_loss,
            loss=losses.view(-1), dx=dx.view(-1, x.shape[-1]) if dx.numel() else None,
            dweight=dweight if dweight.numel() else None,
        )  # fmt: skip
    if reduction == "none":
        return losses, losses.new_empty(0), dx, dweight
    counted = (target != ignore_index).sum() if reduction == "mean" else losses.new_ones((), dtype=torch.int64)
    return losses.sum() / counted, 1 / counted.clamp(min=1).float(), dx, dweight


def _gradients(x: Tensor, weight: Tensor, x_gradient: bool, weight_gradient: bool) -> tuple[Tensor, Tensor]:
    make = torch.empty if x.numel() else torch.zeros  # without a token nothing is written into weight's
    dx = torch.empty(x.shape if x_gradient else 0, dtype=x.dtype, device=x.device)
    return dx, make(weight.shape if weight_gradient else 0, dtype=torch.float32, device=x.device)


@_loss.register_fake
def _(
    x: Tensor, weight: Tensor, target: Tensor, _ignore_index: int, reduction: str, _softcap: float, _z_loss: float,
    x_gradient: bool, weight_gradient: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    scalar = reduction != "none"
    dx, dweight = _gradients(x, weight, x_gradient and scalar, weight_gradient and scalar)
    shape = () if scalar else target.shape
    return dweight.new_empty(shape), dweight.new_empty(() if scalar else 0), dx, dweight


@torch.library.custom_op("scalekernels::linear_cross_entropy_gradients", mutates_args=())
def _recomputed(
    row_gradient: Tensor, x: Tensor, weight: Tensor, target: Tensor, ignore_index: int, softcap: float, z_loss: float,
    x_gradient: bool, weight_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients for x and weight (float32) of Σ row_gradient · loss, from scratch; empty where not asked for."""
    dx, dweight = _gradients(x, weight, x_gradient, weight_gradient)
    with torch.autocast(x.device.type, enabled=False):
        _walk(
            x.reshape(-1, x.shape[-1]), weight, target.reshape(-1), ignore_index, softcap, z_loss,
            row_gradient=row_gradient.reshape(-1).float().contiguous(),
            dx=dx.view(-1, x.shape[-1]) if dx.numel() else None, dweight=dweight if dweight.numel() else None,
        )  # fmt: skip
    return dx, dweight


@_recomputed.register_fake
def _(
    _row_gradient: Tensor, x: Tensor, weight: Tensor, _target: Tensor, _ignore_index: int, _softcap: float,
    _z_loss: float, x_gradient: bool, weight_gradient: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return _gradients(x, weight, x_gradient, weight_gradient)


@torch.library.custom_op("scalekernels::scaled_gradient", mutates_args=())
def _scaled(gradient: Tensor, factor: Tensor, dtype: torch.dtype) -> Tensor:
    """Gradient · factor (one number, float32) in ``dtype``, without a copy in between."""
    out = torch.empty(gradient.shape, dtype=dtype, device=gradient.device)
    if out.numel():
        kernels.scaled[(-(-out.numel() // kernels.SCALE_BLOCK),)](
            gradient, factor, out, out.numel(), BLOCK=kernels.SCALE_BLOCK, num_warps=kernels.SCALE_WARPS,
            num_stages=kernels.NUM_STAGES,
        )  # fmt: skip
    return out


@_scaled.register_fake
def _(gradient: Tensor, _factor: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty(gradient.shape, dtype=dtype, device=gradient.device)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, target, ignore_index, ctx.reduction, softcap, z_loss, *ready = inputs
    _, scale, dx, dweight = output
    ctx.mark_non_differentiable(scale, dx, dweight)
    ctx.set_materialize_grads(False)  # else zeros as large as dweight would be made for it
    ctx.numbers, ctx.dtype = (ignore_index, softcap, z_loss), x.dtype
    missing = any(need and not have for need, have in zip(ctx.needs_input_grad[:2], ready, strict=True))
    ctx.recompute = ctx.reduction == "none" or missing  # missing: the operation was called without its flags
    ctx.save_for_backward(scale, *((x, weight, target) if ctx.recompute else (dx, dweight)))


def _backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
    wanted = tuple(ctx.needs_input_grad[:2])
    scale, *saved = ctx.saved_tensors
    ops = torch.ops.scalekernels
    if ctx.recompute:
        target = saved[2]
        rows = grad if ctx.reduction == "none" else (grad * scale).expand(target.shape)
        dx, dweight = ops.linear_cross_entropy_gradients(rows, *saved, *ctx.numbers, *wanted)
        gradients = [dx if wanted[0] else None, dweight.to(ctx.dtype) if wanted[1] else None]
    else:
        factor = grad * scale
        gradients = [
            ops.scaled_gradient(gradient, factor, ctx.dtype) if want else None
            for gradient, want in zip(saved, wanted, strict=True)
        ]
    return *gradients, None, None, None, None, None, None, None


_loss.register_autograd(_backward, setup_context=_setup)


def linear_cross_entropy(
    x: Tensor, weight: Tensor, target: Tensor, *, ignore_index: int = -100, reduction: str = "mean",
    softcap: float | None = None, z_loss: float = 0.0,
) -> Tensor:  # fmt: skip
    """Return the cross entropy of ``x @ weight.T`` against ``target`` in nats, float32: a number, or (…) for "none".

    x (…, C) and weight (V, C) share a dtype; under ``torch.autocast`` both are cast as ``F.linear`` would. As in
    ``F.cross_entropy``, the mean is over targets other than ``ignore_index`` and nan (with gradients of 0) when there
    are none, and a target out of range raises ``IndexError`` on a CPU; on a GPU, where checking would wait for the
    device, its loss and gradients are nan. ``softcap`` caps the logits by tanh, ``z_loss`` weighs the squared log of
    the normaliser. Raises ``ValueError`` for a wrong shape, device or option, ``TypeError`` for a wrong dtype.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}; allowed: {', '.join(REDUCTIONS)}")
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap is {softcap}; it must be above 0, or None for no cap")
    if not z_loss >= 0:
        raise ValueError(f"z_loss is {z_loss}; it must be 0 or above")
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
    wanted = (torch.is_grad_enabled() and x.requires_grad, torch.is_grad_enabled() and weight.requires_grad)
    return torch.ops.scalekernels.linear_cross_entropy(
        x, weight, target, ignore_index, reduction, softcap or 0.0, z_loss, *wanted
    )[0]


def cost(case: Case, backward: bool) -> Cost:
    """The products' FLOPs, 2·N·C·V forward and 6·N·C·V for forward and backward, which a timed backward holds both.

    Bytes are those of inputs, losses and gradients: logits need never leave the chip.
    """
    size, tokens = case.dtype.itemsize, case.tokens
    product = 2 * tokens * case.width * case.classes
    matrices = (tokens + case.classes) * case.width * size
    loss = 4 * (tokens if case.reduction == "none" else 1)
    return Cost(product * (3 if backward else 1), matrices + 8 * tokens, loss + (matrices if backward else 0))


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """x, weight (logits of deviation 2), target and grad_loss; every fifth target is ignored where the case says so."""
    generator = torch.Generator(device).manual_seed(seed)
    made = {
        name: torch.randn(shape, generator=generator, device=device, dtype=case.dtype)
        for name, shape in (("x", (case.tokens, case.width)), ("weight", (case.classes, case.width)))
    }
    made["weight"] *= 2 / case.width**0.5
    made["target"] = torch.randint(case.classes, (case.tokens,), generator=generator, device=device)
    if case.ignored:
        made["target"][::5] = -100
    shape = (case.tokens,) if case.reduction == "none" else ()
    return made | {"grad_loss": torch.randn(shape, generator=generator, device=device)}


def results(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """The oracle: ``reference`` on float64 copies, {"loss"} or with ``backward`` {"x", "weight"}, their gradients."""
    copies = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}

    def loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        return reference(x, weight, target, reduction=case.reduction, softcap=case.softcap, z_loss=case.z_loss)["loss"]

    return _evaluation(loss, copies, backward)()


def _evaluation(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: Mapping[str, Tensor], backward: bool
) -> Callable[[], dict[str, Tensor]]:
    """A call of ``function``; with ``backward`` a call and its gradients, since some compute both at once."""
    x, weight, target = inputs["x"].detach(), inputs["weight"].detach(), inputs["target"]
    if not backward:
        return lambda: {"loss": function(x, weight, target)}
    x.requires_grad_()
    weight.requires_grad_()

    def gradients() -> dict[str, Tensor]:
        loss = function(x, weight, target)
        found = torch.autograd.grad(loss, (x, weight), inputs["grad_loss"].to(loss.dtype))
        return dict(zip(("x", "weight"), found, strict=True))

    return gradients


def _torch(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = F.linear(x, weight)
        logits = logits if case.softcap is None else case.softcap * torch.tanh(logits / case.softcap)
        if not case.z_loss:
            return F.cross_entropy(logits, target, reduction=case.reduction)
        losses = F.cross_entropy(logits, target, reduction="none")
        counted = target != -100
        losses = losses + (case.z_loss * logits.logsumexp(-1).square()).where(counted, 0)
        if case.reduction == "none":
            return losses
        return losses.sum() / counted.sum() if case.reduction == "mean" else losses.sum()

    return loss


def _triton(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if reason := unavailable_reason():
        raise Unavailable(reason)
    return lambda x, weight, target: linear_cross_entropy(
        x, weight, target, reduction=case.reduction, softcap=case.softcap, z_loss=case.z_loss
    )


def _torch_fused(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unavailable(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    if case.softcap or case.z_loss:
        raise Unavailable("torch.nn.functional.linear_cross_entropy has neither softcap nor z_loss")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x, weight, target: F.linear_cross_entropy(
        x, weight, target, reduction=case.reduction, options=options
    )


def _liger(case: Case) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    if importlib.util.find_spec("liger_kernel") is None:
        raise Unavailable("liger_kernel is not installed")
    if not torch.cuda.is_available():
        raise Unavailable("Liger's kernels need a CUDA device")
    if case.reduction == "none":
        raise Unavailable("Liger's fused linear cross entropy has no gradient for reduction none")
    from liger_kernel.transformers import functional  # type: ignore[import-not-found]

    return lambda x, weight, target: functional.liger_fused_linear_cross_entropy(
        x, weight, target, reduction=case.reduction, softcap=case.softcap, lse_square_scale=case.z_loss
    )


def providers() -> dict[str, Provider]:
    """Every way to compute a ``Case``; a timed backward is forward and backward for all of them."""
    return {
        "eager": Provider("F.linear and F.cross_entropy", _prepare(_torch)),
        "compiled": Provider("torch.compile of the same", _prepare_compiled),
        "torch-fused": Provider("torch.nn.functional.linear_cross_entropy in chunks", _prepare(_torch_fused)),
        "liger": Provider("Liger's fused linear cross entropy", _prepare(_liger)),
        "triton": Provider("this module", _prepare(_triton)),
    }


def _prepare(
    make: Callable[[Case], Callable[[Tensor, Tensor, Tensor], Tensor]],
) -> Callable[[Case, Mapping[str, Tensor], bool], Callable[[], Mapping[str, Tensor]]]:
    return lambda case, inputs, backward: _evaluation(make(case), inputs, backward)


def _prepare_compiled(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    run = _evaluation(torch.compile(_torch(case), fullgraph=True), inputs, backward)
    run()  # compiles
    return run


CASES = (
    Case(7, 5, 33, torch.float32),
    Case(19, 16, 129, torch.float32, "sum", ignored=True),
    Case(12, 8, 4097, torch.float32, "none", softcap=3.0, z_loss=1e-2, ignored=True),
    Case(9, 24, 1000, torch.float32, softcap=15.0, z_loss=1e-3, ignored=True),
    Case(11, 32, 515, torch.float16),
    Case(6, 17, 70, torch.float16, "none", ignored=True),
    Case(5, 16, 4200, torch.float16, "sum", softcap=5.0),
    Case(1, 1, 1, torch.float32),
)
LADDER = tuple(Case(8192, width, 50257, torch.bfloat16) for width in (768, 1024, 2048, 4096))
