"""Weights in fewer bits: a model's linear layers converted by torchao, or rounded in place to simulate few bits.

A simulated weight is what an integer of b bits could hold, computed with in floats: its loss is real, its bytes and its
time are those of the floats. With 2 to 8 bits a group's weights w become s clamp(round(w / s), -2^(b-1), 2^(b-1) - 1)
for s = max |w| / (2^b - 1) * 2: torchao's symmetric mapping. With one bit they become sign(w) mean |w|, the two levels
with the least squared error (Rastegari et al. 2016, XNOR-Net, equation 6).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from scalekernels import Unsupported
from torch import Tensor, nn

from scalebench.workloads import int4
from scalebench.workloads.lora import matrices
from scalebench.workloads.quantize_spec import INT4, INT8, INT8_DYNAMIC, SIMULATED, QuantizeSpec

SMALLEST = torch.finfo(torch.float32).eps  # of a scale, as torchao has it: a group of zeros stays zero


@dataclass(frozen=True)
class Conversion:
    """What became of a model's layers, by name; ``copied`` were tied to another module and are copies now.

    ``converted_params`` are the weights converted, and ``closed_form_bytes`` what all weights should take.
    """

    converted: tuple[str, ...]
    skipped: dict[str, str]  # with the reason
    copied: tuple[str, ...]
    converted_params: int
    closed_form_bytes: int

    @property
    def invalid_reason(self) -> str | None:
        """Why a model with skipped layers is not the one asked for; None without."""
        names: dict[str, list[str]] = {}
        for name, reason in self.skipped.items():
            names.setdefault(reason, []).append(name)
        return "; ".join(f"not converted: {', '.join(paths)}: {reason}" for reason, paths in names.items()) or None


class OneType(nn.Module):
    """A model whose weights have one 16-bit type: what is floating in its inputs gets it, and outputs are float32."""

    KEEPS_TYPE = True  # of ``loop.computing``: no autocast

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.model, self.dtype = model.to(dtype), dtype

    def forward(self, *inputs: Tensor) -> Any:
        """Return the model's outputs, a tensor or a tuple of them, in float32."""
        outputs = self.model(*(value.to(self.dtype) if value.is_floating_point() else value for value in inputs))
        return tuple(value.float() for value in outputs) if isinstance(outputs, tuple) else outputs.float()


def layers(model: nn.Module, *, outer: bool) -> dict[str, nn.Linear]:
    """Return the linear layers to convert by their path: all, or without ``outer`` the hidden ones, none of them tied.

    The outer ones are those that the model names in ``OUTER``.
    """
    linears = {path: module for path, module in model.named_modules() if isinstance(module, nn.Linear)}
    if outer:
        return linears
    untied = {path for paths in matrices(model).values() for path in paths}
    return {path: layer for path, layer in linears.items() if path in untied.difference(getattr(model, "OUTER", ()))}


def obstacle(shape: tuple[int, ...], spec: QuantizeSpec, kind: str) -> str | None:
    """Return why a scheme cannot convert a matrix (rows, width) on a kind of device; None if it can."""
    rows, width = shape
    if spec.group_size is not None and width % spec.group_size:
        return f"width {width} is not divisible by the group size {spec.group_size}"
    return int4.obstacle(rows, kind) if spec.scheme == INT4 else None


def convert(model: nn.Module, spec: QuantizeSpec) -> tuple[nn.Module, Conversion]:
    """Return the model in evaluation mode with weights of the spec's scheme, changed in place, and what was done.

    Raises ``Unsupported`` where torchao cannot do it on this machine.
    """
    model.eval().requires_grad_(requires_grad=False)
    linear = layers(model, outer=spec.outer_layers) if spec.linear_only else {}
    kind = next(model.parameters()).device.type
    skipped = {path: reason for path, layer in linear.items() if (reason := obstacle(layer.weight.shape, spec, kind))}
    chosen = {path: layer for path, layer in linear.items() if path not in skipped}
    shapes = {path: layer.weight.shape for path, layer in linear.items()}
    tied = tuple(path for path in chosen if _is_tied(model, path))
    tensors = _stored(model)
    floats = sum(tensor.numel() for tensor in tensors if tensor.is_floating_point())
    others = sum(
        tensor.nbytes for tensor in tensors if not tensor.is_floating_point()
    )  # a batch norm's count of batches
    each = 2 if spec.precision == "bfloat16" else 4
    computing = OneType(model, torch.bfloat16) if each == 2 else model
    if spec.scheme == SIMULATED:
        for layer in chosen.values():
            layer.weight = nn.Parameter(rounded(layer.weight, spec.bits, spec.group_size), requires_grad=False)
    elif chosen:
        by_torchao(model, tuple(chosen), spec)
        skipped |= {path: "skipped by torchao" for path, layer in chosen.items() if not is_quantized(layer.weight)}
    replaced = sum(math.prod(shape) for path, shape in shapes.items() if path not in tied)
    stored = sum(matrix_bytes(shape, spec, kind) for shape in shapes.values())
    done = tuple(path for path in chosen if path not in skipped)
    params = sum(math.prod(shapes[path]) for path in done) if spec.linear_only else floats * (spec.bits < 32)
    return computing, Conversion(done, skipped, tied, params, each * (floats - replaced) + others + stored)


