"""What Gluon's language lacks for adding to global memory by TMA: the addition itself, and the wait for its end.

The compiler has the operation (``ttng.async_tma_reduce``, in PTX ``cp.reduce.async.bulk.tensor``), and its builder a
method for it, with the same arguments in Triton 3.6 and 3.7; ``async_add_shared_to_global`` makes it callable.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

from triton._C.libtriton import ir
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language._core import builtin


@builtin
def async_add_shared_to_global(tensor_desc, coord, src, _semantic=None):
    """Add a block of shared memory to a tensor in global memory; ``tma.store_wait`` waits until ``src`` is read.

    As ``tma.async_copy_shared_to_global``, with an addition in the L2 cache in place of the write. The additions of
    several programs to one element are all made, in no fixed order.
    """
    at = _semantic._convert_to_ir_values(coord, require_i64=False)
    _semantic.builder.create_async_tma_reduce(ir.DESCRIPTOR_REDUCE_KIND.ADD, tensor_desc.handle, at, src.handle)


@gluon.jit
def additions_wait(row):
    """Wait until the additions and stores of this warp are visible in global memory; return ``row`` unchanged.

    ``tma.store_wait`` waits for the reads of shared memory only.
    """
    return gl.inline_asm_elementwise(
        "cp.async.bulk.wait_group 0; mov.b32 $0, $1;", "=r,r", [row], dtype=gl.int32, is_pure=False, pack=1
    )
