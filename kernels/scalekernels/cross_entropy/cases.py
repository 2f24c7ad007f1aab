"""Cases of linear cross entropy, their inputs and costs, and alternative implementations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekernels.cost import Cost
from scalekernels.providers import Provider, Unsupported

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, weight and target
Run = Callable[[], dict[str, Tensor]]


@dataclass(frozen=True)
class Case:
    """``tokens`` vectors of ``width`` against ``classes``; with ``ignored`` some targets are ignore_index.

    With ``weighed`` classes have the weights of :func:`class_weight`; ``smoothing`` is the label smoothing.
    """

    tokens: int
    width: int
    classes: int
    dtype: torch.dtype
    reduction: str = "mean"
    softcap: float | None = None
    z_loss: float = 0.0
    ignored: bool = False
    weighed: bool = False
    smoothing: float = 0.0

    @property
    def label(self) -> str:
        """The unique label of the case."""
        dtype = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]
        extras = f"{f' cap{self.softcap:g}' if self.softcap else ''}{f' z{self.z_loss:g}' if self.z_loss else ''}"
        extras += " weighed" * self.weighed + (f" smoothed {self.smoothing:g}" if self.smoothing else "")
        return f"{self.tokens}x{self.width}x{self.classes} {dtype} {self.reduction}{extras}{' ignored' * self.ignored}"


def class_weight(case: Case, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor | None:
    """Return the weights of a case's classes, (V,), eighths from 1/2 to 11/8, exact in every dtype."""
    if not case.weighed:
        return None
    return 0.5 + (torch.arange(case.classes, device=device) % 8).to(dtype) / 8


def cost(case: Case, backward: bool) -> Cost:
    """Return FLOPs of the products, 2·N·C·V forward and 6·N·C·V for a timed backward, which includes the forward.

    The recomputation of ``reduction="none"`` is not counted. Bytes are those of inputs, losses and gradients, since
    logits could stay on the chip.
    """
    size, tokens = case.dtype.itemsize, case.tokens
    product = 2 * tokens * case.width * case.classes
    matrices = (tokens + case.classes) * case.width * size
    loss = 4 * (tokens if case.reduction == "none" else 1)
    return Cost(product * (3 if backward else 1), matrices + 8 * tokens, loss + (matrices if backward else 0))


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """x, weight (logits of deviation 2), target and grad_loss; every fifth target ignored if requested."""
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


def live(case: Case, backward: bool) -> tuple[str, ...]:
    """Return the inputs that a timed call reads: with ``backward`` all of them, since it includes the forward pass."""
    del case
    return ("x", "weight", "target", *(["grad_loss"] * backward))


def evaluation(function: Loss, inputs: Mapping[str, Tensor], backward: bool) -> Run:
    """Return a call of ``function``, with ``backward`` including its gradients, since some compute both at once."""
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


def _torch(case: Case) -> Loss:
    def loss(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
        logits = F.linear(x, weight)
        logits = logits if case.softcap is None else case.softcap * torch.tanh(logits / case.softcap)
        if case.smoothing and logits.dtype == torch.float16:
            logits = logits.float()  # the sum over classes overflows float16; under autocast it is in float32 too
        if not case.z_loss:
            weights = class_weight(case, logits.device, logits.dtype)
            options = {"reduction": case.reduction, "label_smoothing": case.smoothing}
            return F.cross_entropy(logits, target, weights, **options)  # type: ignore[arg-type]
        losses = F.cross_entropy(logits, target, reduction="none")
        counted = target != -100
        losses = losses + (case.z_loss * logits.logsumexp(-1).square()).where(counted, 0)
        if case.reduction == "none":
            return losses
        return losses.sum() / counted.sum() if case.reduction == "mean" else losses.sum()

    return loss


def _torch_fused(case: Case) -> Loss:
    if not hasattr(F, "linear_cross_entropy"):
        raise Unsupported(f"torch {torch.__version__} has no torch.nn.functional.linear_cross_entropy")
    if case.softcap or case.z_loss or case.weighed or case.smoothing:
        raise Unsupported("torch.nn.functional.linear_cross_entropy has no softcap, z_loss or class weights here")
    options = torch.nn.LinearCrossEntropyOptions()
    return lambda x, weight, target: F.linear_cross_entropy(
        x, weight, target, reduction=case.reduction, options=options
    )


def _liger(case: Case) -> Loss:
    if importlib.util.find_spec("liger_kernel") is None:
        raise Unsupported("liger_kernel is not installed")
    if not torch.cuda.is_available():
        raise Unsupported("Liger's kernels need a CUDA device")
    if case.weighed or case.smoothing:
        raise Unsupported("Liger's fused linear cross entropy is compared without class weights and smoothing")
    if case.reduction == "none":
        raise Unsupported("Liger's fused linear cross entropy has no gradient for reduction none")
    from liger_kernel.transformers import functional  # type: ignore[import-not-found]

    return lambda x, weight, target: functional.liger_fused_linear_cross_entropy(
        x, weight, target, reduction=case.reduction, softcap=case.softcap, lse_square_scale=case.z_loss
    )


def alternatives() -> dict[str, Provider]:
    """Return the providers other than ours by name; a timed backward is forward and backward for all of them."""
    return {
        "eager": Provider("F.linear and F.cross_entropy", prepared(_torch)),
        "compiled": Provider("torch.compile of the same", _prepare_compiled),
        "torch-fused": Provider("torch.nn.functional.linear_cross_entropy in chunks", prepared(_torch_fused)),
        "liger": Provider("Liger's fused linear cross entropy", prepared(_liger)),
    }


def prepared(make: Callable[[Case], Loss]) -> Callable[[Case, Mapping[str, Tensor], bool], Run]:
    """Return the ``prepare`` of the loss that ``make`` gives for a case."""
    return lambda case, inputs, backward: evaluation(make(case), inputs, backward)


def _prepare_compiled(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Run:
    run = evaluation(torch.compile(_torch(case), fullgraph=True), inputs, backward)
    run()  # compiles
    return run


CASES = (
    Case(7, 5, 33, torch.float32),
    Case(19, 16, 129, torch.float32, "sum", ignored=True),
    Case(12, 128, 4097, torch.float32, "none", softcap=3.0, z_loss=1e-2, ignored=True),
    Case(9, 24, 1000, torch.float32, softcap=15.0, z_loss=1e-3, ignored=True),
    Case(11, 32, 515, torch.float16),
    Case(6, 17, 70, torch.float16, "none", ignored=True),
    Case(5, 16, 4200, torch.float16, "sum", softcap=5.0),
    Case(1, 1, 1, torch.float32),
)
LADDER = tuple(Case(8192, width, 50257, torch.bfloat16) for width in (768, 1024, 2048, 4096))
# For the check on a GPU: several chunks, too many tokens for the interpreter.
LARGER = (
    Case(65536, 768, 256, torch.bfloat16),  # 8 chunks, weight's gradient summed in float32
    Case(17000, 1720, 1000, torch.bfloat16),  # 3 chunks, summed in bfloat16
    *(
        Case(150, 96, 5000, torch.bfloat16, reduction, softcap, 0.0, True, True, 0.1)
        for reduction in ("mean", "sum", "none")
        for softcap in (None, 15.0)
    ),
    Case(150, 96, 5000, torch.bfloat16, weighed=True),
    Case(150, 96, 5000, torch.bfloat16, smoothing=0.1),
)
# Where speed is judged: the vocabulary of GPT-2 rounded up to 64, as models are trained.
GOALS = tuple(Case(8192, width, 50304, torch.bfloat16) for width in (768, 2048))
