"""Launches of the backward pass in Gluon for Hopper: tiles, methods and arguments.

A first pass writes the statistics of every row; three methods follow. "apart" computes dK with dV, and dQ, by the two
kernels of ``hopper_backward.py``, or for D 256 of ``hopper_wide.py`` and ``hopper_single.py``. "ordered" and
"unordered" compute all by that of ``hopper_fused.py``, with dQ added to in a fixed order or in none; a last pass scales
and rounds dQ.

``tuned.json`` has the fastest tiles and methods measured on a GPU. For cases without a row, ``KEYS`` and ``QUERIES``
have the tiles, and deterministic gradients are computed "apart", those of D 256 by the kernels of ``kernels.py``
("plain"). ``candidates`` and ``methods`` return what else compiles without spills and without serialised wgmma with
Triton 3.6 and 3.7, for tuning.

Compiled and left out (bfloat16, Triton 3.6, ptxas 13.5): D 256 dQ by pairs of 32 keys, 64 to 176 bytes spilled; D 64
dK and dV by 128 queries, or with three consumers, serialised for lack of registers; D 128 all gradients with ds of dK
in registers, 16 to 24 bytes spilled in the loop.

dQ by pairs is "late" where no measurement decides between that and not. Only the other order was timed (715.8 TFLOP/s
at D 128, 569.5 at D 64, T 8192, one H200), never both. By what compilation shows, late is the better: all exponentials
run beside a product instead of half, for 9 instructions of 540 to 677 in a round more (at most 1.7 %), with the same
registers and memory (both dtypes and masks; Triton 3.6 and 3.7, ptxas 12.8 and 13.5). ``make gpu`` times both.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from scalekernels.attention import (
    hopper,
    hopper_backward,
    hopper_fused,
    hopper_single,
    hopper_wide,
    kernels,
    tiles,
    tuned,
)
from scalekernels.attention.hopper import described
from scalekernels.cache_keys import settled

ROWS = 64  # rows of the result that one consumer warpgroup owns, of two in a program: the height of a wgmma
SUMS_LAYOUT = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2)
STATISTICS_LAYOUT = NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
WARPS = 4  # of the first partition, as a launch specifies them; the compiler adds the others
# Registers of a consumer's thread, where the producer has 24. An SM has 65,536; the producer's warp counts as a
# warpgroup.
REGISTERS = 240
# In ``hopper_single``, by consumers: those of a consumer, and of the producer, which spills with 24.
SINGLE_REGISTERS = {2: (232, 40), 3: (160, 32)}
START_REGISTERS = {2: 168, 3: 128}  # of all kernels, by consumers: those of every thread before partitions begin
WIDE = 256  # the head dimension of ``hopper_wide``


class BackwardTile(NamedTuple):
    """Rows of the other sequence in one product, and stages of the ring: at least 2 for dK and dV, 3 for dQ.

    ``in_registers`` keeps a consumer's own rows in registers, for which D 64 leaves room. ``late`` rounds ds of dK a
    round later (16 of 270 instructions less at D 64), and keeps dQ's wait behind ds of a pair's second tile (all
    exponentials beside a product, where half were). ``consumers`` other than 2 and ``paired=False`` choose
    ``hopper_single`` for dQ.
    """

    rows: int
    stages: int
    in_registers: bool = False
    late: bool = False
    consumers: int = 2
    paired: bool = True


class Method(NamedTuple):
    """How dQ, dK and dV are computed; the other fields are the tile of the kernel that computes all, as in "keys".

    ``in_registers`` multiplies dK's ds from registers.
    """

    name: str
    rows: int = 64
    stages: int = 0
    in_registers: bool = False

    @property
    def tile(self) -> BackwardTile:
        """The tile of the kernel that computes all gradients."""
        return BackwardTile(self.rows, self.stages, self.in_registers)


APART = Method("apart")
PLAIN = Method("plain")  # by the kernels of ``kernels.py``; "apart" and this alone serve D 256
# The rows of ``tuned.json`` with a method, by whether gradients have to be deterministic.
METHOD_ROWS = {True: "method", False: "method-any-order"}


# By head dimension, with and without a causal mask.
KEYS = {64: BackwardTile(64, 4), 128: BackwardTile(64, 3), 256: BackwardTile(32, 4)}
QUERIES = {
    64: BackwardTile(64, 6, late=True),
    128: BackwardTile(64, 4, late=True),
    256: BackwardTile(32, 3, paired=False),
}
SHIPPED = {"keys": KEYS, "queries": QUERIES}


def tile_of(kind: str, head_dimension: int, causal: bool, length_bucket: str) -> BackwardTile:
    """Return the tile of "keys" or "queries": the measured one, or that of the tables if none was measured.

    A field that a row of ``tuned.json`` lacks had no alternative when it was measured: that of the tables is taken.
    """
    measured = tuned.row(kind, head_dimension, causal, length_bucket)
    return SHIPPED[kind][head_dimension]._replace(**measured or {})


def candidates(kind: str, head_dimension: int, causal: bool, length_bucket: str) -> tuple[BackwardTile, ...]:
    """Return the candidate tiles of "keys" or "queries", the shipped one first."""
    listed: dict[tuple[str, int], tuple[tuple[Any, ...], ...]] = {
        ("keys", 64): (
            (64, 4), (64, 3), (64, 6), (64, 4, True), (64, 3, True), (64, 6, True),
            (64, 3, False, True), (64, 4, False, True),
        ),
        ("keys", 128): ((64, 3), (64, 2), (64, 4), (64, 3, False, True)),
        ("keys", 256): (),
        ("queries", 64): (
            (64, 6, False, True), (64, 4, False, True), (64, 8, False, True),
            (64, 6, True, True), (64, 4, True, True), (64, 8, True, True),
            (64, 6), (64, 4), (64, 6, False, False, 3, False),
        ),
        ("queries", 128): ((64, 4, False, True), (64, 3, False, True), (64, 4)),
        ("queries", 256): (),
    }  # fmt: skip
    shipped = tile_of(kind, head_dimension, causal, length_bucket)
    return tuple(dict.fromkeys([shipped, *(BackwardTile(*tile) for tile in listed[kind, head_dimension])]))


def method_of(head_dimension: int, causal: bool, length_bucket: str, deterministic: bool) -> Method | None:
    """Return the fastest measured method; if none was, "apart" for deterministic gradients; None for "plain"."""
    measured = tuned.row(METHOD_ROWS[deterministic], head_dimension, causal, length_bucket)
    default = APART if deterministic and head_dimension != WIDE else PLAIN
    method = default if measured is None else Method(**measured)
    return None if method == PLAIN else method


def methods(head_dimension: int, causal: bool, length_bucket: str, deterministic: bool) -> tuple[Method, ...]:
    """Return the candidate methods, the shipped one first, or "apart" ("plain" for D 256) if none is."""
    name = "ordered" if deterministic else "unordered"
    listed: dict[int, tuple[tuple[Any, ...], ...]] = {
        64: ((64, 4), (64, 4, True), (64, 3)),
        128: ((64, 2), (64, 3)),
        256: (),
    }
    default = PLAIN if head_dimension == WIDE else APART
    shipped = method_of(head_dimension, causal, length_bucket, deterministic) or default
    others = (Method(name, *tile) for tile in listed[head_dimension])
    return tuple(dict.fromkeys([shipped, default, APART, *others]))


def unsupported(**tensors: Tensor) -> str | None:
    """Return why these tensors are left to the other kernels, or None; see :func:`hopper.unsupported`."""
    if next(iter(tensors.values())).shape[3] not in KEYS:
        return f"the backward pass in Gluon serves head dimensions {tuple(KEYS)}"
    return hopper.unsupported(**tensors)


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
    need_q: bool = True, need_kv: bool = True, tile: Mapping[str, BackwardTile] | None = None, method: Method = APART,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dQ, dK and dV in the layouts of q, k and v; those not needed come back empty.

    Deterministic unless the method is "unordered". ``lse`` is the base-2 log-sum-exp (B, Hq, Tq) of the forward pass;
    ``tile`` replaces shipped tiles of "keys" and "queries". Where not all gradients are needed, the method is "apart".
    """
    head_dimension = q.shape[3]
    case = (head_dimension, causal, tuned.bucket(q.shape[2], k.shape[2]))
    tile = {kind: tile_of(kind, *case) for kind in SHIPPED} | dict(tile or {})
    statistics = row_statistics(out, grad_out, lse)
    if need_q and need_kv and method.name != APART.name:
        return _together(q, k, v, grad_out, statistics, causal, scale, method)
    dq, dk, dv = (q.new_empty(0) for _ in range(3))
    if need_kv:
        dk, dv = tiles.like(k), tiles.like(v)
        launch(*keys_arguments(q, k, v, grad_out, statistics, dk, dv, causal, scale, tile["keys"]))
    if need_q:
        dq = tiles.like(q)
        launch(*queries_arguments(q, k, v, grad_out, statistics, dq, causal, scale, tile["queries"]))
    return dq, dk, dv


