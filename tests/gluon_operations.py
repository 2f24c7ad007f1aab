"""Barriers, TMA and wgmma of the Gluon emulator, with checks for what hardware does not define."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from gluon_machine import HazardError, here
from gluon_memory import Barrier, Descriptor, Memory
from torch import Tensor

ADDITIONS = "its additions"


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
        of_tensor, of_block, is_whole = descriptor.inside(at)
        if is_whole:
            memory.tensor.copy_(of_tensor)
        else:
            memory.tensor.zero_()
            memory.tensor[of_block] = of_tensor.to(memory.tensor.dtype)
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
    of_tensor, of_block, _ = descriptor.inside(at)
    value = memory.tensor[of_block].clone()
    partition.machine.at(partition.machine.schedule.delay("store"), lambda: of_tensor.copy_(value))


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
    of_tensor, of_block, _ = descriptor.inside(at)
    value = memory.tensor[of_block].clone()

    def land() -> None:
        of_tensor.add_(value)
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
        if a.dtype != b.dtype:
            raise HazardError(f"a product of {a.dtype} and {b.dtype}")
        left = a.tensor if isinstance(a, Memory) else a.float()
        self.product, self.acc, self.use_acc = left @ b.tensor, acc, bool(use_acc)

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
