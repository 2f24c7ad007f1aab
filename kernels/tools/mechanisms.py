"""Witnesses of single mechanisms of Hopper that the kernel for all gradients of attention needs, with exact results.

Each is a tiny Gluon kernel whose result PyTorch computes, too: where gradients are wrong on a GPU, they say which
mechanism is to blame. All values are small integers, or sums whose order shows, so that any difference is a fault.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"
from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import torch
from scalekernels.attention import hopper_gradients, tuned
from scalekernels.attention.hopper_adding import additions_wait, async_add_shared_to_global
from scalekernels.attention.hopper_fused import _await_turn
from scalekernels.attention.hopper_gradients import SUMS_LAYOUT
from scalekernels.compilation import Compilation
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

ROWS = 64  # of every block
PROGRAMS = 64  # that add to one block
ROUNDS = 8  # additions of each


@gluon.jit
def product(A, B, C, WIDTH: gl.constexpr, FIRST: gl.constexpr, N: gl.constexpr, TRANSPOSED: gl.constexpr,
            INNER: gl.constexpr):  # fmt: skip
    """C (64, N) = A B[:, FIRST : FIRST + N] or Aᵀ B[...], of A (64, INNER) and B (INNER, WIDTH) in shared memory."""
    loaded: gl.constexpr = gl.BlockedLayout([1, 8], [4, 8], [4, 1], [1, 0])
    in_memory: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
    a_in_memory: gl.constexpr = gl.NVMMASharedLayout(swizzle_byte_width=2 * INNER, element_bitwidth=16, rank=2)
    result: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, N, 16])
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, loaded)), 1)
    inner = gl.expand_dims(gl.arange(0, INNER, layout=gl.SliceLayout(0, loaded)), 0)
    inner_row = gl.expand_dims(gl.arange(0, INNER, layout=gl.SliceLayout(1, loaded)), 1)
    column = gl.expand_dims(gl.arange(0, WIDTH, layout=gl.SliceLayout(0, loaded)), 0)
    a = gl.allocate_shared_memory(gl.float16, [64, INNER], a_in_memory, gl.load(A + row * INNER + inner))
    b = gl.allocate_shared_memory(gl.float16, [INNER, WIDTH], in_memory, gl.load(B + inner_row * WIDTH + column))
    stored = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(stored, count=1)
    fence_async_shared()
    mbarrier.arrive(stored)
    mbarrier.wait(stored, 0)
    if TRANSPOSED:
        a = a.permute((1, 0))
    zero = gl.zeros([64, N], gl.float32, result)
    c = warpgroup_mma(a, b.slice(FIRST, N, dim=1), zero, use_acc=False, is_async=True)
    c = warpgroup_mma_wait(0, deps=(c,))
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, result)), 1)
    column = gl.expand_dims(gl.arange(0, N, layout=gl.SliceLayout(0, result)), 0)
    gl.store(C + row * N + column, c)


@gluon.jit
def _writer(values, buffer, full, empty, WIDTH: gl.constexpr, ROUNDS: gl.constexpr):
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, WIDTH, 16])
    row = gl.expand_dims(gl.arange(0, 64, layout=gl.SliceLayout(1, layout)), 1)
    column = gl.expand_dims(gl.arange(0, WIDTH, layout=gl.SliceLayout(0, layout)), 0)
    for step in range(ROUNDS):
        block = gl.load(values + (gl.program_id(0) * ROUNDS + step) * 64 * WIDTH + row * WIDTH + column)
        mbarrier.wait(empty, step & 1 ^ 1)
        buffer.store(block)
        fence_async_shared()
        mbarrier.arrive(full)


@gluon.jit
def _adder(sums_desc, counters, buffer, full, empty, ROUNDS: gl.constexpr, ORDERED: gl.constexpr):
    for step in range(ROUNDS):
        mbarrier.wait(full, step & 1)
        if ORDERED:
            _await_turn(counters + step, gl.program_id(0))
        async_add_shared_to_global(sums_desc, [step * 64, 0], buffer)
        tma.store_wait(0)
        mbarrier.arrive(empty)
        if ORDERED:
            gl.atomic_add(counters + additions_wait(step), 1, sem="release")


@gluon.jit
def addition(values, sums_desc, counters, WIDTH: gl.constexpr, ROUNDS: gl.constexpr, ORDERED: gl.constexpr):
    """Add values (programs, ROUNDS, 64, WIDTH) to sums (ROUNDS x 64, WIDTH) by TMA, from a partition of one warp."""
    buffer = gl.allocate_shared_memory(gl.float32, [64, WIDTH], sums_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(full, count=1)
    mbarrier.init(empty, count=1)
    fence_async_shared()
    gl.warp_specialize([
        (_writer, (values, buffer, full, empty, WIDTH, ROUNDS)),
        (_adder, (sums_desc, counters, buffer, full, empty, ROUNDS, ORDERED)),
    ], [1], [24])  # fmt: skip


# --- what they compute -----------------------------------------------------------------------------------------------

# Width of B, first column and number of columns, whether A is transposed, rows of B.
PRODUCTS = {
    "transposed A": (64, 0, 64, True, 64),
    "half of B": (128, 64, 64, False, 64),
    "half of B, within a swizzled line": (64, 32, 32, False, 64),
    "transposed A, half of B": (128, 64, 64, True, 64),
    "transposed A, half of B, within a swizzled line": (64, 32, 32, True, 64),
    "A in lines of 64 bytes, half of a wide B": (256, 128, 128, False, 32),
}
WIDE = ("A in lines of 64 bytes, half of a wide B",)  # what only the backward pass of D 256 needs
# Columns, whether the order is fixed.
ADDITIONS = {
    "TMA addition": (64, False),
    "TMA addition of few columns": (32, False),
    "TMA addition in order": (64, True),
}


def wrong_products(device: str, case: tuple[int, int, int, bool, int]) -> str | None:
    """Return what is wrong with a product, None if it is exact."""
    width, first, columns, transposed, inner = case
    generator = torch.Generator().manual_seed(0)
    sizes = ((ROWS, inner), (inner, width))
    a, b = (torch.randint(-4, 5, size, generator=generator).to(device, torch.float16) for size in sizes)
    output = torch.full((ROWS, columns), torch.nan, device=device)
    product[(1,)](a, b, output, width, first, columns, transposed, inner, num_warps=4)
    expected = (a.mT if transposed else a).double() @ b[:, first : first + columns].double()
    return difference(output, expected)


def wrong_additions(device: str, case: tuple[int, bool]) -> str | None:
    """Return what is wrong with sums of many programs, None if they are exact; where ordered, of rounded terms."""
    columns, ordered = case
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(-9, 10, (PROGRAMS, ROUNDS, ROWS, columns), generator=generator).to(device, torch.float32)
    if ordered:
        values *= 1.1 ** torch.arange(PROGRAMS, device=device)[:, None, None, None]
    sums = torch.zeros((ROUNDS * ROWS, columns), device=device)
    counters = torch.zeros(ROUNDS, dtype=torch.int32, device=device)
    sums_desc = TensorDescriptor(sums, list(sums.shape), [columns, 1], [ROWS, columns], SUMS_LAYOUT)
    addition[(PROGRAMS,)](values, sums_desc, counters, columns, ROUNDS, ordered, num_warps=4, maxnreg=168)
    expected = torch.zeros_like(sums)
    for block in values:  # in float32, in the order of the programs
        expected += block.flatten(0, 1)
    return difference(sums, expected)


def difference(output: Tensor, expected: Tensor) -> str | None:
    """Return how many entries differ, None if none does."""
    wrong = int((output.double() != expected.double()).sum())
    return f"{wrong} of {expected.numel()} entries are wrong" if wrong else None


def witnesses() -> Mapping[str, Callable[[str], str | None]]:
    """Return a function of the device for each mechanism, by name."""
    of_products = {name: partial(wrong_products, case=case) for name, case in PRODUCTS.items()}
    return of_products | {name: partial(wrong_additions, case=case) for name, case in ADDITIONS.items()}


def is_shipped(name: str) -> bool:
    """Return whether a method of the measured table uses a kernel that needs a mechanism."""
    dimensions = [d for d in hopper_gradients.KEYS if (d == hopper_gradients.WIDE) == (name in WIDE)]
    places = ((d, causal, name) for d in dimensions for causal in (True, False) for name in tuned.BUCKETS)
    methods = {hopper_gradients.method_of(*place, way) for place in places for way in (True, False)}
    return bool(methods - {None, *(() if name in WIDE else (hopper_gradients.APART,))})


def compilations() -> Iterator[Compilation]:
    """Yield every witness for ahead-of-time compilation."""
    for name, (width, first, columns, transposed, inner) in PRODUCTS.items():
        constants = {"WIDTH": width, "FIRST": first, "N": columns, "TRANSPOSED": transposed, "INNER": inner}
        types = {"A": "*fp16", "B": "*fp16", "C": "*fp32"}
        signature = types | dict.fromkeys(constants, "constexpr")
        yield Compilation("product", name, product, signature, constants, 4, 3, 1, tuple(types), tensor_core=True)
    for name, (columns, ordered) in ADDITIONS.items():
        constants = {"WIDTH": columns, "ROUNDS": ROUNDS, "ORDERED": ordered}
        types = {
            "values": "*fp32",
            "sums_desc": f"tensordesc<fp32{[ROWS, columns]},{SUMS_LAYOUT!r}>",
            "counters": "*i32",
        }
        signature = types | dict.fromkeys(constants, "constexpr")
        yield Compilation(
            "addition", name, addition, signature, constants, 4, 3, 1, ("values", "counters"), options={"maxnreg": 168}
        )
