"""Shared memory, mbarriers, TMA and wgmma of the Gluon emulator, with checks for what hardware does not define."""

from __future__ import annotations

import math
import types
from collections.abc import Callable
from functools import cached_property
from typing import Any

from gluon_machine import HazardError, Partition, here
from torch import Tensor

ADDITIONS = "its additions"


class Range:
    """Bytes of one allocation, for overlaps."""

    def __init__(self, allocation: Allocation, tensor: Tensor) -> None:
        first, sizes, strides = tensor.storage_offset(), tensor.shape, tensor.stride()
        last = first + sum(size * stride for size, stride in zip(sizes, strides, strict=True)) - sum(strides)
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
        if any(where.overlaps(other) for other in self.landing):
            raise HazardError(f"{here().name}: {action} memory on which a TMA load has not landed")
        if write and any(where.overlaps(other) for other in self.reading):
            raise HazardError(f"{here().name}: {action} memory that a product or TMA store in flight reads")
        if asynchronous and any(where.overlaps(other) for other in self.dirty):
            raise HazardError(f"{here().name}: {action} memory stored to without fence_async_shared since")


class Memory:
    """A view of shared memory."""

    def __init__(self, tensor: Tensor, allocation: Allocation) -> None:
        self.tensor, self.allocation = tensor, allocation
        self.shape, self.dtype = list(tensor.shape), tensor.dtype
        self.elements: dict[int, Memory] = {}

    @cached_property
    def range(self) -> Range:
        """The bytes of this view."""
        return Range(self.allocation, self.tensor)

    def _view(self, tensor: Tensor) -> Memory:
        return Memory(tensor, self.allocation)

    def index(self, i: int) -> Memory:
        """One element of the first dimension."""
        if not 0 <= i < self.shape[0]:
            raise HazardError(f"index {i} of a buffer of {self.shape[0]}")
        if i not in self.elements:
            self.elements[i] = self._view(self.tensor[int(i)])
        return self.elements[i]

    def slice(self, start: int, length: int, dim: int = 0) -> Memory:
        """Part of one dimension."""
        return self._view(self.tensor.narrow(dim, start, length))

    def reshape(self, shape: list[int]) -> Memory:
        """The same memory in another shape."""
        return self._view(self.tensor.view(shape))

    def permute(self, order: tuple[int, ...]) -> Memory:
        """The same memory with dimensions in another order."""
        return self._view(self.tensor.permute(order))

    def store(self, value: Tensor) -> None:
        """Write by ordinary stores."""
        here().step()
        self.allocation.require(self.range, "stores to", write=True, asynchronous=False)
        if value.dtype != self.dtype or list(value.shape) != self.shape:
            raise HazardError(f"stores {value.dtype} {list(value.shape)} to {self.dtype} {self.shape}")
        self.tensor.copy_(value)
        self.allocation.dirty.append(self.range)
        here().dirty.append(self.allocation.dirty[-1])

    def load(self, layout: Any = None) -> Tensor:
        """Read by ordinary loads."""
        del layout
        here().step()
        self.allocation.require(self.range, "loads from", write=False, asynchronous=False)
        return self.tensor.clone()


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


# --- operations ------------------------------------------------------------------------------------------------------


def init(barrier: Barrier, count: int) -> None:
    barrier.init(count)


def arrive(barrier: Barrier, *, count: int = 1, pred: bool = True) -> None:
    here().step()
    if pred:
        barrier.change(count, 0)


def expect(barrier: Barrier, nbytes: int, pred: bool = True) -> None:
    here().step()
    if pred:
        barrier.change(1, int(nbytes))


def wait(barrier: Barrier, phase: int, pred: bool = True, deps: Any = ()) -> None:
    del deps
    partition = here()
    partition.step()
    while pred and barrier.phase & 1 == phase:
        barrier.waiting.append((partition, int(phase)))
        partition.block(f"{barrier.name} (phase {barrier.phase}, {barrier.pending} of {barrier.count} arrivals and "
                        f"{barrier.bytes} bytes missing)")  # fmt: skip


class Descriptor:
    """A tensor as TMA sees it: any tensor, read zero and not written outside."""

    def __init__(self, tensor: Tensor, block_shape: list[int]) -> None:
        self.tensor, self.block_shape, self.dtype, self.layout = tensor, list(block_shape), tensor.dtype, None
        nbytes = math.prod(block_shape) * tensor.element_size()
        self.block_type = types.SimpleNamespace(shape=self.block_shape, nbytes=nbytes)
        self.nbytes_per_cta = nbytes

    def inside(self, at: list[int]) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
        """Return the part of the tensor and the part of the block that a box at ``at`` covers."""
        of_tensor, of_block = [], []
        for start, size, length in zip(map(int, at), self.block_shape, self.tensor.shape, strict=True):
            first, last = min(max(start, 0), length), max(min(start + size, length), 0)
            of_tensor.append(slice(first, max(first, last)))
            of_block.append(slice(first - start, max(first, last) - start))
        return tuple(of_tensor), tuple(of_block)