def _stored(model: nn.Module) -> list[Tensor]:
    """Return the parameters, tied ones once, and the persistent buffers."""
    names = set(model.state_dict())
    return [*model.parameters(), *(buffer for name, buffer in model.named_buffers() if name in names)]


def _is_tied(model: nn.Module, path: str) -> bool:
    weight = model.get_submodule(path).weight
    return sum(parameter is weight for _, parameter in model.named_parameters(remove_duplicate=False)) > 1


def is_quantized(weight: Tensor) -> bool:
    """Return whether a weight is one of torchao's tensors, which have others inside."""
    return hasattr(weight, "__tensor_flatten__")


def matrix_bytes(shape: tuple[int, ...], spec: QuantizeSpec, kind: str) -> int:
    """Return the bytes of a converted matrix (rows, width) on a kind of device by closed form.

    torchao's int8 has a scale in float32 and a zero point of a byte for each group; see ``int4`` for its 4 bits.
    Simulated bits are counted as if packed row by row, with a scale in float32 for each group.
    """
    rows, width = shape
    if spec.scheme == INT4:
        assert spec.group_size is not None
        return int4.packed_bytes(rows, width, spec.group_size, kind)
    groups = rows * (width // (spec.group_size or width))
    if spec.scheme in (INT8, INT8_DYNAMIC):
        return rows * width + 5 * groups
    return rows * math.ceil(width * spec.bits / 8) + 4 * groups


def rounded(weight: Tensor, bits: int, group_size: int | None) -> Tensor:
    """Return a matrix (rows, width) rounded to what integers of ``bits`` can hold, with a scale per group of a row."""
    groups = weight.detach().unflatten(1, (-1, group_size or weight.shape[1]))  # (rows, groups, size)
    if bits == 1:
        levels = groups.abs().mean(-1, keepdim=True) * torch.where(groups < 0, -1.0, 1.0)
    else:
        lowest, highest = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        scale = (groups.abs().amax(-1, keepdim=True) / ((highest - lowest) / 2)).clamp(min=SMALLEST)
        # As torchao multiplies: at 2 bits the largest weight lies half-way between two levels.
        levels = (groups * (1 / scale)).round().clamp(lowest, highest) * scale
    return levels.flatten(1).to(weight.dtype)


def by_torchao(model: nn.Module, names: tuple[str, ...], spec: QuantizeSpec) -> None:
    """Convert the named layers by torchao, in place; ``Unsupported`` where this machine cannot."""
    device = next(model.parameters()).device
    if spec.scheme == INT4:
        int4.check_device(device)
    try:
        from torchao.quantization import quantize_  # type: ignore[import-untyped]

        config = _config(spec, device.type)
    except ImportError as error:
        raise Unsupported(f"{spec.scheme} needs torchao ({error}): pip install torchao") from error
    quantize_(model, config, filter_fn=lambda _, path: path in names)


def _config(spec: QuantizeSpec, kind: str) -> Any:
    from torchao.quantization import (
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        PerGroup,
        PerRow,
    )

    if spec.scheme == INT4:
        assert spec.group_size is not None
        return int4.config(spec.group_size, kind)
    if spec.scheme == INT8_DYNAMIC:
        return Int8DynamicActivationInt8WeightConfig(set_inductor_config=False)
    granularity = PerRow() if spec.group_size is None else PerGroup(spec.group_size)
    return Int8WeightOnlyConfig(granularity=granularity, set_inductor_config=False)
