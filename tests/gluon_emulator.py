"""Run Gluon kernels for Hopper on a CPU: the Python bodies of the jit functions, with the language replaced.

Partitions of ``warp_specialize`` are threads of which one runs at a time; a scheduler hands over in virtual time. Every
operation that synchronizes or is asynchronous takes a time drawn from a seeded schedule, so that a run can be repeated
exactly. The schedules are adversarial: see :class:`Schedule`. Nothing depends on real time, and a deadlock is reported
at once, as the state in which nothing can happen any more.

What is checked (:class:`HazardError` or :class:`DeadlockError` is raised, or the result is NaN):

- TMA loads land at any time after their issue. Until then the memory is NaN and reading or writing it is an error; the
  barrier counts the bytes. Elements outside of the tensor are read as zero and not written.
- wgmma may read its operands in shared memory at any time from issue to the wait that retires it: writing to them
  meanwhile is an error, and so is the use of a result before that wait. Groups retire in order, per partition.
- mbarriers have counts, bytes and parity; more arrivals than the count are an error.
- TMA stores and additions read shared memory until ``store_wait``; ending before it is an error. Additions are made at
  any time until ``additions_wait``.
- A variable that a loop changes, but that the compiler does not carry from round to round, is an error: see
  :func:`not_carried`.
- Memory written by ``store`` needs ``fence_async_shared`` before wgmma or TMA reads it, as do initialised barriers.
- Accesses through pointers stay inside of the tensor's storage; 32-bit integers do not overflow.

What it cannot show: whether layouts agree or a layout conversion is right, registers overwritten by the assembler while
a wgmma reads them, the memory order between warps of one partition, ordinary loads and stores of one partition racing
with those of another, bank conflicts, speed, and anything else that the compiler makes of the code.
"""

from __future__ import annotations

import builtins
import math
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import gluon_operations as operations
import torch
from gluon_loops import not_carried
from gluon_machine import DeadlockError, HazardError, Machine, Partition, Schedule, here
from gluon_memory import Allocation, Barrier, Descriptor, Memory
from scalekernels.attention import hopper_adding
from torch import Tensor
from triton.experimental.gluon import language
from triton.experimental.gluon.language.nvidia import hopper

__all__ = ["DeadlockError", "Descriptor", "HazardError", "Int", "Pointer", "launch", "lowered"]

# --- scalars ---------------------------------------------------------------------------------------------------------


class Int(int):
    """A scalar integer of 32 or 64 bits; division truncates as in C."""

    bits = 32

    def to(self, dtype: torch.dtype) -> Int:
        """Return the number in another width."""
        return make_int(int(self), 64 if dtype == torch.int64 else 32)


class Int64(Int):
    """The same in 64 bits."""

    bits = 64


_SMALLEST, _LIMIT = {32: -(1 << 31), 64: -(1 << 63)}, {32: 1 << 31, 64: 1 << 63}


def make_int(value: int, bits: int) -> Int:
    """Return a scalar; raises ``HazardError`` where it does not fit."""
    if not _SMALLEST[bits] <= value < _LIMIT[bits]:
        raise HazardError(f"{value} does not fit {bits} bits")
    return (Int64 if bits == 64 else Int)(value)


def _arithmetic(name: str, compute: Callable[[int, int], int]) -> None:
    def forward(self: Int, other: Any) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        return make_int(compute(self, other), 64 if self.bits == 64 or type(other) is Int64 else 32)

    def backward(self: Int, other: Any) -> Any:
        return make_int(compute(other, self), self.bits) if isinstance(other, int) else NotImplemented

    setattr(Int, f"__{name}__", forward)
    setattr(Int, f"__r{name}__", backward)


def _quotient(a: int, b: int) -> int:
    quotient = int.__floordiv__(abs(int(a)), abs(int(b)))
    return quotient if (int(a) < 0) == (int(b) < 0) else -quotient


for _name, _compute in {
    **{name: getattr(int, f"__{name}__") for name in ("add", "sub", "mul", "and", "or", "xor", "lshift", "rshift")},
    "floordiv": _quotient, "mod": lambda a, b: int(a) - int(b) * _quotient(a, b),
}.items():  # fmt: skip
    _arithmetic(_name, _compute)


