"""Launches of the attention kernels, and every configuration that a launch can reach."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from scalekernels.attention import hopper, hopper_compilations, hopper_forward, hopper_gradients, kernels, tiles, tuned
from scalekernels.attention.descriptors import described, type_of, undescribed
from scalekernels.attention.hopper import GluonTile
from scalekernels.attention.tiles import LOG2_E, Tile, like, row_tile
from scalekernels.cache_keys import settled
from scalekernels.compilation import Compilation
from scalekernels.device import INTERPRETED, require_device

_POINTERS_FLOAT32 = ("lse", "delta", "sums")


def forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, descriptors: bool = False, gluon: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the output in the layout of ``q``, and the base-2 log-sum-exp (B, Hq, Tq) in float32.

    ``gluon`` uses the kernels for Hopper where they serve, unless ``descriptors`` asks for the others, with keys and
    values loaded through tensor descriptors where the device and their layout take them.
    """
    _require(q, k, v)
    if gluon and not descriptors and hopper.unsupported(q=q, k=k, v=v) is None:
        return forward_gluon(q, k, v, causal, scale, hopper.forward_tile(q, k, causal))
    descriptors = descriptors and undescribed(k=k, v=v) is None
    tile = tiles.tile_for("forward-descriptors" if descriptors else "forward", tiles.row_for(q, k))
    out, lse = like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    keys = described(tile, {"k": k, "v": v}) if descriptors else {"k": k, "v": v}
    arguments = {"q": q, "out": out, "lse": lse} | keys
    strides = _strides(q=q, k=k, v=v, o=out)
    sizes = _sizes(q, k) | {"scale_log2": scale * LOG2_E}
    constants = _constants(q, tile, causal) | {"DESCRIPTORS": descriptors}
    _launch(kernels.attention_forward, _programs(q, tile.block_m), tile, arguments | strides | sizes, constants)
    return out, lse


def forward_gluon(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, tile: GluonTile
) -> tuple[Tensor, Tensor]:
    """As :func:`forward`, by the kernel for Hopper with any of its tiles, for tensors that it takes."""
    out, lse = like(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)
    call = hopper.forward_arguments(q, k, v, out, lse, causal, scale * LOG2_E, tile)
    programs, arguments, constants = call
    _launch(hopper_forward.attention_forward_hopper, programs, tile, arguments, constants)
    return out, lse


def backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float,
    deterministic: bool, need_q: bool, need_kv: bool, descriptors: bool = False, gluon: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return dQ, dK and dV in the layouts of q, k and v; those not needed come back empty.

    ``descriptors`` and ``gluon`` as in :func:`forward`; descriptors for dQ where it is computed in a pass of its own.
    """
    _require(q, k, v, grad_out=grad_out)
    if grad_out.stride(-1) != 1:  # as from a sum over everything, whose gradient is one number, expanded
        grad_out = grad_out.contiguous()
    atomic = need_q and need_kv and not deterministic
    if gluon and not descriptors and hopper_gradients.unsupported(q=q, k=k, v=v, grad_out=grad_out) is None:
        case = (q.shape[3], causal, tuned.bucket(q.shape[2], k.shape[2]))
        if (method := hopper_gradients.method_of(*case, deterministic=not atomic)) is not None:
            operands = (grad_out, q, k, v, out, lse, causal, scale, need_q, need_kv)
            return hopper_gradients.backward(*operands, method=method)
    delta = _delta(out, grad_out)
    tensors = {"q": q, "k": k, "v": v, "grad_out": grad_out, "lse": lse, "delta": delta}
    dq, dk, dv = (q.new_empty(0) for _ in range(3))
    if atomic:
        return _backward_pass("atomic", tensors, causal, scale)
    if need_kv:
        _, dk, dv = _backward_pass("keys", tensors, causal, scale)
    if need_q:
        kind = "queries-descriptors" if descriptors and undescribed(k=k, v=v) is None else "queries"
        dq, _, _ = _backward_pass(kind, tensors, causal, scale)
    return dq, dk, dv


def _backward_pass(
    kind: str, tensors: Mapping[str, Tensor], causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch one kind of backward pass and return dQ, dK, dV; those it does not compute are empty."""
    functions: dict[str, Any] = {"keys": _keys, "atomic": _atomic, "queries": _queries}
    functions["queries-descriptors"] = functools.partial(_queries, descriptors=True)
    tile = tiles.tile_for(kind, tiles.row_for(tensors["q"], tensors["k"]))
    gradients: tuple[Tensor, Tensor, Tensor] = functions[kind](tile, tensors, causal, scale)
    return gradients


