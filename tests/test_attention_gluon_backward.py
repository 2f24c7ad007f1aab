"""The backward pass of attention in Gluon, run by the emulator and held against float64."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from gluon_emulator import launch
from scalekernels.attention import hopper_backward, hopper_gradients, tiles
from scalekernels.attention.hopper_gradients import BackwardTile
from torch import Tensor

LOG2_E = 1.4426950408889634
# p, ds and the result are rounded to the dtype: about one unit in the last place, of which the norm averages.
TOLERANCE = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# Batch, query heads, key heads, queries, keys, D, causal.
Shape = tuple[int, int, int, int, int, int, bool]
SHAPES: list[Shape] = [
    (1, 1, 1, 256, 256, 128, True),
    (1, 2, 1, 200, 333, 64, False),
    (2, 4, 2, 77, 130, 64, True),  # some keys are seen by no query
    (1, 3, 1, 1, 5, 128, False),
    (1, 1, 1, 5, 300, 128, True),
    (1, 1, 1, 391, 65, 64, True),
    (1, 2, 2, 129, 257, 128, False),
    (1, 2, 1, 640, 640, 64, True),
]


def inputs(shape: Shape, dtype: torch.dtype, seed: int = 0) -> dict[str, Tensor]:
    """Views of one buffer for q, k and v where their lengths agree, and dO laid out as (B, T, H, D)."""
    batch, heads, key_heads, queries, keys, dimension, _ = shape
    random = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random).to(dtype)

    if queries == keys:
        fused = draw(batch, queries, heads + 2 * key_heads, dimension).transpose(1, 2)
        q, k, v = fused.split((heads, key_heads, key_heads), 1)
    else:
        q = draw(batch, heads, queries, dimension)
        k, v = (draw(batch, keys, key_heads, dimension).transpose(1, 2) for _ in range(2))
    return {"q": q, "k": k, "v": v, "g": draw(batch, queries, heads, dimension).transpose(1, 2)}


def oracle(given: dict[str, Tensor], causal: bool, scale: float) -> dict[str, Tensor]:
    """Gradients, log-sum-exp to the base 2 and delta in float64."""
    q, k, v = (given[name].double().requires_grad_() for name in "qkv")
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    out = scores.softmax(-1) @ v.repeat_interleave(group, 1)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), given["g"].double())
    delta = (out.detach() * given["g"].double()).sum(-1)
    return {"dq": dq, "dk": dk, "dv": dv, "lse": scores.detach().logsumexp(-1) * LOG2_E, "delta": delta}


def statistics_of(expected: dict[str, Tensor]) -> Tensor:
    """The two rows of a head as ``hopper_gradients.row_statistics`` lays them out."""
    rows = torch.stack([expected["lse"], expected["delta"]]).float()
    return torch.nn.functional.pad(rows, (0, tiles.padded(rows.shape[3]) - rows.shape[3])).contiguous()


def gradients(
    shape: Shape, dtype: torch.dtype, seed: int, tile: BackwardTile | None = None, kinds: str = "keys queries",
    module: Any = hopper_backward,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """Run the kernels of a module; return what they wrote with what was expected, by name."""
    causal, scale = shape[6], 0.7 * shape[5] ** -0.5
    given = inputs(shape, dtype)
    expected = oracle(given, causal, scale)
    written = {name: torch.full_like(tiles.like(given[name[1]]), math.nan) for name in ("dq", "dk", "dv")}
    operands = (*(given[name] for name in "qkvg"), statistics_of(expected))
    if "keys" in kinds:
        what = (written["dk"], written["dv"], causal, scale, tile or hopper_gradients.KEYS[shape[5]])
        _, programs, arguments = hopper_gradients.keys_arguments(*operands, *what)
        launch(module.hopper_keys, programs, arguments, seed)
    if "queries" in kinds:
        what = (written["dq"], causal, scale, tile or hopper_gradients.QUERIES[shape[5]])
        _, programs, arguments = hopper_gradients.queries_arguments(*operands, *what)
        launch(module.hopper_queries, programs, arguments, seed)
    names = [name for name in written if ("queries" if name == "dq" else "keys") in kinds]
    return {name: (written[name], expected[name]) for name in names}


def error(pair: tuple[Tensor, Tensor]) -> float:
    """The norm of the error relative to that of what was expected; NaN where something was not written."""
    found, expected = pair
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_float64(shape: Shape, seed: int) -> None:
    dtype = torch.float16 if seed == 1 else torch.bfloat16
    for name, pair in gradients(shape, dtype, seed).items():
        assert error(pair) < TOLERANCE[dtype], name
