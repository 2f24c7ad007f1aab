"""Loads of keys and values through tensor descriptors, by the copy engine of Hopper and Blackwell (TMA).

A descriptor has base, shape and strides of a whole (B, Hkv, Tk, D) tensor; the engine computes the addresses and reads
rows beyond Tk as zero. It has more requirements than pointers, see :func:`undescribed`.
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
    """Return why tensors cannot be loaded through descriptors, naming the first that cannot; None if they can.

    Except in the interpreter, the tiles' row must support them. Base and strides must be multiples of 16 bytes, and
    strides above 0 (CUDA driver API, cuTensorMapEncodeTiled). On Blackwell, tensors with gaps use pointers too: drivers
    encode small ones wrongly (known issues in the release notes of NVIDIA's driver 595.71), and Triton 3.6, unlike 3.7,
    does not correct that.
    """
    for name, tensor in tensors.items():
        row = tiles.row_for(tensor, tensor)
        if not (INTERPRETED or tiles.takes_descriptors(row)):
            return "descriptors need compute capability 9.0 or 10.0, a 16-bit dtype and a head dimension of at least 64"
        strides = [stride * tensor.element_size() for stride in tensor.stride()[:3]]
        if tensor.data_ptr() % ALIGNMENT_BYTES or any(stride % ALIGNMENT_BYTES or not stride for stride in strides):
            return f"the base or a stride of {name} is not a positive multiple of {ALIGNMENT_BYTES} bytes"
        if row.architecture >= 100 and not is_dense(tensor):
            return f"{name} has gaps in memory"
    return None


def is_dense(tensor: Tensor) -> bool:
    """Return whether a tensor has no gaps between its first and last element in memory."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return last + 1 == tensor.numel()


def described(tile: Tile, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return descriptors of tensors (B, Hkv, Tk, D), whose loads fetch the keys of one tile and head."""
    from triton.tools.tensor_descriptor import TensorDescriptor

    return {
        name: TensorDescriptor.from_tensor(tensor, block_of(tile, tensor.shape[3])) for name, tensor in tensors.items()
    }


def block_of(tile: Tile, head_dimension: int) -> list[int]:
    """Return the block shape of one load from a (B, Hkv, Tk, D) tensor."""
    return [1, 1, tile.block_n, head_dimension]


def type_of(dtype: str, tile: Tile, head_dimension: int) -> str:
    """Return a descriptor's type in a launch signature."""
    return f"tensordesc<{dtype}{block_of(tile, head_dimension)}>"
