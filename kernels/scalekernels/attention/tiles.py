"""The tiles that attention is launched with, and the evidence for each.

The evidence is ahead-of-time compilation, not speed. Among tiles that compile without
spills (and on sm_90, for 16-bit inputs and D of 64 or more, to wgmma that ptxas does not serialise) large ones are
taken for long sequences and ones that make more programs for short. The rows of sm_80 stay below 99 KiB of shared
memory, so that they serve its consumer relatives (8.6, 8.9, 12.0) too. Head dimensions 16 and 32 keep to two warps:
with four, Triton 3.6 and 3.7 fault on Hopper. The rows of float32 (no tensor cores: exact products) are modest.
Registers per thread and KiB of shared memory, bfloat16, causal, Triton 3.7:

    sm_90          forward   dK, dV    dQ        dK, dV and atomic dQ
    D 64  short    127  56   186  49   150  64   233  65
    D 64  long     202 112   193  81   150  80   226  81
    D 128 short    176 112   233  64   190  96   246 129
    D 128 long     226 160   246 129   198 128   247 112
    D 256          248 192   246  96   254 192   255 112 (spills 88 bytes; no tile tried does not)
    sm_80
    D 64  long     183  48   240  49   184  48   255  40
    D 128 long     244  64   172  73   167  72   251  76
    D 256          216  68   167  49   125  66   238  73

Causal and full. One row serves both: what compilation shows gives no reason for two. Of 184 candidates (bfloat16,
sm_90, D 64 to 256, tiles of 16x32 to 128x128, 4 and 8 warps, 2 and 3 stages, all four kinds), compiled with and without
the causal mask, all but two meet the same requirements either way, those two being dQ tiles of four warps that are not
shipped; and all but three of the rest fit an SM equally often. Shipped among the three is dQ at D 64, long: 126
registers and two blocks in full, 150 and one causal, where 64x64 would fit twice, with as many rows on the SM. The part
of the work that a diagonal wastes, max(BLOCK_M, BLOCK_N) / length, is 6 % at 1,024 with tiles of 64 and at 2,048 with
tiles of 128, and 1 % at 16,384.

Pointers and descriptors. The forward pass and that for dQ on the same tiles with keys and values loaded either way:
registers, KiB of shared memory, and machine instructions of one round of the loop without masks and of that with them
(bfloat16, causal, Triton 3.7; in the forward pass float16 differs in none of the figures):

                    sm_90: pointers     descriptors         sm_100: pointers     descriptors
    forward
    D 64  short     127  56 326 537     106  57 289 416     146  57 352  539     115  57 329 494
    D 64  long      202 112 491 888     180 113 459 716     214 113 498  844     173 113 474 799
    D 128 short     176 112 432 664     145 113 342 464     196 113 464  700     141 113 372 537
    D 128 long      226 160 520 963     194 161 491 743     235 161 605 1008     206 161 508 831
    D 256           248 192 457 731     242 192 446 586     244 193 576  801     234 193 463 627
    dQ
    D 64  short     150  64 281 490     111  65 245 372      90  57 310  483      91  57 287 449
    D 64  long      150  80 264 455     112  81 258 389      92  73 274  439      91  73 284 444
    D 128 short     190  96 315 560     168  97 283 419     107 113 404  598     101 113 309 474
    D 128 long      198 128 299 530     181 128 292 441     109 145 338  512     124 145 307 471
    D 256           254 192 513 805     234 193 507 721     127 225 499  615     104 225 410 492

Neither spills or is serialised; products, their operands (wgmma SS and RS) and stages in flight are the same. A round
fetches by 8 or 16 cp.async and their addresses in every thread, or by two cp.async.bulk.tensor and an mbarrier wait.
That speaks for descriptors, most for dQ at D 64, long, on sm_90, which then fits an SM twice. Against them: the KiB of
barriers takes one of four blocks off an SM in the forward pass at D 64, short, on sm_90, the host encodes two
descriptors for each launch, and views may not qualify. In float32 and at D 16 many of these tiles spill by descriptors,
up to 11 KB, so that they serve 16-bit numbers and D of 64 and more. The pass for dK and dV keeps pointers: with queries
and gradients by descriptors it went from 246 to 255 registers at D 128, long, on sm_90, and with dQ atomic from none to
260 bytes spilled. Pointers stay the default until the comparison of ``make gpu``, which has both ("triton",
"triton-descriptors"), has shown otherwise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

HEAD_DIMENSIONS = (16, 32, 64, 128, 256)
DTYPES_OF_WIDTH = {16: ("fp16", "bf16"), 32: ("fp32",)}
LOG2_E = 1.4426950408889634  # exponentials are taken to the base 2, which is what the hardware has
SHORT = 1024  # lengths up to here, of queries and of keys, use the rows called short


class Tile(NamedTuple):
    """Queries and keys of one step, warps, and stages of the software pipeline."""

    block_m: int
    block_n: int
    warps: int
    stages: int

    @property
    def options(self) -> dict[str, int]:
        """Launch options beside warps and stages."""
        return {}


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
    """Return the shipped tile of a row; ``kind`` is a field of ``Tiles``, forward and queries also "-descriptors"."""
    return _by_kind(row)[kind]


def takes_descriptors(row: Row) -> bool:
    """Tell whether tensor descriptors serve a row: in float32, and below D 64, they spill registers."""
    return row.architecture >= 90 and row.bits == 16 and row.head_dimension >= 64


def _by_kind(row: Row) -> dict[str, Tile]:
    """Descriptors are another way to fetch the same tile, for architectures that have it (on 80, the interpreter)."""
    chosen = TILES[row]
    by_descriptors = {"forward-descriptors": chosen.forward, "queries-descriptors": chosen.queries}
    return chosen._asdict() | by_descriptors


def rows(arch: int) -> Iterator[tuple[Row, Mapping[str, Tile]]]:
    """The rows of one architecture, each with the tiles that a GPU launches, by kind."""
    for row in TILES:
        if row.architecture == arch:
            takes = takes_descriptors(row)
            yield row, {kind: tile for kind, tile in _by_kind(row).items() if takes or "descriptors" not in kind}


def row_tile(head_dimension: int) -> Tile:
    """Return the tile of the passes that read and write each element once; at D 64 four warps spill on sm_100."""
    rows, warps = (128, 8) if head_dimension == 64 else (64, 4)
    return Tile(block_m=rows, block_n=1, warps=warps, stages=1)


def like(tensor: Tensor) -> Tensor:
    """An uninitialised tensor in the layout of another; contiguous where that would scatter the last dimension."""
    copy = torch.empty_like(tensor)
    return copy if copy.stride(-1) == 1 else torch.empty_like(tensor, memory_format=torch.contiguous_format)


def padded(length: int) -> int:
    """A length rounded up to whole tiles of any height, so that sums may be added to without masks."""
    return -(-length // 128) * 128
