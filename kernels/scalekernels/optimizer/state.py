"""What the fused optimizers keep per parameter: allocation, the 8-bit map in plain torch, and what they refuse.

8-bit codes lie in the memory order of the parameter, in blocks of 256; the map is that of ``kernels``:
code c of L levels is scale * 2^((c - L) * octaves / (L - 1)), code 0 is zero.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalekernels.optimizer.kernels import QUANTUM as QUANTUM_CONSTANT
from scalekernels.optimizer.launch import PARAM_DTYPES

QUANTUM = int(QUANTUM_CONSTANT.value)
SIGNED_MAP = (127, 16)  # levels, octaves
POSITIVE_MAP = (255, 32)


def in_memory_order(tensor: Tensor) -> Tensor:
    """Return a flat view of a dense tensor as its elements lie in memory."""
    return tensor.as_strided((tensor.numel(),), (1,))


def layout(tensor: Tensor) -> tuple[int, ...]:
    """Return the strides that matter: those of dimensions longer than one."""
    return tuple(stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if size > 1)


def is_dense(tensor: Tensor) -> bool:
    """Return whether the elements fill a piece of memory without gaps or overlap, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and tensor.numel():
            if stride != expected:
                return False
            expected *= size
    return True


def refuse_param(param: Tensor, name: str) -> None:
    """Raise for a parameter that the kernels cannot update, naming it, what it is and what is allowed."""
    if type(param) is not Tensor and (type(param).__torch_dispatch__ is not Tensor.__torch_dispatch__):
        raise TypeError(f"{name} is a {type(param).__name__}; the fused optimizers take plain tensors and parameters")
    if param.layout != torch.strided:
        raise TypeError(f"{name} is {param.layout}; the fused optimizers take dense parameters")
    if param.dtype not in PARAM_DTYPES:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in PARAM_DTYPES)
        raise TypeError(f"{name} is {str(param.dtype).removeprefix('torch.')}; allowed: {names}")
    if not is_dense(param):
        raise ValueError(
            f"{name} of shape {tuple(param.shape)} has strides {param.stride()}: there are gaps or overlaps in memory; "
            "the fused optimizers take contiguous parameters or permutations of such"
        )


def refuse_grad(param: Tensor, grad: Tensor, name: str) -> None:
    """Raise for a gradient that does not lie in memory as its parameter does."""
    if grad.is_sparse or grad.layout != torch.strided:
        raise RuntimeError(f"the gradient of {name} is sparse; the fused optimizers take dense gradients")
    if type(grad) is not Tensor:
        raise TypeError(f"the gradient of {name} is a {type(grad).__name__}; the fused optimizers take plain tensors")
    if grad.dtype != param.dtype:
        raise TypeError(f"the gradient of {name} is {grad.dtype}, the parameter {param.dtype}: they must agree")
    if grad.device != param.device:
        raise ValueError(f"the gradient of {name} is on {grad.device}, the parameter on {param.device}")
    if grad.stride() != param.stride() and layout(grad) != layout(param) and grad.numel():
        raise ValueError(
            f"the gradient of {name} has strides {grad.stride()}, the parameter {param.stride()}: lay the gradient out "
            "like the parameter (torch.empty_like(parameter).copy_(gradient)), as autograd does"
        )


def empty_state(param: Tensor, dtype: torch.dtype) -> Tensor:
    """Return zeros in the layout of a parameter."""
    return torch.zeros_like(param, dtype=dtype, memory_format=torch.preserve_format, requires_grad=False).detach()


def empty_scale(param: Tensor) -> Tensor:
    """Return a scale of zero for every 256 elements of a parameter."""
    return torch.zeros(-(-param.numel() // QUANTUM), dtype=torch.float32, device=param.device)


def dequantised(code: Tensor, scale: Tensor) -> Tensor:
    """Return the float32 values of 8-bit codes (int8: signed, uint8: positive), shaped and laid out like the codes."""
    levels, octaves = SIGNED_MAP if code.dtype == torch.int8 else POSITIVE_MAP
    flat = in_memory_order(code).to(torch.float32)
    factor = torch.exp2((flat.abs() - levels) * (octaves / (levels - 1))) * flat.sign()
    out = torch.empty_like(code, dtype=torch.float32)
    in_memory_order(out).copy_(factor * scale.repeat_interleave(QUANTUM)[: flat.numel()])
    return out


def quantise(value: Tensor, code: Tensor, scale: Tensor) -> None:
    """Write float values as 8-bit codes and scales, rounding to the nearest level."""
    levels, octaves = SIGNED_MAP if code.dtype == torch.int8 else POSITIVE_MAP
    ordered = torch.empty_like(code, dtype=torch.float32).copy_(value)
    flat = in_memory_order(ordered)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % QUANTUM)).view(-1, QUANTUM)
    scale.copy_(blocks.abs().amax(dim=1) if blocks.numel() else scale)
    ratio = (blocks.abs() / scale[:, None]).nan_to_num(0.0)
    level = (levels + torch.log2(ratio) * ((levels - 1) / octaves)).clamp(0, levels).round()
    if code.dtype == torch.uint8:
        level = torch.where(ratio > 0, level.clamp(min=1), level)
    in_memory_order(code).copy_((level * blocks.sign()).flatten()[: flat.numel()])


def store(value: Tensor, kept: Tensor, scale: Tensor | None) -> None:
    """Write float values into state, as codes where it has a scale."""
    if scale is None:
        kept.copy_(value)
    else:
        quantise(value.to(kept.device), kept, scale)
