"""Launches of the backward pass in Gluon for Hopper: tiles, arguments, and every configuration a launch can reach.

A first pass writes the statistics of every row; three methods follow. "apart" computes dK with dV, and dQ, by the two
kernels of ``hopper_backward.py``. "ordered" and "unordered" compute all by that of ``hopper_fused.py``, with dQ added
to in a fixed order or in none; a last pass scales and rounds dQ.

``tuned.json`` has the fastest tiles and methods measured on a GPU. For cases without a row, ``KEYS`` and ``QUERIES``
have the tiles, and deterministic gradients are computed "apart". ``candidates`` and ``methods`` return what else
compiles without spills and without serialised wgmma with Triton 3.6 and 3.7, for tuning.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from scalekernels.attention import hopper, hopper_backward, hopper_fused, kernels, tiles, tuned
from scalekernels.attention.hopper import DTYPES, described, type_of
from scalekernels.compilation import Compilation

ROWS = 64  # rows of the result that one consumer warpgroup owns, of two in a program: the height of a wgmma
SUMS_LAYOUT = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=32, rank=2)
STATISTICS_LAYOUT = NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=1)
WARPS = 4  # of the first partition, as a launch specifies them; the compiler adds the others
# Registers of a thread: at the start, as a consumer, as the producer (in the kernels). An SM has 65,536; the producer's
# warp counts as a warpgroup.
START_REGISTERS, REGISTERS = 168, 240


class BackwardTile(NamedTuple):
    """Rows of the other sequence in one product, and stages of the ring: at least 2 for dK and dV, 3 for dQ.

    ``in_registers`` keeps a consumer's own rows in registers, for which D 64 leaves room.
    """

    rows: int
    stages: int
    in_registers: bool = False


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
# The rows of ``tuned.json`` with a method, by whether gradients have to be deterministic.
METHOD_ROWS = {True: "method", False: "method-any-order"}


# By head dimension, with and without a causal mask.
KEYS = {64: BackwardTile(64, 4), 128: BackwardTile(64, 3)}
QUERIES = {64: BackwardTile(64, 6), 128: BackwardTile(64, 4)}
SHIPPED = {"keys": KEYS, "queries": QUERIES}


def tile_of(kind: str, head_dimension: int, causal: bool, length_bucket: str) -> BackwardTile:
    """Return the tile of "keys" or "queries": the measured one, or that of the tables if none was measured."""
    measured = tuned.row(kind, head_dimension, causal, length_bucket)
    return SHIPPED[kind][head_dimension] if measured is None else BackwardTile(**measured)


def candidates(kind: str, head_dimension: int, causal: bool, length_bucket: str) -> tuple[BackwardTile, ...]:
    """Return the candidate tiles of "keys" or "queries", the shipped one first."""
    listed: dict[tuple[str, int], tuple[tuple[Any, ...], ...]] = {
        ("keys", 64): ((64, 4), (64, 3), (64, 6), (64, 4, True), (64, 3, True), (64, 6, True)),
        ("keys", 128): ((64, 3), (64, 2), (64, 4)),
        ("queries", 64): ((64, 6), (64, 4), (64, 8), (64, 6, True), (64, 4, True), (64, 8, True)),
        ("queries", 128): ((64, 4), (64, 3)),
    }
    shipped = tile_of(kind, head_dimension, causal, length_bucket)
    return tuple(dict.fromkeys([shipped, *(BackwardTile(*tile) for tile in listed[kind, head_dimension])]))


def method_of(head_dimension: int, causal: bool, length_bucket: str, deterministic: bool) -> Method | None:
    """Return the fastest measured method; if none was, "apart" for deterministic gradients, else None."""
    measured = tuned.row(METHOD_ROWS[deterministic], head_dimension, causal, length_bucket)
    default = APART if deterministic else None
    return default if measured is None else Method(**measured)


def methods(head_dimension: int, causal: bool, length_bucket: str, deterministic: bool) -> tuple[Method, ...]:
    """Return the candidate methods, the shipped one first, or "apart" if none is."""
    name = "ordered" if deterministic else "unordered"
    listed: dict[int, tuple[tuple[Any, ...], ...]] = {
        64: ((64, 4), (64, 4, True), (64, 3)),
        128: ((64, 2), (64, 3)),
    }
    shipped = method_of(head_dimension, causal, length_bucket, deterministic) or APART
    others = (Method(name, *tile) for tile in listed[head_dimension])
    return tuple(dict.fromkeys([shipped, APART, *others]))


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
        kernels.attention_scale_queries[grid](
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
        kernels.attention_statistics[grid](**arguments, num_warps=warps, num_stages=1)
    return statistics


def launch(kernel: Any, programs: int, arguments: Mapping[str, Any]) -> None:
    """Launch a kernel of ``hopper_backward`` on the device of its tensors, which need not be the current one."""
    with _device_of(arguments["q_desc"].base):
        kernel[(programs,)](**arguments, num_warps=WARPS, maxnreg=START_REGISTERS)


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
    return hopper_backward.hopper_keys, -(-k.shape[2] // (2 * ROWS)) * heads, arguments


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
    return hopper_backward.hopper_queries, -(-q.shape[2] // (2 * ROWS)) * heads, arguments


def _section(heads: int, bytes_of_head: int) -> int:
    """Return how many heads run side by side, so that what their programs stream fits the L2 cache together."""
    return min(heads, max(1, hopper.L2_BYTES // bytes_of_head))


def _sizes(q: Tensor, k: Tensor, statistics: Tensor, scale: float) -> dict[str, Any]:
    return {
        "batches": q.shape[0], "query_heads": q.shape[1], "group": q.shape[1] // k.shape[1],
        "query_length": q.shape[2], "key_length": k.shape[2], "padded_length": statistics.shape[3],
        "scale": scale, "scale_log2": scale * tiles.LOG2_E,
    }  # fmt: skip


def keys_constants(head_dimension: int, causal: bool, tile: BackwardTile) -> dict[str, Any]:
    """Return what the kernel for dK and dV is compiled for."""
    shared = {"CAUSAL": causal, "D": head_dimension, "STAGES": tile.stages, "REGISTERS": REGISTERS}
    return {"KEYS": ROWS, "M": tile.rows, "IN_REGISTERS": tile.in_registers} | shared


def queries_constants(head_dimension: int, causal: bool, tile: BackwardTile) -> dict[str, Any]:
    """Return what the kernel for dQ is compiled for."""
    shared = {"CAUSAL": causal, "D": head_dimension, "STAGES": tile.stages, "REGISTERS": REGISTERS}
    return {"M": ROWS, "N": tile.rows, "IN_REGISTERS": tile.in_registers} | shared


# Seen: 4 or 8 bytes stored with Triton 3.7 and ptxas 13.5, none with Triton 3.6.
_SPILLS_ALLOWED = "one or two registers beside both sums of 64 keys by 128 dimensions"


def compilation(
    kind: str, tile: BackwardTile, dtype: str, head_dimension: int, causal: bool, ordered: bool = False
) -> Compilation:
    """Return one configuration of "keys", "queries" or "all" as ahead-of-time compilation takes it."""
    function = {
        "keys": hopper_backward.hopper_keys, "queries": hopper_backward.hopper_queries, "all": hopper_fused.hopper_all,
    }[kind]  # fmt: skip
    constants = (queries_constants if kind == "queries" else keys_constants)(head_dimension, causal, tile)
    constants |= {"ORDERED": ordered} if kind == "all" else {}
    types = _types(dtype, head_dimension, tile, ("k_desc", "v_desc") if kind == "queries" else ("q_desc", "g_desc"))
    signature = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
    mask = "causal" if causal else "full"
    name = kind if kind != "all" else "ordered" if ordered else "unordered"
    return Compilation(
        kernel=function.__name__,
        label=f"attention {name}-gluon {dtype} D{head_dimension} {mask} {2 * ROWS}x{tile.rows} {tile.stages} stages"
        + " in registers" * tile.in_registers,
        function=function,
        signature=signature,
        constants=constants,
        num_warps=WARPS,
        num_stages=3,
        work=2 * ROWS * tile.rows,
        aligned=tuple(name for name, type_ in signature.items() if type_.startswith("*")),
        tensor_core=True,
        vector_bytes=16,
        options={"maxnreg": START_REGISTERS},
        spills_allowed=_SPILLS_ALLOWED if kind == "all" and causal and head_dimension == 128 else "",
        overlapped=kind == "all",
    )


def _types(dtype: str, head_dimension: int, tile: BackwardTile, streamed: tuple[str, ...]) -> dict[str, str]:
    types = dict.fromkeys(hopper_backward.RUNTIME_SIZES, "i32") | {"scale": "fp32", "scale_log2": "fp32"}
    for name in ("q_desc", "g_desc", "k_desc", "v_desc", "dk_desc", "dv_desc", "dq_desc"):
        types[name] = type_of(dtype, tile.rows if name in streamed else ROWS, head_dimension)
    types |= {"counters": "*i32", "sums_desc": f"tensordesc<fp32{[ROWS, head_dimension // 2]},{SUMS_LAYOUT!r}>"}
    return types | {"statistics": "*fp32", "statistics_desc": f"tensordesc<fp32[{tile.rows}],{STATISTICS_LAYOUT!r}>"}


def _row_compilation(kind: str, dtype: str, head_dimension: int) -> Compilation:
    """The passes over rows: "statistics", and "scale", which writes dQ from its sums."""
    function = {"statistics": kernels.attention_statistics, "scale": kernels.attention_scale_queries}[kind]
    block, _, warps, _ = tiles.row_tile(head_dimension)
    constants = {"D": head_dimension, "BLOCK_M": block}
    pointers = dict.fromkeys(("out", "grad_out", "dq"), f"*{dtype}")
    pointers |= dict.fromkeys(("lse", "statistics", "sums"), "*fp32")
    types = {name: pointers.get(name, "fp32" if name == "scale" else "i32") for name in function.arg_names}
    signature = {name: "constexpr" if name in constants else type_ for name, type_ in types.items()}
    return Compilation(
        kernel=function.__name__,
        label=f"attention {kind} {dtype} D{head_dimension} {block}x1 {warps} warps 1 stages",
        function=function,
        signature=signature,
        constants=constants,
        num_warps=warps,
        num_stages=1,
        work=block,
        aligned=tuple(name for name in signature if name in pointers or name.startswith("stride_")),
        vector_bytes=16,
    )


def compilations(arch: int) -> Iterator[Compilation]:
    """Every configuration of the backward pass in Gluon that a launch can reach on an architecture."""
    if arch != 90:
        return
    for dtype, causal in itertools.product(DTYPES.values(), (False, True)):
        for kind, head_dimension in itertools.product(SHIPPED, KEYS):
            for tile in {tile_of(kind, head_dimension, causal, name): None for name in tuned.BUCKETS}:
                yield compilation(kind, tile, dtype, head_dimension, causal)
        for head_dimension in KEYS:
            for method in _methods_reached(head_dimension, causal):
                yield compilation("all", method.tile, dtype, head_dimension, causal, method.name == "ordered")
    for dtype, head_dimension in itertools.product(DTYPES.values(), KEYS):
        yield _row_compilation("statistics", dtype, head_dimension)
        if any(_methods_reached(head_dimension, causal) for causal in (False, True)):
            yield _row_compilation("scale", dtype, head_dimension)


def _methods_reached(head_dimension: int, causal: bool) -> dict[Method, None]:
    """Return the methods of ``tuned.json`` that use the kernel for all gradients."""
    cases = itertools.product(tuned.BUCKETS, (True, False))
    found = (method_of(head_dimension, causal, bucket, deterministic) for bucket, deterministic in cases)
    return {method: None for method in found if method is not None and method.name != APART.name}
