"""The tiles that attention is launched with, and the evidence for each.

No GPU has been at hand: the evidence is ahead-of-time compilation, never a speed. Among tiles that compile without
spills (and on sm_90, for 16-bit inputs and D of 64 or more, to wgmma that ptxas does not serialise) the largest is
taken for long sequences and one that makes more programs for short ones. The rows of sm_80 stay below 99 KiB of shared
memory, so that they serve its consumer relatives (8.6, 8.9, 12.0) too. Head dimensions 16 and 32 keep to two warps:
with four, Triton 3.6 and 3.7 fault on Hopper. The rows of float32 (no tensor cores: exact products) are modest, and not
all of them have been compiled. Registers per thread and KiB of shared memory, bfloat16, causal, Triton 3.7:

    sm_90          forward   dK, dV    dQ        dK, dV and atomic dQ
    D 64  short    127  56   186  49   150  64   233  65
    D 64  long     202 112   192  81   150  80   226  81
    D 128 short    176 112   231  64   190  96   246 129
    D 128 long     226 160   246 129   214 128   247 112
    D 256          248 192   246  96   255 192   255 112 (spills 88 bytes; no tile tried does not)
    sm_80
    D 64  long     183  48   240  49   184  48   255  40
    D 128 long     244  64   172  73   167  72   251  76
    D 256          216  68   167  49   125  66   238  73
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

HEAD_DIMENSIONS = (16, 32, 64, 128, 256)
DTYPES_OF_WIDTH = {16: ("fp16", "bf16"), 32: ("fp32",)}
SHORT = 1024  # lengths up to here, of queries and of keys, use the rows called short


class Tile(NamedTuple):
    """Queries and keys of one step, warps, and stages of the software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int


class Row(NamedTuple):
    """What decides the tiles: architecture, bits of the dtype, head dimension, length bucket; not whether causal."""

    architecture: int
    bits: int
    head_dimension: int
    bucket: str


class Tiles(NamedTuple):
    """Forward; dK and dV; dQ; and dK and dV with dQ added atomically."""

    forward: Tile
    keys: Tile
    queries: Tile
    atomic: Tile


