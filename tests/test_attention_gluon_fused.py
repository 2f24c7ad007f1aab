"""All gradients of attention by one Gluon kernel, run by the emulator and held against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gluon_emulator import launch
from scalekernels.attention import hopper_fused, hopper_gradients, tiles
from scalekernels.attention.hopper_gradients import BackwardTile
from test_attention_gluon_backward import TOLERANCE, Shape, error, inputs, oracle, statistics_of
from torch import Tensor

SHAPES: list[Shape] = [
    (1, 2, 1, 200, 333, 128, False),
    (2, 4, 2, 77, 300, 128, True),  # some keys are seen by no query
    (1, 1, 1, 391, 165, 128, True),
    (1, 2, 2, 129, 257, 128, False),
    (1, 2, 1, 330, 330, 128, True),
    (1, 1, 1, 3, 5, 128, True),
]


def collected(sums: Tensor, length: int, rows: int, scale: float) -> Tensor:
    """dQ from its sums, by the position of accumulator elements in threads (PTX ISA, wgmma, layout of D)."""
    batch, heads, padded, dimension = sums.shape
    parts = sums.reshape(batch, heads, padded // rows, 2, dimension // 16, 2, 4, 8, 4, 2)
    # half of the columns, 8 columns, 8 rows, warp, thread's row, thread's pair of columns, column
    parts = parts.permute(0, 1, 2, 6, 5, 7, 3, 4, 8, 9)
    return parts.reshape(batch, heads, padded, dimension)[:, :, :length] * scale


def gradients(
    shape: Shape, seed: int, ordered: bool, module: Any = hopper_fused, tile: BackwardTile | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Run the kernel of a module; return what it wrote with what was expected, by name."""
    causal, scale = shape[6], 0.7 * shape[5] ** -0.5
    tile = tile or hopper_gradients.ALL[shape[5]]
    given = inputs(shape, torch.bfloat16)
    expected = oracle(given, causal, scale)
    dk, dv = (torch.full_like(tiles.like(given[name]), math.nan) for name in "kv")
    sums, counters = hopper_gradients.sums_of(given["q"], tile)
    operands = (*(given[name] for name in "qkvg"), statistics_of(expected), dk, dv, sums, counters)
    _, programs, arguments = hopper_gradients.all_arguments(*operands, causal, scale, tile, ordered)
    launch(module.hopper_all, programs, arguments, seed)
    dq = collected(sums, shape[3], tile.rows, scale)
    if ordered:
        blocks = -(-shape[4] // (2 * hopper_gradients.ROWS))
        rows = torch.arange(counters.shape[2]) * tile.rows
        seen = (rows + tile.rows + 127) // 128 if causal else torch.full_like(rows, blocks)
        seen = torch.where(rows < shape[3], seen.clamp(max=blocks), 0)
        assert (counters == seen).all()
    return {name: (written, expected[name]) for name, written in {"dq": dq, "dk": dk, "dv": dv}.items()}


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_float64(shape: Shape, ordered: bool) -> None:
    for seed in range(4):
        for name, pair in gradients(shape, seed, ordered).items():
            assert error(pair) < TOLERANCE[torch.bfloat16], (name, seed)