class Pointer:
    """A pointer, or a tensor of pointers: an offset in elements into the storage of a tensor."""

    def __init__(self, storage: Tensor, offset: Any) -> None:
        self.storage, self.offset = storage, offset
        self.dtype = types.SimpleNamespace(element_ty=storage.dtype)

    @classmethod
    def to(cls, tensor: Tensor) -> Pointer:
        """Return the pointer to a tensor's first element."""
        size = tensor.untyped_storage().nbytes() // tensor.element_size()
        return cls(torch.as_strided(tensor.detach(), (size,), (1,), 0), Int64(tensor.storage_offset()))

    def __add__(self, offset: Any) -> Pointer:
        if isinstance(offset, Tensor) and not isinstance(self.offset, Tensor):
            return Pointer(self.storage, offset.to(torch.int64) + int(self.offset))
        return Pointer(self.storage, self.offset + offset)

    def lanes(self, mask: Any, shape: torch.Size | None = None) -> tuple[Tensor, Tensor]:
        """Return offsets and mask, broadcast; raises ``HazardError`` where an element not masked lies outside."""
        offset = torch.as_tensor(self.offset)
        mask = torch.as_tensor(True if mask is None else mask)
        offset, mask = torch.broadcast_tensors(offset, mask)
        if shape is not None:
            offset, mask = offset.expand(shape), mask.expand(shape)
        used = offset[mask]
        if used.numel() and not 0 <= int(used.min()) <= int(used.max()) < self.storage.numel():
            raise HazardError(f"elements {int(used.min())} to {int(used.max())} of a storage of {self.storage.numel()}")
        return offset, mask


def _load(pointer: Pointer, mask: Any = None, other: Any = None, **_: Any) -> Any:
    offset, mask = pointer.lanes(mask)
    value = torch.full(offset.shape, math.nan if other is None else float(other)).to(pointer.storage.dtype)
    value[mask] = pointer.storage[offset[mask]]
    return value