def load_async(descriptor: Descriptor, at: list[int], barrier: Barrier, memory: Memory, pred: bool = True) -> None:
    partition = here()
    partition.step()
    if not pred:
        return
    if not barrier.fenced:
        raise HazardError(f"{barrier.name} was initialised without fence_async_shared since")
    if memory.shape != descriptor.block_shape or memory.dtype != descriptor.dtype:
        raise HazardError(f"a load of {descriptor.dtype} {descriptor.block_shape} into {memory.dtype} {memory.shape}")
    where, allocation = memory.range, memory.allocation
    allocation.require(where, "loads by TMA into", write=True, asynchronous=True)
    allocation.landing.append(where)
    memory.tensor.fill_(math.nan)

    def land() -> None:
        of_tensor, of_block = descriptor.inside(at)
        memory.tensor.zero_()
        memory.tensor[of_block] = descriptor.tensor[of_tensor]
        allocation.landing.remove(where)
        barrier.change(0, -descriptor.block_type.nbytes)

    partition.machine.at(partition.machine.schedule.delay("load"), land)


def store_async(descriptor: Descriptor, at: list[int], memory: Memory) -> None:
    partition = here()
    partition.step()
    where, allocation = memory.range, memory.allocation
    allocation.require(where, "stores by TMA from", write=False, asynchronous=True)
    allocation.reading.append(where)
    partition.stores.append(where)
    of_tensor, of_block = descriptor.inside(at)
    value = memory.tensor[of_block].clone()
    partition.machine.at(partition.machine.schedule.delay("store"), lambda: descriptor.tensor[of_tensor].copy_(value))


def add_async(descriptor: Descriptor, at: list[int], memory: Memory, landed: Callable[[], None] = lambda: None) -> None:
    """Add to global memory by TMA, at any time from now on, then call ``landed``; no addition to an element is lost."""
    partition = here()
    partition.step()
    if memory.shape != descriptor.block_shape or memory.dtype != descriptor.dtype:
        raise HazardError(
            f"an addition of {memory.dtype} {memory.shape} to {descriptor.dtype} {descriptor.block_shape}"
        )
    where, allocation = memory.range, memory.allocation
    allocation.require(where, "adds by TMA from", write=False, asynchronous=True)
    allocation.reading.append(where)
    partition.stores.append(where)
    partition.additions += 1
    of_tensor, of_block = descriptor.inside(at)
    value = memory.tensor[of_block].clone()

    def land() -> None:
        descriptor.tensor[of_tensor] += value
        partition.additions -= 1
        landed()
        if partition.waits_for == ADDITIONS and not partition.additions:
            partition.machine.at(0.0, partition)

    partition.machine.at(partition.machine.schedule.delay("store"), land)


def additions_wait(value: Any) -> Any:
    """Wait until the additions of this partition have been made; they have read shared memory, too."""
    store_wait(0)
    partition = here()
    while partition.additions:
        partition.block(ADDITIONS)
    return value


def store_wait(pendings: int) -> None:
    partition = here()
    partition.step()
    while len(partition.stores) > pendings:
        where = partition.stores.pop(0)
        where.allocation.reading.remove(where)


def fence(cluster: bool = False) -> None:
    del cluster
    partition = here()
    for item in partition.dirty:
        if isinstance(item, Barrier):
            item.fenced = True
        else:
            item.allocation.dirty.remove(item)
    partition.dirty = []


class Product:
    """A wgmma group in flight; ``value`` is there when it has been retired."""

    def __init__(self, a: Any, b: Memory, acc: Any, use_acc: Any) -> None:
        self.value: Tensor | None = None
        operands = [operand for operand in (a, b) if isinstance(operand, Memory)]
        self.ranges = [operand.range for operand in operands]
        for where in self.ranges:
            where.allocation.require(where, "multiplies", write=False, asynchronous=True)
            where.allocation.reading.append(where)
        left = a.tensor if isinstance(a, Memory) else a
        if left.dtype != b.dtype:
            raise HazardError(f"a product of {left.dtype} and {b.dtype}")
        self.product, self.acc, self.use_acc = left.float() @ b.tensor.float(), acc, bool(use_acc)

    def retire(self) -> None:
        """Compute the result and let go of the operands."""
        for where in self.ranges:
            where.allocation.reading.remove(where)
        acc = self.acc.value if isinstance(self.acc, Product) else self.acc
        self.value = self.product + acc if self.use_acc else self.product


def multiply(a: Any, b: Memory, acc: Any, *, use_acc: Any = True, is_async: bool = False, **_: Any) -> Any:
    partition = here()
    partition.step()
    product = Product(a, b, acc, use_acc)
    partition.products.append(product)
    return product if is_async else multiply_wait(0, deps=(product,))


def multiply_wait(num_outstanding: int = 0, deps: Any = None) -> Any:
    partition = here()
    partition.step()
    while len(partition.products) > num_outstanding:
        partition.products.pop(0).retire()
    values = []
    for value in deps:
        if isinstance(value, Product):
            if value.value is None:
                raise HazardError(f"{partition.name}: the result of a product in flight is used")
            value = value.value  # noqa: PLW2901
        values.append(value)
    return values[0] if len(values) == 1 else tuple(values)
