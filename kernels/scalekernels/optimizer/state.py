"""What the fused optimizers keep per parameter: allocation, the 8-bit map in plain torch, and what they refuse.

8-bit codes lie in the memory order of the parameter, in blocks of 256; the map, that of ``kernels``, is written here as
a table of its levels, from its definition and not as the kernels compute it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from scalekernels.optimizer.kernels import QUANTUM as QUANTUM_CONSTANT
from scalekernels.optimizer.launch import PARAM_DTYPES

QUANTUM = int(QUANTUM_CONSTANT.value)
EXPONENT_BITS = {torch.int8: 4, torch.uint8: 5}
MANTISSA_BITS = 3
SMALLEST_SCALE = torch.finfo(torch.float32).tiny  # a block whose magnitudes are all below is a block of zeros


def levels(dtype: torch.dtype, device: torch.device | str = "cpu") -> Tensor:
    """Return the magnitudes of all levels for int8 (128) or uint8 (256) codes, float32, as parts of the scale."""
    count = 2 ** (EXPONENT_BITS[dtype] + MANTISSA_BITS)
    level = torch.arange(count, device=device)
    exponent, mantissa = level >> MANTISSA_BITS, level % 2**MANTISSA_BITS
    significand = torch.where(exponent > 0, mantissa + 2**MANTISSA_BITS, mantissa).double()
    value = torch.ldexp(significand, exponent.clamp(min=1))
    return (value / value[-1]).float()


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
    flat = in_memory_order(code).to(torch.int64)
    factor = levels(code.dtype, code.device)[flat.abs()] * flat.sign()
    out = torch.empty_like(code, dtype=torch.float32)
    in_memory_order(out).copy_(factor * scale.repeat_interleave(QUANTUM)[: flat.numel()])
    return out


def quantise(value: Tensor, code: Tensor, scale: Tensor) -> None:
    """Write float values as 8-bit codes and scales, rounding to the nearest level; no finite block, no finite scale."""
    ordered = torch.empty_like(code, dtype=torch.float32).copy_(value)
    flat = in_memory_order(ordered)
    blocks = torch.nn.functional.pad(flat, (0, -flat.numel() % QUANTUM)).view(-1, QUANTUM)
    if blocks.numel():
        largest = blocks.abs().amax(dim=1)
        scale.copy_(largest.where(largest >= SMALLEST_SCALE, 0.0).where(blocks.isfinite().all(dim=1), torch.nan))
    ratio = (blocks.abs() / scale[:, None]).nan_to_num(0.0, posinf=0.0)
    table = levels(code.dtype, code.device)
    level = torch.bucketize(ratio, (table[1:] + table[:-1]) / 2)
    if code.dtype == torch.uint8:
        level = torch.where(ratio > 0, level.clamp(min=1), level)
    in_memory_order(code).copy_((level * blocks.sign().nan_to_num(0.0)).flatten()[: flat.numel()])


def store(value: Tensor, kept: Tensor, scale: Tensor | None) -> None:
    """Write float values into state, as codes where it has a scale."""
    if scale is None:
        kept.copy_(value)
    else:
        quantise(value.to(kept.device), kept, scale)
