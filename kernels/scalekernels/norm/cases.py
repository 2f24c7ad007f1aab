"""Cases of the norms: shapes, inputs, what they cost, and every other way to compute them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from scalekernels.cost import Cost
from scalekernels.providers import Provider, Unsupported

RMS_EPS, LAYER_EPS = 1e-6, 1e-5


@dataclass(frozen=True)
class Case:
    """``rows`` rows of ``width``; ``kind`` is "rms" (with weight) or "layer" (with weight and bias)."""

    kind: str
    rows: int
    width: int
    residual: bool
    dtype: torch.dtype

    @property
    def label(self) -> str:
        """What tells this case from the others."""
        dtype = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]
        return f"{self.kind} {self.rows}x{self.width} {dtype}{' residual' * self.residual}"


def cost(case: Case, backward: bool) -> Cost:
    """FLOPs as counted in the formulas above, and every tensor across the bus once; statistics are float32."""
    layer, size, numbers = case.kind == "layer", case.dtype.itemsize, case.rows * case.width
    statistics = 4 * case.rows * (1 + layer)
    parameters = case.width * size * (1 + layer)
    if backward:  # reads the gradient, the sum and a residual's gradient; writes one gradient of the rows
        flops = numbers * (8 + 4 * layer + case.residual)
        read = numbers * size * (2 + case.residual) + statistics + case.width * size
        return Cost(flops, read, numbers * size + parameters)
    flops = numbers * (4 + 3 * layer + case.residual)
    return Cost(
        flops, numbers * size * (1 + case.residual) + parameters, numbers * size * (1 + case.residual) + statistics
    )


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """x, weight, bias (layer norm), residual, and the gradients that come in: grad_normed, grad_summed."""
    generator = torch.Generator(device).manual_seed(seed)
    shape, names = (case.rows, case.width), ["x", "weight"] + ["bias"] * (case.kind == "layer")
    names += ["residual", "grad_summed"] * case.residual + ["grad_normed"]
    return {
        name: torch.randn(
            shape[1:] if name in ("weight", "bias") else shape, generator=generator, device=device, dtype=case.dtype
        )
        for name in names
    }


def evaluation(
    function: Callable[..., Mapping[str, Tensor]], inputs: Mapping[str, Tensor], backward: bool
) -> Callable[[], dict[str, Tensor]]:
    """Return what a call of ``function``, or with ``backward`` the gradients of a call made here, amounts to."""
    tensors = {name: value.detach() for name, value in inputs.items() if not name.startswith("grad_")}
    if not backward:
        return lambda: dict(function(**tensors))
    leaves = {name: value.requires_grad_() for name, value in tensors.items()}
    outputs = function(**leaves)
    grads = [inputs[f"grad_{name}"] for name in outputs]

    def gradients() -> dict[str, Tensor]:
        found = torch.autograd.grad(list(outputs.values()), list(leaves.values()), grads, retain_graph=True)
        return dict(zip(leaves, found, strict=True))

    return gradients


def _torch(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    x, weight, residual = tensors["x"], tensors["weight"], tensors.get("residual")
    summed = x if residual is None else x + residual
    if kind == "rms":
        normed = F.rms_norm(summed, summed.shape[-1:], weight, RMS_EPS)
    else:
        normed = F.layer_norm(summed, summed.shape[-1:], weight, tensors["bias"], LAYER_EPS)
    return {"normed": normed} if residual is None else {"normed": normed, "summed": summed}


def _liger(kind: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from liger_kernel.ops.layer_norm import LigerLayerNormFunction  # type: ignore[import-not-found]
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction  # type: ignore[import-not-found]

    x, weight, residual = tensors["x"], tensors["weight"], tensors.get("residual")
    summed = x if residual is None else x + residual
    if kind == "rms":
        normed = LigerRMSNormFunction.apply(summed, weight, RMS_EPS, 0.0, "llama", False)
    else:
        normed = LigerLayerNormFunction.apply(summed, weight, tensors["bias"], LAYER_EPS)
    return {"normed": normed} if residual is None else {"normed": normed, "summed": summed}


def alternatives() -> dict[str, Provider]:
    """Return what else computes a ``Case``: normed (and summed) forward, the inputs' gradients backward."""
    return {
        "eager": Provider("torch.nn.functional.rms_norm or layer_norm after the sum", prepared(_torch)),
        "compiled": Provider("torch.compile of the same", _prepare_compiled),
        "liger": Provider("Liger's Triton norms after the sum", _prepare_liger),
    }


Prepare = Callable[[Case, Mapping[str, Tensor], bool], Callable[[], Mapping[str, Tensor]]]


def prepared(function: Callable[[str, Mapping[str, Tensor]], dict[str, Tensor]]) -> Prepare:
    """Return the ``prepare`` of a norm that takes a kind and the tensors by name."""
    return lambda case, inputs, backward: evaluation(lambda **given: function(case.kind, given), inputs, backward)


def _prepare_compiled(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    run = evaluation(torch.compile(lambda **given: _torch(case.kind, given), fullgraph=True), inputs, backward)
    run()  # compiles
    return run


def _prepare_liger(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    if importlib.util.find_spec("liger_kernel") is None:
        raise Unsupported("liger_kernel is not installed")
    if inputs["x"].device.type != "cuda":
        raise Unsupported("Liger's kernels need a CUDA device")
    return prepared(_liger)(case, inputs, backward)


CASES = (
    Case("rms", 5, 1, False, torch.float32),
    Case("rms", 37, 33, True, torch.float32),
    Case("rms", 6, 130, False, torch.float16),
    Case("rms", 3, 1000, True, torch.float16),
    Case("rms", 2, 8200, True, torch.float32),
    Case("layer", 4, 1, True, torch.float32),
    Case("layer", 33, 67, False, torch.float32),
    Case("layer", 5, 257, True, torch.float16),
    Case("layer", 3, 2049, False, torch.float16),
    Case("layer", 3, 8193, False, torch.float32),
)
LADDER = tuple(
    Case(kind, 16384, width, residual, torch.bfloat16)
    for kind in ("rms", "layer")
    for residual in (False, True)
    for width in (768, 1024, 2048, 4096, 8192)
)
# For the check on a GPU: every tile with wide loads, masked columns, and so many rows that its programs take several.
LARGER = tuple(
    Case(kind, rows, width, residual, torch.bfloat16)
    for kind in ("rms", "layer")
    for residual in (False, True)
    for rows, width in (
        (9001, 96), (4501, 208), (2251, 464), (1001, 768), (1101, 1536), (601, 3072), (301, 6144), (601, 12288),
    )
)  # fmt: skip
# Where speed is judged.
GOALS = (
    Case("rms", 16384, 4096, False, torch.bfloat16),
    Case("rms", 16384, 2048, True, torch.bfloat16),
    Case("layer", 16384, 768, True, torch.bfloat16),
)
