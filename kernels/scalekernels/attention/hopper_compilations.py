"""Every configuration of the backward pass in Gluon that a launch can reach, for ahead-of-time compilation."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from scalekernels.attention import hopper_fused, hopper_rings, kernels, tiles, tuned
from scalekernels.attention.hopper import DTYPES, type_of
from scalekernels.attention.hopper_gradients import (
    APART,
    KEYS,
    ROWS,
    SHIPPED,
    START_REGISTERS,
    STATISTICS_LAYOUT,
    SUMS_LAYOUT,
    WARPS,
    WIDE,
    BackwardTile,
    Method,
    keys_constants,
    keys_kernel,
    method_of,
    queries_constants,
    queries_kernel,
    tile_of,
)
from scalekernels.compilation import Compilation

# Seen: 4 or 8 bytes stored with Triton 3.7 and ptxas 13.5, none with Triton 3.6.
_SPILLS_ALLOWED = "one or two registers beside both sums of 64 keys by 128 dimensions"


def compilation(
    kind: str, tile: BackwardTile, dtype: str, head_dimension: int, causal: bool, ordered: bool = False
) -> Compilation:
    """Return one configuration of "keys", "queries" or "all" as ahead-of-time compilation takes it."""
    function, constants = _kernel_and_constants(kind, tile, head_dimension, causal)
    constants |= {"ORDERED": ordered} if kind == "all" else {}
    types = _types(dtype, head_dimension, tile, ("k_desc", "v_desc") if kind == "queries" else ("q_desc", "g_desc"))
    signature = {name: "constexpr" if name in constants else types[name] for name in function.arg_names}
    mask = "causal" if causal else "full"
    name = kind if kind != "all" else "ordered" if ordered else "unordered"
    own = ROWS * (1 if kind == "keys" and head_dimension == WIDE else tile.consumers)
    return Compilation(
        kernel=function.__name__,
        label=f"attention {name}-gluon {dtype} D{head_dimension} {mask} {own}x{tile.rows} {tile.stages} stages"
        + " in registers" * tile.in_registers
        + " late" * tile.late,
        function=function,
        signature=signature,
        constants=constants,
        num_warps=WARPS,
        num_stages=3,
        work=own * tile.rows,
        aligned=tuple(name for name, type_ in signature.items() if type_.startswith("*")),
        tensor_core=True,
        vector_bytes=16,
        options={"maxnreg": START_REGISTERS[tile.consumers]},
        spills_allowed=_SPILLS_ALLOWED if kind == "all" and causal and head_dimension == 128 else "",
        overlapped=True,
        overlap_excused=_measured_overlap(kind, tile, head_dimension, causal),
        specialized=True,
    )


def _measured_overlap(kind: str, tile: BackwardTile, head_dimension: int, causal: bool) -> str:
    """Return why dQ's exponentials may run beside no product: a time that beat the candidates which are "late"."""
    if kind != "queries" or tile.late or not tile.paired:
        return ""
    rows = {name: tuned.row(kind, head_dimension, causal, name) for name in tuned.BUCKETS}
    faster = [name for name, row in rows.items() if row and "late" in row and BackwardTile(**row) == tile]
    return "; ".join(f"the fastest, {tuned.evidence(kind, head_dimension, causal, name)}" for name in faster)


def _kernel_and_constants(
    kind: str, tile: BackwardTile, head_dimension: int, causal: bool
) -> tuple[Any, dict[str, Any]]:
    if kind == "queries":
        return queries_kernel(tile), queries_constants(head_dimension, causal, tile)
    if kind == "keys":
        return keys_kernel(head_dimension), keys_constants(head_dimension, causal, tile)
    return hopper_fused.hopper_all, keys_constants(head_dimension, causal, tile, late=False)


def _types(dtype: str, head_dimension: int, tile: BackwardTile, streamed: tuple[str, ...]) -> dict[str, str]:
    types = dict.fromkeys(hopper_rings.RUNTIME_SIZES, "i32") | {"scale": "fp32", "scale_log2": "fp32"}
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
    """Every configuration of the backward pass in Gluon that a launch can reach on an architecture, and candidates."""
    if arch != 90:
        return
    for each in _compilations():
        is_candidate = each.constants["D"] == WIDE and not _is_reached(each.constants.get("CAUSAL"))
        yield replace(each, candidate=is_candidate)


def _is_reached(causal: bool | None) -> bool:
    """Return whether a method of ``tuned.json`` uses the Gluon kernels of D 256, with either mask if None."""
    masks = (False, True) if causal is None else (causal,)
    cases = itertools.product(masks, tuned.BUCKETS, (True, False))
    return any(method_of(WIDE, *case) is not None for case in cases)


def _compilations() -> Iterator[Compilation]:
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
    methods = (method_of(head_dimension, causal, bucket, deterministic) for bucket, deterministic in cases)
    return {method: None for method in methods if method is not None and method.name != APART.name}
