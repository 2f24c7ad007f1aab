"""Shared memory, mbarriers and descriptors of the Gluon emulator, with checks for what hardware does not define."""

from __future__ import annotations

import math
import operator
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from gluon_machine import HazardError, Partition, here
from torch import Tensor


class Range:
    """Bytes of one allocation, for overlaps."""

    def __init__(self, allocation: Allocation, tensor: Tensor) -> None:
        first, sizes, strides = tensor.storage_offset(), tensor.shape, tensor.stride()
        last = first - sum(strides) + sum(map(operator.mul, sizes, strides))
        self.allocation, self.first, self.last = allocation, first, last

    def overlaps(self, other: Range) -> bool:
        """Tell whether two ranges share memory."""
        return self.allocation is other.allocation and self.first <= other.last and other.first <= self.last


class Allocation:
    """Shared memory with what is in flight on it."""

    def __init__(self) -> None:
        self.landing: list[Range] = []  # TMA loads
        self.reading: list[Range] = []  # products and TMA stores
        self.dirty: list[Range] = []  # written by ordinary stores without a fence since

    def require(self, where: Range, action: str, *, write: bool, asynchronous: bool) -> None:
        """Raise ``HazardError`` where an access to a range conflicts with what is in flight."""
        if self.landing and any(where.overlaps(other) for other in self.landing):
            raise HazardError(f"{here().name}: {action} memory on which a TMA load has not landed")
        if write and self.reading and any(where.overlaps(other) for other in self.reading):
            raise HazardError(f"{here().name}: {action} memory that a product or TMA store in flight reads")
        if asynchronous and self.dirty and any(where.overlaps(other) for other in self.dirty):
            raise HazardError(f"{here().name}: {action} memory stored to without fence_async_shared since")


class Memory:
    """A view of shared memory: numbers of a dtype, held in float32, in which products are computed."""

    def __init__(self, tensor: Tensor, dtype: torch.dtype, allocation: Allocation) -> None:
        self.tensor, self.allocation = tensor, allocation
        self.shape, self.dtype = list(tensor.shape), dtype
        self.views: dict[Any, Memory] = {}
        self._range: Range | None = None

    @property
    def range(self) -> Range:
        """The bytes of this view."""
        if self._range is None:
            self._range = Range(self.allocation, self.tensor)
        return self._range

    def _view(self, view: Callable[..., Tensor], *arguments: Any) -> Memory:
        key = view.__name__, *arguments
        if key not in self.views:
            self.views[key] = Memory(view(self.tensor, *arguments), self.dtype, self.allocation)
        return self.views[key]

    def index(self, i: int) -> Memory:
        """One element of the first dimension."""
        if i in self.views:
            return self.views[i]
        if not 0 <= i < self.shape[0]:
            raise HazardError(f"index {i} of a buffer of {self.shape[0]}")
        self.views[i] = self._view(Tensor.select, 0, int(i))
        return self.views[i]

    def slice(self, start: int, length: int, dim: int = 0) -> Memory:
        """Part of one dimension."""
        return self._view(Tensor.narrow, dim, int(start), int(length))

    def reshape(self, shape: list[int]) -> Memory:
        """The same memory in another shape."""
        return self._view(Tensor.view, *shape)

    def permute(self, order: tuple[int, ...]) -> Memory:
        """The same memory with dimensions in another order."""
        return self._view(Tensor.permute, *order)

    def store(self, value: Tensor) -> None:
        """Write by ordinary stores."""
        partition = here()
        partition.step()
        self.allocation.require(self.range, "stores to", write=True, asynchronous=False)
        if value.dtype != self.dtype or list(value.shape) != self.shape:
            raise HazardError(f"stores {value.dtype} {list(value.shape)} to {self.dtype} {self.shape}")
        self.tensor.copy_(value)
        self.allocation.dirty.append(self.range)
        partition.dirty.append(self.range)

    def load(self, layout: Any = None) -> Tensor:
        """Read by ordinary loads."""
        del layout
        here().step()
        self.allocation.require(self.range, "loads from", write=False, asynchronous=False)
        return self.tensor.to(self.dtype, copy=True)


class Barrier:
    """An mbarrier; as an array, ``index`` returns one of several."""

    def __init__(self, count: int, name: str) -> None:
        self.members = [self] if count == 1 else [Barrier(1, f"{name}[{i}]") for i in range(count)]
        self.name, self.count, self.pending, self.bytes, self.phase, self.fenced = name, 0, 0, 0, 0, False
        self.waiting: list[tuple[Partition, int]] = []

    def index(self, i: int) -> Barrier:
        """One of several barriers."""
        return self.members[int(i)]

    def init(self, count: int) -> None:
        """Start phase 0."""
        self.count = self.pending = int(count)
        self.phase, self.fenced = 0, False
        here().dirty.append(self)

    def change(self, arrivals: int, expected: int) -> None:
        """Count arrivals and expected bytes (negative: landed); complete the phase where both are done."""
        if not self.count or self.pending < arrivals:
            raise HazardError(f"{self.name}: {arrivals} arrivals where {self.pending} of {self.count} are pending")
        self.pending -= int(arrivals)
        self.bytes += expected
        if not self.pending and not self.bytes:
            self.phase, self.pending = self.phase + 1, self.count
            waiting, self.waiting = self.waiting, []
            for partition, parity in waiting:
                if self.phase & 1 == parity:
                    self.waiting.append((partition, parity))
                else:
                    partition.machine.at(0.0, partition)


class Descriptor:
    """A tensor as TMA sees it: any tensor, read zero and not written outside."""

    def __init__(self, tensor: Tensor, block_shape: list[int]) -> None:
        self.tensor, self.block_shape, self.dtype, self.layout = tensor, list(block_shape), tensor.dtype, None
        nbytes = math.prod(block_shape) * tensor.element_size()
        self.block_type = types.SimpleNamespace(shape=self.block_shape, nbytes=nbytes)
        self.nbytes_per_cta = nbytes
        self.boxes: dict[tuple[int, ...], tuple[Tensor, tuple[slice, ...], bool]] = {}

    def inside(self, at: list[int]) -> tuple[Tensor, tuple[slice, ...], bool]:
        """Return the part of the tensor and the part of the block that a box at ``at`` covers; whether it is all."""
        box = tuple(at)
        if box not in self.boxes:
            of_tensor, of_block, is_whole = _box(tuple(self.tensor.shape), tuple(self.block_shape), box)
            self.boxes[box] = self.tensor[of_tensor], of_block, is_whole
        return self.boxes[box]


@cache
def _box(
    shape: tuple[int, ...], block_shape: tuple[int, ...], at: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...], bool]:
    """Return where a block at ``at`` lies in a tensor, and which part of the block that is; whether it is all of it."""
    of_tensor, of_block = [], []
    for start, size, length in zip(map(int, at), block_shape, shape, strict=True):
        first, last = min(max(start, 0), length), max(min(start + size, length), 0)
        of_tensor.append(slice(first, max(first, last)))
        of_block.append(slice(first - start, max(first, last) - start))
    whole = [slice(0, size) for size in block_shape]
    return tuple(of_tensor), tuple(of_block), of_block == whole