def _delta(out: Tensor, grad_out: Tensor) -> Tensor:
    delta = torch.empty(out.shape[:3], dtype=torch.float32, device=out.device)
    arguments = {"out": out, "grad_out": grad_out, "delta": delta} | _strides(o=out, g=grad_out)
    arguments |= {"query_heads": out.shape[1], "query_length": out.shape[2]}
    tile = row_tile(out.shape[3])
    constants = {"D": out.shape[3], "BLOCK_M": tile.block_m}
    _launch(kernels.attention_delta, _programs(out, tile.block_m), tile, arguments, constants)
    return delta


def _keys(
    tile: Tile, tensors: Mapping[str, Tensor], causal: bool, scale: float, sums: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dK and dV; and where ``sums`` are given, dQ / scale added to them."""
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    dk, dv = like(k), like(v)
    arguments = dict(tensors) | {"dq": tensors["delta"] if sums is None else sums, "dk": dk, "dv": dv}
    strides = _strides(q=q, k=k, v=v, g=tensors["grad_out"], dk=dk, dv=dv)
    sizes = _sizes(q, k) | {"padded_length": tiles.padded(q.shape[2]), "scale": scale, "scale_log2": scale * LOG2_E}
    constants = _constants(q, tile, causal) | {"ATOMIC": sums is not None}
    _launch(kernels.attention_backward_keys, _programs(k, tile.block_n), tile, arguments | strides | sizes, constants)
    return q.new_empty(0), dk, dv


def _atomic(tile: Tile, tensors: Mapping[str, Tensor], causal: bool, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """All three gradients: the tiles of keys add to dQ as they come, in float32 and in no fixed order."""
    q = tensors["q"]
    batch, heads, length, head_dimension = q.shape
    shape = (batch, heads, head_dimension, tiles.padded(length))
    sums = torch.zeros(shape, dtype=torch.float32, device=q.device)
    _, dk, dv = _keys(tile, tensors, causal, scale, sums)
    dq = like(q)
    arguments: dict[str, Any] = {"sums": sums, "dq": dq} | _strides(dq=dq)
    arguments |= {"query_heads": heads, "query_length": length, "padded_length": shape[3], "scale": scale}
    tile = row_tile(head_dimension)
    constants = {"D": head_dimension, "BLOCK_M": tile.block_m}
    _launch(kernels.attention_convert_queries, _programs(q, tile.block_m), tile, arguments, constants)
    return dq, dk, dv


def _queries(
    tile: Tile, tensors: Mapping[str, Tensor], causal: bool, scale: float, descriptors: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    dq = like(q)
    strides = _strides(q=q, k=k, v=v, g=tensors["grad_out"], dq=dq)
    sizes = _sizes(q, k) | {"scale": scale, "scale_log2": scale * LOG2_E}
    arguments: dict[str, Any] = dict(tensors) | {"dq": dq} | strides | sizes
    arguments |= described(tile, {"k": k, "v": v}) if descriptors else {}
    constants = _constants(q, tile, causal) | {"DESCRIPTORS": descriptors}
    _launch(kernels.attention_backward_queries, _programs(q, tile.block_m), tile, arguments, constants)
    return dq, q.new_empty(0), q.new_empty(0)


def _require(q: Tensor, k: Tensor, v: Tensor, **others: Tensor) -> None:
    require_device(q=q, k=k, v=v, **others)
    if INTERPRETED and q.dtype == torch.bfloat16:
        message = "q is bfloat16, whose bit patterns Triton's interpreter multiplies; allowed there: float16, float32"
        raise TypeError(message)


def _strides(**tensors: Tensor) -> dict[str, int]:
    return {
        f"stride_{name}{axis}": tensor.stride(dimension)
        for name, tensor in tensors.items()
        for dimension, axis in enumerate("bht")
    }


def _sizes(q: Tensor, k: Tensor) -> dict[str, Any]:
    group = q.shape[1] // k.shape[1]
    return {"query_heads": q.shape[1], "group": group, "query_length": q.shape[2], "key_length": k.shape[2]}


def _constants(q: Tensor, tile: Tile, causal: bool) -> dict[str, Any]:
    return {"D": q.shape[3], "BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "CAUSAL": causal}


def _programs(tensor: Tensor, block: int) -> int:
    return -(-tensor.shape[2] // block) * tensor.shape[0] * tensor.shape[1]


def _launch(
    kernel: Any, programs: int, tile: Tile | GluonTile, arguments: Mapping[str, Any], constants: Mapping[str, Any]
) -> None:
    """Run a kernel on the device of its tensors, which need not be the current one."""
    device = next(value.device for value in arguments.values() if isinstance(value, Tensor))
    options = {"num_warps": tile.warps, "num_stages": tile.stages} | tile.options
    with torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext():
        settled(kernel)[(programs,)](**arguments, **constants, **options)


def compilations(arch: int) -> Iterator[Compilation]:
    """Every configuration that a launch can reach on an architecture (80, 90 or 100), each once, ordered by row."""
    seen: set[str] = set()
    for row, chosen in tiles.rows(arch):
        for dtype in tiles.DTYPES_OF_WIDTH[row.bits]:
            for causal, (kind, tile) in itertools.product((False, True), chosen.items()):
                one = _compilation(kind, tile, dtype, row.head_dimension, causal)
                if one.label not in seen:
                    seen.add(one.label)
                    yield one
    for dtype in ("fp16", "bf16", "fp32"):
        for head_dimension in tiles.HEAD_DIMENSIONS:
            for kind in ("delta", "convert"):
                yield _compilation(kind, row_tile(head_dimension), dtype, head_dimension, None)
    yield from hopper.compilations(arch)
    yield from hopper_compilations.compilations(arch)


_FUNCTIONS = {
    "forward": "attention_forward",
    "forward-descriptors": "attention_forward",
    "keys": "attention_backward_keys",
    "atomic": "attention_backward_keys",
    "queries": "attention_backward_queries",
    "queries-descriptors": "attention_backward_queries",
    "delta": "attention_delta",
    "convert": "attention_convert_queries",
}

# Every tile tried for these spills on sm_90: in bfloat16 by 88 bytes with Triton 3.7, by 96 with 3.6, in float32 more.
_WIDE = "gradients of 64 keys by 256 dimensions hold half the registers, and dQ comes on top"
_SPILLS_ALLOWED = {("atomic", dtype, 256): _WIDE for dtype in ("fp16", "bf16", "fp32")}


def _compilation(kind: str, tile: Tile, dtype: str, head_dimension: int, causal: bool | None) -> Compilation:
    function = getattr(kernels, _FUNCTIONS[kind])
    constants: dict[str, Any] = {"D": head_dimension, "BLOCK_M": tile.block_m}
    if causal is not None:
        constants |= {"BLOCK_N": tile.block_n, "CAUSAL": causal}
    if kind in ("keys", "atomic"):
        constants["ATOMIC"] = kind == "atomic"
    descriptors = kind.endswith("-descriptors")
    if kind.startswith(("forward", "queries")):
        constants["DESCRIPTORS"] = descriptors
    signature = {name: "constexpr" if name in constants else _type(name, dtype, kind) for name in function.arg_names}
    if descriptors:
        signature |= dict.fromkeys(("k", "v"), type_of(dtype, tile, head_dimension))
    mask = "" if causal is None else " causal" if causal else " full"
    shape = f"{tile.block_m}x{tile.block_n} {tile.warps} warps {tile.stages} stages"
    return Compilation(
        kernel=function.__name__,
        label=f"attention {kind} {dtype} D{head_dimension}{mask} {shape}",
        function=function,
        signature=signature,
        constants=constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
        work=tile.block_m * tile.block_n,
        aligned=tuple(name for name, kind in signature.items() if _is_aligned(name, kind)),
        # With two warps, as at head dimensions 16 and 32, the products use mma.sync: wgmma takes four.
        tensor_core=causal is not None and dtype != "fp32" and head_dimension >= 64,
        vector_bytes=16,
        spills_allowed=_SPILLS_ALLOWED.get((kind, dtype, head_dimension), ""),
    )


def _type(name: str, dtype: str, kind: str) -> str:
    if name.startswith("stride_") or name in (*kernels.RUNTIME_SIZES, "padded_length"):
        return "i32"
    if name.startswith("scale"):
        return "fp32"
    summed = name == "dq" and kind in ("keys", "atomic")
    return "*fp32" if name in _POINTERS_FLOAT32 or summed else f"*{dtype}"


def _is_aligned(name: str, kind: str) -> bool:
    """Whether a launch on contiguous tensors promises divisibility by 16."""
    return kind.startswith("*") or name.startswith("stride_") or name == "padded_length"
