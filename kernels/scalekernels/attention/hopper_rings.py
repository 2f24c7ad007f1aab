"""What the Gluon kernels of the backward pass share: the block of a program, and rings of tiles in shared memory.

A ring slot has two mbarriers: ``full`` completes when the bytes of a tile have arrived by TMA, ``empty`` when all
consumers have read it.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (the arguments of a jit function are descriptors and sizes, typed where it is compiled)

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier

RUNTIME_SIZES = ("batches", "query_heads", "group", "query_length", "key_length", "padded_length", "section")


@gluon.jit
def _own_block(blocks, heads, section):
    """Return block and head of this program: sections of heads, in each of which all first blocks come first.

    Blocks are ordered from the longest. The heads of a section are few enough for what they read to stay in L2.
    """
    per_section = section * blocks
    first_head = gl.program_id(0) // per_section * section
    rest = gl.program_id(0) % per_section
    width = gl.minimum(section, heads - first_head)
    return rest // width, first_head + rest % width


@gluon.jit
def _next_slot(slot, phase, STAGES: gl.constexpr):
    """Return the ring's next slot and the parity of its barriers."""
    slot += 1
    wrapped = slot == STAGES
    return gl.where(wrapped, 0, slot), gl.where(wrapped, phase ^ 1, phase)


@gluon.jit
def _ring(STAGES: gl.constexpr, CONSUMERS: gl.constexpr = 2):
    """Return the barriers (full, empty) of a ring: one arrival by TMA, one by each consumer."""
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(STAGES):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=CONSUMERS)
    return full, empty