def _together(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, statistics: Tensor, causal: bool, scale: float, method: Method
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = tiles.like(q), tiles.like(k), tiles.like(v)
    sums, counters = sums_of(q)
    launch(*all_arguments(q, k, v, grad_out, statistics, dk, dv, sums, counters, causal, scale, method))
    scale_queries(sums, dq, scale)
    return dq, dk, dv


def sums_of(q: Tensor) -> tuple[Tensor, Tensor]:
    """Return zeroed float32 sums of dQ / scale, (B, Hq, padded Tq, D), and zeroed int32 counters of their tiles."""
    batch, heads, length, head_dimension = q.shape
    padded = tiles.padded(length)
    sums = torch.zeros((batch, heads, padded, head_dimension), dtype=torch.float32, device=q.device)
    return sums, torch.zeros((batch, heads, padded // ROWS), dtype=torch.int32, device=q.device)


def scale_queries(sums: Tensor, dq: Tensor, scale: float) -> None:
    """Write dQ (B, Hq, Tq, D) from its sums."""
    batch, heads, length, head_dimension = dq.shape
    block, _, warps, _ = tiles.row_tile(head_dimension)
    arguments: dict[str, Any] = {"sums": sums, "dq": dq} | _strides(dq=dq)
    arguments |= {"query_heads": heads, "query_length": length, "padded_length": sums.shape[2], "scale": scale}
    grid = (-(-length // block) * batch * heads,)
    with _device_of(dq):
        settled(kernels.attention_scale_queries)[grid](
            **arguments, D=head_dimension, BLOCK_M=block, num_warps=warps, num_stages=1
        )


def row_statistics(out: Tensor, grad_out: Tensor, lse: Tensor) -> Tensor:
    """Return (2, B, Hq, padded Tq) in float32: log-sum-exp, and row sums of out x grad_out; zeros in the padding."""
    batch, heads, length, head_dimension = out.shape
    padded = tiles.padded(length)
    statistics = torch.empty((2, batch, heads, padded), dtype=torch.float32, device=out.device)
    block, _, warps, _ = tiles.row_tile(head_dimension)
    arguments: dict[str, Any] = {"out": out, "grad_out": grad_out, "lse": lse, "statistics": statistics}
    arguments |= _strides(o=out, g=grad_out)
    arguments |= {"query_heads": heads, "query_length": length, "padded_length": padded}
    arguments |= {"delta_offset": batch * heads * padded, "D": head_dimension, "BLOCK_M": block}
    with _device_of(out):
        grid = (padded // block * batch * heads,)
        settled(kernels.attention_statistics)[grid](**arguments, num_warps=warps, num_stages=1)
    return statistics


def launch(kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
    """Launch a kernel of the backward pass on the device of its tensors, which need not be the current one."""
    with _device_of(arguments["q_desc"].base):
        registers = START_REGISTERS[arguments.get("CONSUMERS", 2)]
        settled(kernel)[(programs,)](**arguments, num_warps=WARPS, maxnreg=registers)


def _strides(**tensors: Tensor) -> dict[str, int]:
    return {f"stride_{name}{axis}": x.stride(i) for name, x in tensors.items() for i, axis in enumerate("bht")}


def _device_of(tensor: Tensor) -> Any:
    return torch.cuda.device(tensor.device) if tensor.device.type == "cuda" else contextlib.nullcontext()


def keys_arguments(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, statistics: Tensor, dk: Tensor, dv: Tensor, causal: bool,
    scale: float, tile: BackwardTile,
) -> tuple[Any, int, dict[str, Any]]:  # fmt: skip
    """Return kernel, programs and arguments of the launch for dK and dV."""
    heads, group = k.shape[0] * k.shape[1], q.shape[1] // k.shape[1]
    described_rows = {"q_desc": (q, tile.rows), "g_desc": (grad_out, tile.rows)}
    described_rows |= {"k_desc": (k, ROWS), "v_desc": (v, ROWS), "dk_desc": (dk, ROWS), "dv_desc": (dv, ROWS)}
    arguments = {name: described(*what) for name, what in described_rows.items()}
    arguments["statistics_desc"] = TensorDescriptor(
        statistics, [statistics.numel()], [1], [tile.rows], STATISTICS_LAYOUT
    )
    # Without a mask all blocks take equally long, so that one key head at a time is enough.
    section = _section(heads, 4 * group * q.shape[2] * q.shape[3]) if causal else 1
    arguments |= _sizes(q, k, statistics, scale) | {"section": section} | keys_constants(q.shape[3], causal, tile)
    block = ROWS if q.shape[3] == WIDE else 2 * ROWS
    return keys_kernel(q.shape[3]), -(-k.shape[2] // block) * heads, arguments


def keys_kernel(head_dimension: int) -> Any:
    """Return the kernel for dK and dV."""
    return hopper_wide.hopper_keys_wide if head_dimension == WIDE else hopper_backward.hopper_keys


def queries_kernel(tile: BackwardTile) -> Any:
    """Return the kernel for dQ."""
    return hopper_backward.hopper_queries if tile.paired else hopper_single.hopper_queries_single


def all_arguments(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, statistics: Tensor, dk: Tensor, dv: Tensor, sums: Tensor,
    counters: Tensor, causal: bool, scale: float, method: Method,
) -> tuple[Any, int, dict[str, Any]]:  # fmt: skip
    """Return kernel, programs and arguments of the launch for dK, dV and the sums of dQ."""
    _, programs, arguments = keys_arguments(q, k, v, grad_out, statistics, dk, dv, causal, scale, method.tile)
    rows, head_dimension = sums.flatten(0, 2).shape
    block = [ROWS, head_dimension // 2]
    sums_desc = TensorDescriptor(sums, [rows, head_dimension], [head_dimension, 1], block, SUMS_LAYOUT)
    arguments |= {"sums_desc": sums_desc, "counters": counters, "ORDERED": method.name == "ordered"}
    del arguments["LATE"]
    return hopper_fused.hopper_all, programs, arguments


def queries_arguments(
    q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, statistics: Tensor, dq: Tensor, causal: bool, scale: float,
    tile: BackwardTile,
) -> tuple[Any, int, dict[str, Any]]:  # fmt: skip
    """Return kernel, programs and arguments of the launch for dQ."""
    heads, group = q.shape[0] * q.shape[1], q.shape[1] // k.shape[1]
    described_rows = {"k_desc": (k, tile.rows), "v_desc": (v, tile.rows)}
    described_rows |= {"q_desc": (q, ROWS), "g_desc": (grad_out, ROWS), "dq_desc": (dq, ROWS)}
    arguments = {name: described(*what) for name, what in described_rows.items()}
    arguments["statistics"] = statistics
    section = _section(heads // group, 4 * k.shape[2] * k.shape[3]) * group if causal else group
    arguments |= _sizes(q, k, statistics, scale) | {"section": section} | queries_constants(q.shape[3], causal, tile)
    return queries_kernel(tile), -(-q.shape[2] // (tile.consumers * ROWS)) * heads, arguments


def _section(heads: int, bytes_of_head: int) -> int:
    """Return how many heads run side by side, so that what their programs stream fits the L2 cache together."""
    return min(heads, max(1, hopper.L2_BYTES // bytes_of_head))


def _sizes(q: Tensor, k: Tensor, statistics: Tensor, scale: float) -> dict[str, Any]:
    return {
        "batches": q.shape[0], "query_heads": q.shape[1], "group": q.shape[1] // k.shape[1],
        "query_length": q.shape[2], "key_length": k.shape[2], "padded_length": statistics.shape[3],
        "scale": scale, "scale_log2": scale * tiles.LOG2_E,
    }  # fmt: skip


def keys_constants(head_dimension: int, causal: bool, tile: BackwardTile, late: bool = True) -> dict[str, Any]:
    """Return what the kernel for dK and dV is compiled for; the one for all gradients is without ``late``."""
    constants = {"CAUSAL": causal, "D": head_dimension, "STAGES": tile.stages, "REGISTERS": REGISTERS}
    constants |= {"KEYS": ROWS, "M": tile.rows}
    if head_dimension != WIDE:
        constants |= {"IN_REGISTERS": tile.in_registers} | ({"LATE": tile.late} if late else {})
    return constants


def queries_constants(head_dimension: int, causal: bool, tile: BackwardTile) -> dict[str, Any]:
    """Return what the kernel for dQ is compiled for."""
    constants: dict[str, Any] = {"CAUSAL": causal, "D": head_dimension, "STAGES": tile.stages}
    constants |= {"M": ROWS, "N": tile.rows}
    if tile.paired:
        return constants | {"REGISTERS": REGISTERS, "IN_REGISTERS": tile.in_registers, "LATE": tile.late}
    registers, producer_registers = SINGLE_REGISTERS[tile.consumers]
    constants |= {"REGISTERS": registers, "PRODUCER_REGISTERS": producer_registers}
    return constants | {"CONSUMERS": tile.consumers}
