"""Which tile a launch uses: the shipped table's, or, asked for by ``SCALEKERNELS_AUTOTUNE=1``, the fastest measured.

A candidate may only win if its results agree with those of the shipped tile, so that a miscompiled one cannot.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from scalekernels.attention import tiles
from scalekernels.attention.tiles import Tile

Launch = Callable[[Tile], Sequence[Tensor]]

CANDIDATES = tuple(
    Tile(block_m, block_n, warps, stages)
    for block_m, block_n in ((32, 64), (32, 128), (64, 32), (64, 64), (64, 128), (128, 32), (128, 64), (128, 128))
    for warps in (4, 8)
    for stages in (2, 3)
)
WARPS_AT_MOST = {16: 2, 32: 2}  # by head dimension: Triton 3.6 and 3.7 fault on Hopper with more
_winners: dict[tuple[str, tiles.Row, bool], Tile] = {}


def choose(kind: str, q: Tensor, k: Tensor, causal: bool, launch: Launch) -> Tile:
    """Return the tile for a launch of ``kind``; measured once per row and mask where autotuning is asked for."""
    row = tiles.row_for(q, k)
    shipped = tiles.tile_for(kind, row)
    if os.environ.get("SCALEKERNELS_AUTOTUNE") != "1":
        return shipped
    if (kind, row, causal) not in _winners:
        most = WARPS_AT_MOST.get(row.head_dimension, 8)
        allowed = dict.fromkeys(Tile(one.block_m, one.block_n, min(one.warps, most), one.stages) for one in CANDIDATES)
        _winners[kind, row, causal] = fastest(shipped, list(allowed), launch)
    return _winners[kind, row, causal]


def fastest(shipped: Tile, candidates: Sequence[Tile], launch: Launch) -> Tile:
    """Return the quickest tile among ``shipped`` and those candidates that run and agree with it."""
    expected = launch(shipped)
    best, best_s = shipped, _seconds(shipped, launch)
    for candidate in candidates:
        if candidate == shipped or not _agrees(candidate, expected, launch):
            continue
        if (seconds := _seconds(candidate, launch)) < best_s:
            best, best_s = candidate, seconds
    return best


def _agrees(candidate: Tile, expected: Sequence[Tensor], launch: Launch) -> bool:
    """Whether a candidate fits the device and yields the expected tensors to a few roundings of their dtype."""
    from triton.runtime.errors import OutOfResources, PTXASError

    try:
        found = launch(candidate)
    except (OutOfResources, PTXASError):
        return False
    return all(_is_close(*pair) for pair in zip(found, expected, strict=True))


def _is_close(found: Tensor, expected: Tensor) -> bool:
    if not expected.numel():
        return True
    allowed = max(4 * torch.finfo(expected.dtype).eps, 64 * torch.finfo(torch.float32).eps)
    error = (found.float() - expected.float()).abs().max()
    return bool(error <= allowed * expected.float().abs().max())  # NaN is not close


def _seconds(tile: Tile, launch: Launch) -> float:
    if torch.cuda.is_available():
        from triton.testing import do_bench

        return float(do_bench(lambda: launch(tile), return_mode="median")) / 1e3
    start = time.perf_counter()
    launch(tile)
    return time.perf_counter() - start
