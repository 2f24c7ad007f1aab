"""Keys and values through tensor descriptors: tiles that the copy engine of Hopper and Blackwell (TMA) fetches.

A descriptor holds base, shape and strides of a whole (B, Hkv, Tk, D) tensor; the engine computes the addresses and
reads rows beyond Tk as zero. It wants more of a tensor than pointers do, see :func:`undescribed`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from scalekernels.attention import tiles
from scalekernels.attention.tiles import Tile
from scalekernels.device import INTERPRETED

ALIGNMENT_BYTES = 16


def undescribed(**tensors: Tensor) -> str | None:
    """Return why tensors cannot be loaded through descriptors, naming the first that cannot; None where they can.

    Base and strides have to be multiples of 16 bytes, and the strides are taken above 0 alone (CUDA driver API,
    cuTensorMapEncodeTiled).
    On Blackwell a tensor with gaps is left to pointers too: drivers encode small ones wrongly (known issues in the
    release notes of NVIDIA's driver 595.71), and Triton 3.6, unlike 3.7, does not correct them.
    """
    for name, tensor in tensors.items():
        arch = tiles.architecture(tensor.device)
        if arch < 90 and not INTERPRETED:
            return "tensor descriptors need compute capability 9.0 or 10.0"
        strides = [stride * tensor.element_size() for stride in tensor.stride()[:3]]
        if tensor.data_ptr() % ALIGNMENT_BYTES or any(stride % ALIGNMENT_BYTES or not stride for stride in strides):
            return f"the base or a stride of {name} is no multiple of {ALIGNMENT_BYTES} bytes above 0"
        if arch >= 100 and not is_dense(tensor):
            return f"{name} has gaps in memory"
    return None


def is_dense(tensor: Tensor) -> bool:
    """Tell whether a tensor fills the memory from its first to its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def described(tile: Tile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the descriptors of tensors (B, Hkv, Tk, D), which load the keys of one tile and head at a time."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return {
        name: TensorDescriptor.from_tensor(tensor, block_of(tile, tensor.shape[3])) for name, tensor in tensors.items()
    }


def block_of(tile: Tile, head_dimension: int) -> list[int]:
    """Return what one load fetches of a (B, Hkv, Tk, D) tensor."""
    return [1, 1, tile.block_n, head_dimension]


def type_of(dtype: str, tile: Tile, head_dimension: int) -> str:
    """Return a descriptor's type as a launch names it."""
    return f"tensordesc<{dtype}{block_of(tile, head_dimension)}>"
