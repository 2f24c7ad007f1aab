"""Attention in Gluon for Hopper (compute capability 9.0): supported tensors, tiles and arguments.

The forward pass of 16-bit inputs with D of 64, 128 or 256 uses ``hopper_forward.py`` unless :func:`unsupported` returns
a reason, and the kernels of ``kernels.py`` otherwise. ``FORWARD`` has the tile for each head dimension, mask and bucket
of lengths: the fastest one measured on a GPU (``tuned.json``), or ``FALLBACK`` if none was measured. ``candidates``
returns the other tiles that meet the requirements of ``make kernels`` (no spills, no serialised wgmma, exponentials
beside the product with the values), for tuning.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon.language import NVMMASharedLayout
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from scalekernels.attention import hopper_forward, tiles, tuned
from scalekernels.compilation import Compilation
from scalekernels.device import INTERPRETED

HEAD_DIMENSIONS = (64, 128, 256)
ALIGNMENT_BYTES = 16
ROWS = hopper_forward.ROWS.value
L2_BYTES = 32 << 20  # for keys and values read at the same time; of the 50 MB, half is in the far partition
SHARED_BYTES = 226 << 10  # of the 227 KiB of a program; the rest is for barriers
LAYOUT = NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
DTYPES = {torch.float16: "fp16", torch.bfloat16: "bf16"}
# Registers of a thread by the number of consumer warpgroups: at the start, as consumer, as producer. An SM has 65,536,
# for 12 or 16 warps; the producer's warp counts as a warpgroup. Two programs with two consumers each on one SM would
# leave 104 for a consumer: with 64 keys in a step that spills and has no product in flight beside the exponentials.
REGISTERS = {2: (168, 240, 24), 3: (128, 160, 32)}


class GluonTile(NamedTuple):
    """Keys of one step, stages of the rings, warpgroups of 64 queries, and whether these take turns.

    ``persistent`` starts one program per multiprocessor, which processes many tiles of queries; otherwise each tile is
    a separate program.
    """

    block_n: int
    stages: int
    consumers: int = 2
    ping_pong: bool = True
    persistent: bool = True

    @property
    def block_m(self) -> int:
        """Queries of one program."""
        return self.consumers * ROWS

    @property
    def warps(self) -> int:
        """Warps of the first partition, as a launch specifies them; the compiler adds the others."""
        return 4

    @property
    def options(self) -> dict[str, int]:
        """Launch options other than warps and stages."""
        return {"maxnreg": REGISTERS[self.consumers][0]}


# By head dimension and mask, for cases without a row in ``tuned.json``.
FALLBACK = {
    (64, False): GluonTile(128, 3),
    (64, True): GluonTile(128, 3),
    (128, False): GluonTile(128, 2),
    (128, True): GluonTile(128, 2),
    (256, False): GluonTile(64, 2),
    (256, True): GluonTile(64, 2),
}


def _default(head_dimension: int, causal: bool, length_bucket: str) -> GluonTile:
    measured = tuned.row("forward", head_dimension, causal, length_bucket)
    return FALLBACK[head_dimension, causal] if measured is None else GluonTile(**measured)


# The tile of a launch, by head dimension, mask and bucket of lengths.
FORWARD = {(*case, name): _default(*case, name) for case in FALLBACK for name in tuned.BUCKETS}


def forward_tile(q: Tensor, k: Tensor, causal: bool) -> GluonTile:
    """Return the tile for queries and keys (B, H, T, D)."""
    return FORWARD[q.shape[3], causal, tuned.bucket(q.shape[2], k.shape[2])]


# Keys of a step, stages and consumers of the candidates, by head dimension.
SHAPES = {
    64: ((128, 3, 2), (128, 3, 3), (128, 2, 3), (128, 4, 2)),
    128: ((128, 2, 2), (64, 4, 2)),
    256: ((64, 2, 2),),
}


def candidates(head_dimension: int, causal: bool, length_bucket: str) -> tuple[GluonTile, ...]:
    """Return the candidate tiles, the shipped one first; all meet the requirements of ``make kernels``."""
    listed = [
        GluonTile(*shape, turns, persistent)
        for shape in SHAPES[head_dimension]
        for turns in (True, False)
        for persistent in (True, False)
    ]
    return tuple(dict.fromkeys([FORWARD[head_dimension, causal, length_bucket], *listed]))


def unsupported(**tensors: Tensor) -> str | None:
    """Return why these kernels do not support tensors (B, H, T, D), naming the first; None if they do.

    TMA needs bases and strides that are multiples of 16 bytes, and strides above 0 (CUDA driver API,
    cuTensorMapEncodeTiled); the stride of a dimension of size 1 does not matter. The environment variable
    ``SCALEKERNELS_GLUON=0`` disables these kernels.
    """
    if INTERPRETED:
        return "the interpreter does not run Gluon"
    if os.environ.get("SCALEKERNELS_GLUON") == "0":
        return "SCALEKERNELS_GLUON=0 switches the Gluon kernels off"
    first = next(iter(tensors.values()))
    if tiles.architecture(first.device) != 90 or first.dtype not in DTYPES or first.shape[3] not in HEAD_DIMENSIONS:
        return f"the Gluon kernels serve compute capability 9.0, 16 bits and head dimensions {HEAD_DIMENSIONS}"
    for name, tensor in tensors.items():
        strides = [2 * stride for stride in _strides(tensor)[:3]]
        if tensor.data_ptr() % ALIGNMENT_BYTES or any(stride % ALIGNMENT_BYTES or not stride for stride in strides):
            return f"the base or a stride of {name} is no multiple of {ALIGNMENT_BYTES} bytes above 0"
    return None


def _strides(tensor: Tensor) -> list[int]:
    """Strides in elements, with that of a dimension of size 1, which may be anything, replaced by a valid one."""
    batch, head, row, _ = (
        stride if size > 1 else tensor.shape[3] for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return [batch, head, row, 1]


def described(tensor: Tensor, rows: int) -> Any:
    """Return the descriptor of a (B, H, T, D) tensor that moves ``rows`` rows of one head at a time."""
    shape = [1, 1, rows, tensor.shape[3]]
    return TensorDescriptor(tensor, list(tensor.shape), _strides(tensor), shape, LAYOUT)


def type_of(dtype: str, rows: int, head_dimension: int) -> str:
    """Return the type of such a descriptor as a launch names it."""
    return f"tensordesc<{dtype}{[1, 1, rows, head_dimension]},{LAYOUT!r}>"


def section(heads: int, group: int, key_length: int, head_dimension: int, causal: bool) -> int:
    """Return how many query heads run side by side: those whose keys and values fit the L2 cache together.

    Without a causal mask all tiles take equally long, so that one group at a time is enough.
    """
    if not causal:
        return group
    return min(heads, max(1, L2_BYTES // (4 * key_length * head_dimension)) * group)


def forward_arguments(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale_log2: float, tile: GluonTile
) -> tuple[int, dict[str, Any], dict[str, Any]]:
    """Return programs, arguments and constants of a launch of ``hopper_forward.attention_forward_hopper``."""
    batch, query_heads, query_length, head_dimension = q.shape
    heads, group, key_length = batch * query_heads, query_heads // k.shape[1], k.shape[2]
    arguments: dict[str, Any] = {
        "q_desc": described(q, ROWS),
        "k_desc": described(k, tile.block_n),
        "v_desc": described(v, tile.block_n),
        "out_desc": described(out, ROWS),
        "lse": lse,
        "heads": heads,
        "query_heads": query_heads,
        "group": group,
        "section": section(heads, group, key_length, head_dimension, causal),
        "query_length": query_length,
        "key_length": key_length,
        "scale_log2": scale_log2,
    }
    programs = -(-query_length // tile.block_m) * heads
    if tile.persistent and q.device.type == "cuda":
        programs = min(programs, torch.cuda.get_device_properties(q.device).multi_processor_count)
    return programs, arguments, forward_constants(head_dimension, causal, tile)


def forward_constants(head_dimension: int, causal: bool, tile: GluonTile) -> dict[str, Any]:
    """Return what the forward kernel is compiled for; the output has buffers of its own where these fit."""
    _, registers, producer_registers = REGISTERS[tile.consumers]
    rows = 2 * tile.block_m + 2 * tile.stages * tile.block_n  # of queries, output, keys and values
    return {
        "CAUSAL": causal, "BLOCK_N": tile.block_n, "D": head_dimension, "STAGES": tile.stages,
        "CONSUMERS": tile.consumers, "PING_PONG": tile.ping_pong,
        "SHARED_OUT": 2 * rows * head_dimension > SHARED_BYTES, "DEALT": causal and tile.persistent,
        "REGISTERS": registers,
        "PRODUCER_REGISTERS": producer_registers,
    }  # fmt: skip


def forward_compilation(tile: GluonTile, dtype: str, head_dimension: int, causal: bool) -> Compilation:
    """Return one configuration of the forward kernel as ahead-of-time compilation takes it."""
    function = hopper_forward.attention_forward_hopper
    constants = forward_constants(head_dimension, causal, tile)
    types = dict.fromkeys(hopper_forward.RUNTIME_SIZES, "i32") | {"lse": "*fp32", "scale_log2": "fp32"}
    types |= {name: type_of(dtype, ROWS, head_dimension) for name in ("q_desc", "out_desc")}
    types |= {name: type_of(dtype, tile.block_n, head_dimension) for name in ("k_desc", "v_desc")}
    mask = "causal" if causal else "full"
    turns = "taking turns" if tile.ping_pong else "free"
    programs = "persistent" if tile.persistent else "single"
    return Compilation(
        kernel=function.__name__,
        label=f"attention forward-gluon {dtype} D{head_dimension} {mask} {tile.block_m}x{tile.block_n} "
        f"{tile.consumers} consumers {turns} {programs} {tile.stages} stages",
        function=function,
        signature={name: "constexpr" if name in constants else types[name] for name in function.arg_names},
        constants=constants,
        num_warps=tile.warps,
        num_stages=tile.stages,
        work=tile.block_m * tile.block_n,
        aligned=("lse",),
        tensor_core=True,
        vector_bytes=16,
        options=tile.options,
        overlapped=True,
        specialized=True,
    )


def compilations(arch: int) -> Iterator[Compilation]:
    """Every configuration in Gluon that a launch can reach on an architecture."""
    if arch == 90:
        shipped = {  # whether programs are persistent decides how many start, not what is compiled
            (head_dimension, causal, tile._replace(persistent=True)): None
            for (head_dimension, causal, _), tile in FORWARD.items()
        }
        for head_dimension, causal, tile in shipped:
            for dtype in DTYPES.values():
                yield forward_compilation(tile, dtype, head_dimension, causal)