def _store(pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> None:
    value = torch.as_tensor(value).to(pointer.storage.dtype)
    offset, mask = pointer.lanes(mask, value.shape)
    pointer.storage[offset[mask]] = value[mask]


def _atomic_add(pointer: Pointer, value: Any, mask: Any = None, **_: Any) -> Any:
    """Add; return what a scalar pointer's element was before."""
    is_scalar = not isinstance(pointer.offset, Tensor) and not isinstance(value, Tensor)
    before = make_int(int(pointer.storage[int(pointer.offset)]), 32) if is_scalar else None
    value = torch.as_tensor(value).to(pointer.storage.dtype)
    offset, mask = pointer.lanes(mask, value.shape)
    pointer.storage.index_add_(0, offset[mask], value[mask])
    return before


def _allocate(dtype: torch.dtype, shape: list[int], layout: Any, value: Any = None) -> Any:
    del layout
    if dtype == torch.int64:
        return Barrier(shape[0], f"barrier {next(here().machine.names)}")
    buffer = Memory(torch.full(shape, math.nan), dtype, Allocation())
    if value is not None:
        buffer.store(value)
    return buffer


def _warp_specialize(parts: list[tuple[Any, tuple[Any, ...]]], worker_num_warps: Any, worker_num_regs: Any) -> None:
    if not len(parts) - 1 == len(worker_num_warps) == len(worker_num_regs):
        raise HazardError(f"{len(parts)} partitions, {len(worker_num_warps)} numbers of warps")
    parent = here()
    parent.children = len(parts)
    for function, arguments in parts:
        Partition(parent.machine, function, tuple(arguments), parent)
    parent.block("its partitions")


def _pick(compute: Callable[..., Any], tensors: Callable[..., Tensor]) -> Callable[..., Any]:
    def choose(a: Any, b: Any) -> Any:
        if isinstance(a, Tensor) or isinstance(b, Tensor):
            return tensors(*torch.broadcast_tensors(*(x if isinstance(x, Tensor) else torch.tensor(x) for x in (a, b))))
        return compute(a, b)

    return choose


def _where(condition: Any, a: Any, b: Any) -> Any:
    return torch.where(condition, a, b) if isinstance(condition, Tensor) else (a if condition else b)


def _range(*bounds: int) -> Iterator[Int]:
    return (make_int(i, 32) for i in range(*map(int, bounds)))


class Layout:
    """Any layout: not modelled."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


LANGUAGE = types.SimpleNamespace(
    constexpr=lambda value: value, float16=torch.float16, bfloat16=torch.bfloat16, float32=torch.float32,
    int1=torch.bool, int32=torch.int32, int64=torch.int64,
    zeros=lambda shape, dtype, layout=None: torch.zeros(shape, dtype=dtype),
    full=lambda shape, value, dtype, layout=None: torch.full(shape, value, dtype=dtype),
    arange=lambda start, end, layout=None: torch.arange(start, end, dtype=torch.int32),
    minimum=_pick(min, torch.minimum), maximum=_pick(max, torch.maximum), where=_where,
    max=lambda x, axis: x.amax(axis), min=lambda x, axis: x.amin(axis), sum=lambda x, axis: x.sum(axis),
    exp2=torch.exp2, exp=torch.exp, log2=torch.log2, log=torch.log, abs=torch.abs, fma=lambda a, b, c: a * b + c,
    expand_dims=lambda x, axis: x.unsqueeze(axis), convert_layout=lambda x, layout, **_: x,
    permute=lambda x, order: x.permute(order), reshape=lambda x, shape: x.reshape(shape),
    cdiv=lambda a, b: (a + b - 1) // b, program_id=lambda axis: make_int(here().machine.program, 32),
    num_programs=lambda axis: make_int(here().machine.programs, 32), static_range=range, static_assert=lambda *_: None,
    load=_load, store=_store, atomic_add=_atomic_add, thread_barrier=lambda: None, barrier=lambda: None,
    inline_asm_elementwise=lambda text, constraints, values, **_: values[0],
    allocate_shared_memory=_allocate, warp_specialize=_warp_specialize,
    **dict.fromkeys(("NVMMADistributedLayout", "DotOperandLayout", "SliceLayout", "BlockedLayout", "AutoLayout",
                     "NVMMASharedLayout", "SwizzledSharedLayout", "CoalescedLayout"), Layout),
)  # fmt: skip
BARRIERS = types.SimpleNamespace(
    MBarrierLayout=Layout,
    init=operations.init,
    arrive=operations.arrive,
    expect=operations.expect,
    wait=operations.wait,
    invalidate=lambda barrier: None,
)
COPIES = types.SimpleNamespace(
    async_copy_global_to_shared=operations.load_async,
    async_copy_shared_to_global=operations.store_async,
    store_wait=operations.store_wait,
)
REPLACED: list[tuple[Any, Any]] = [
    (language, LANGUAGE), (hopper.mbarrier, BARRIERS), (hopper.tma, COPIES),
    (hopper.fence_async_shared, operations.fence), (hopper.warpgroup_mma, operations.multiply),
    (hopper.warpgroup_mma_wait, operations.multiply_wait), (hopper_adding.additions_wait, operations.additions_wait),
    (hopper_adding.async_add_shared_to_global, operations.add_async),
]  # fmt: skip


def lowered(kernel: Any) -> Callable[..., Any]:
    """Return the Python function of a Gluon kernel, which names the emulator's operations."""
    require_carried(kernel)
    return _lower(kernel.fn, {})


def require_carried(kernel: Any) -> None:
    """Raise ``HazardError`` where the compiler would not carry a variable that a loop of a jit function changes."""
    if names := not_carried(kernel.src):
        raise HazardError(
            f"{kernel.__name__}: the loop changes {', '.join(sorted(names))}, which Triton does not carry"
        )


def _lower(function: Any, spaces: dict[int, dict[str, Any]]) -> Callable[..., Any]:
    source = function.__globals__
    if id(source) not in spaces:
        space = spaces[id(source)] = {"__builtins__": builtins, "range": _range}
        for name, value in source.items():
            replacement = next((new for old, new in REPLACED if old is value), None)
            if replacement is not None:
                space[name] = replacement
            elif hasattr(value, "fn") and hasattr(value, "arg_names"):
                require_carried(value)
                space[name] = _lower(value.fn, spaces)
            elif isinstance(value, language.constexpr):
                space[name] = value.value
            elif not name.startswith("__"):
                space.setdefault(name, value)
    return types.FunctionType(function.__code__, spaces[id(source)], function.__name__, function.__defaults__)


def _argument(name: str, value: Any, constants: set[str]) -> Any:
    if name in constants or isinstance(value, bool | Descriptor):
        return value
    if isinstance(value, Tensor):
        return Pointer.to(value)
    if hasattr(value, "block_shape"):  # a descriptor as the host makes it
        return Descriptor(torch.as_strided(value.base, value.shape, value.strides), value.block_shape)
    return make_int(value, 32) if isinstance(value, int) else value


def launch(kernel: Any, programs: int, arguments: Mapping[str, Any], seed: int = 0) -> None:
    """Run all programs of a one-dimensional grid, one after the other, each with its own schedule drawn from ``seed``.

    ``arguments`` holds all by name: tensors become pointers, tensor descriptors of the host (or ``Descriptor``) those
    of TMA, constexpr parameters stay as they are. Raises ``HazardError``, ``DeadlockError`` or what the kernel raises.
    """
    constants = {name for name, kind in kernel.fn.__annotations__.items() if "constexpr" in str(kind)}
    body = lowered(kernel)
    values = tuple(_argument(name, arguments[name], constants) for name in kernel.arg_names)
    for program in range(programs):
        Machine(Schedule(seed, program), program, programs).run(body, values)