# Row: tiles of the forward pass, of dK and dV, of dQ, and of dK and dV with dQ atomic.
# fmt: off
_TABLE = {
    (80, 16, 16, "short"): ((64, 64, 2, 3), (64, 64, 2, 2), (64, 64, 2, 2), (32, 64, 2, 2)),
    (80, 16, 32, "short"): ((64, 64, 2, 3), (32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2)),
    (80, 16, 16, "long"): ((64, 64, 2, 3), (64, 64, 2, 2), (64, 64, 2, 2), (32, 64, 2, 2)),
    (80, 16, 32, "long"): ((64, 64, 2, 3), (32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2)),
    (80, 16, 64, "short"): ((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2), (32, 64, 4, 2)),
    (80, 16, 64, "long"): ((128, 64, 8, 3), (64, 128, 8, 2), (128, 64, 8, 2), (32, 64, 4, 2)),
    (80, 16, 128, "short"): ((64, 64, 4, 2), (32, 64, 8, 2), (64, 32, 8, 2), (32, 64, 8, 2)),
    (80, 16, 128, "long"): ((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2)),
    (80, 16, 256, "short"): ((64, 32, 8, 2), (16, 32, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)),
    (80, 16, 256, "long"): ((64, 32, 8, 2), (16, 32, 8, 2), (32, 32, 8, 2), (16, 32, 8, 2)),
    (80, 32, 16, "short"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (80, 32, 32, "short"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (80, 32, 64, "short"): ((32, 32, 4, 2), (16, 16, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2)),
    (80, 32, 128, "short"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 32, 8, 2), (16, 16, 8, 2)),
    (80, 32, 256, "short"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 32, 8, 2), (16, 16, 8, 2)),
    (80, 32, 16, "long"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (80, 32, 32, "long"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (80, 32, 64, "long"): ((32, 32, 4, 2), (16, 16, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2)),
    (80, 32, 128, "long"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 32, 8, 2), (16, 16, 8, 2)),
    (80, 32, 256, "long"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 32, 8, 2), (16, 16, 8, 2)),
    (90, 16, 16, "short"): ((64, 64, 2, 3), (64, 64, 2, 2), (64, 64, 2, 2), (32, 64, 2, 2)),
    (90, 16, 32, "short"): ((64, 64, 2, 3), (32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2)),
    (90, 16, 16, "long"): ((64, 64, 2, 3), (64, 64, 2, 2), (64, 64, 2, 2), (32, 64, 2, 2)),
    (90, 16, 32, "long"): ((64, 64, 2, 3), (32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2)),
    (90, 16, 64, "short"): ((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 3), (64, 64, 4, 2)),
    (90, 16, 64, "long"): ((128, 128, 8, 3), (64, 128, 8, 3), (128, 64, 8, 3), (64, 128, 8, 2)),
    (90, 16, 128, "short"): ((64, 64, 4, 3), (32, 64, 4, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
    (90, 16, 128, "long"): ((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2), (32, 128, 8, 2)),
    (90, 16, 256, "short"): ((128, 64, 8, 2), (16, 64, 8, 2), (64, 64, 8, 2), (16, 64, 8, 2)),
    (90, 16, 256, "long"): ((128, 64, 8, 2), (16, 64, 8, 2), (64, 64, 8, 2), (16, 64, 8, 2)),
    (90, 32, 16, "short"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (90, 32, 32, "short"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (90, 32, 64, "short"): ((32, 32, 4, 2), (16, 16, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2)),
    (90, 32, 128, "short"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (90, 32, 256, "short"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (90, 32, 16, "long"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (90, 32, 32, "long"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (90, 32, 64, "long"): ((32, 32, 4, 2), (16, 16, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2)),
    (90, 32, 128, "long"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (90, 32, 256, "long"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (100, 16, 16, "short"): ((64, 64, 2, 3), (64, 64, 2, 2), (64, 32, 2, 2), (32, 64, 2, 2)),
    (100, 16, 32, "short"): ((64, 64, 2, 3), (32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2)),
    (100, 16, 16, "long"): ((64, 64, 2, 3), (64, 64, 2, 2), (64, 32, 2, 2), (32, 64, 2, 2)),
    (100, 16, 32, "long"): ((64, 64, 2, 3), (32, 64, 2, 2), (64, 32, 2, 2), (32, 32, 2, 2)),
    (100, 16, 64, "short"): ((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 2)),
    (100, 16, 64, "long"): ((128, 128, 8, 3), (64, 128, 8, 2), (128, 64, 8, 2), (64, 128, 8, 2)),
    (100, 16, 128, "short"): ((64, 64, 4, 3), (64, 128, 8, 2), (64, 64, 4, 2), (64, 64, 8, 2)),
    (100, 16, 128, "long"): ((128, 128, 8, 2), (64, 128, 8, 2), (128, 64, 8, 2), (32, 128, 8, 2)),
    (100, 16, 256, "short"): ((128, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2)),
    (100, 16, 256, "long"): ((128, 64, 8, 2), (32, 64, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2)),
    (100, 32, 16, "short"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (100, 32, 32, "short"): ((32, 32, 2, 2), (16, 32, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (100, 32, 64, "short"): ((32, 32, 4, 2), (16, 16, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2)),
    (100, 32, 128, "short"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (100, 32, 256, "short"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (100, 32, 16, "long"): ((32, 32, 2, 2), (16, 16, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (100, 32, 32, "long"): ((32, 32, 2, 2), (16, 32, 2, 2), (32, 32, 2, 2), (16, 16, 2, 2)),
    (100, 32, 64, "long"): ((32, 32, 4, 2), (16, 16, 4, 2), (32, 32, 4, 2), (16, 16, 4, 2)),
    (100, 32, 128, "long"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
    (100, 32, 256, "long"): ((16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2), (16, 16, 8, 2)),
}
# fmt: on

TILES = {Row(*row): Tiles(*(Tile(*tile) for tile in chosen)) for row, chosen in _TABLE.items()}


def architecture(device: torch.device) -> int:
    """Return the architecture whose rows a device uses: 80, 90 or 100."""
    if device.type != "cuda":
        return 80  # the interpreter
    # Outside data centres (8.6, 8.9, 12.0) an SM has the shared memory that only the rows of sm_80 keep to.
    return {9: 90, 10: 100}.get(torch.cuda.get_device_capability(device)[0], 80)


def row_for(q: Tensor, k: Tensor) -> Row:
    """Return the row that a launch on these tensors uses."""
    bucket = "short" if max(q.shape[2], k.shape[2]) <= SHORT else "long"
    return Row(architecture(q.device), q.element_size() * 8, q.shape[3], bucket)


def tile_for(kind: str, row: Row) -> Tile:
    """Return the shipped tile of a row; ``kind`` is forward, forward-descriptors, keys, queries or atomic."""
    return _by_kind(row)[kind]


def _by_kind(row: Row) -> dict[str, Tile]:
    """Descriptors are another way to fetch the same tile, for architectures that have it (on 80, the interpreter)."""
    chosen = TILES[row]
    return chosen._asdict() | {"forward-descriptors": chosen.forward}


def rows(arch: int) -> Iterator[tuple[Row, Mapping[str, Tile]]]:
    """The rows of one architecture, each with the tiles that a GPU launches, by kind."""
    for row in TILES:
        if row.architecture == arch:
            yield row, {kind: tile for kind, tile in _by_kind(row).items() if arch >= 90 or "descriptors" not in kind}


def like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor in the layout of another; contiguous where that would scatter the last dimension."""
    copy = torch.empty_like(tensor)
    return copy if copy.stride(-1) == 1 else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def padded(length: int) -> int:
    """A length rounded up to whole tiles of any height, so that sums may be added to without masks."""
    return -(-length // 128) * 128
