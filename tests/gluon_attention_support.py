"""What the tests of the Gluon attention kernels share: cases with their gradients in float64, and broken copies."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from functools import cache
from types import CodeType, FunctionType, ModuleType
from typing import Any
from unittest.mock import patch

import torch
from gluon_emulator import launch
from scalekernels.attention import hopper_gradients, tiles
from scalekernels.attention.hopper_gradients import BackwardTile
from torch import Tensor

LOG2_E = 1.4426950408889634
# p, ds and the result are rounded to the dtype: about one unit in the last place, of which the norm averages.
TOLERANCE = {torch.float16: 2.0**-10, torch.bfloat16: 2.0**-7}
# Batch, query heads, key heads, queries, keys, D, causal.
Shape = tuple[int, int, int, int, int, int, bool]


@cache
def inputs(shape: Shape, dtype: torch.dtype, opposed: float = 0.0) -> dict[str, Tensor]:
    """Views of one buffer for q, k and v where their lengths agree, and dO laid out as (B, T, H, D).

    ``opposed`` moves queries and keys apart, so that all scores are negative.
    """
    batch, heads, key_heads, queries, keys, dimension, _ = shape
    random = torch.Generator().manual_seed(0)

    def draw(*size: int) -> Tensor:
        return torch.randn(size, generator=random).to(dtype)

    if queries == keys:
        fused = draw(batch, queries, heads + 2 * key_heads, dimension).transpose(1, 2)
        q, k, v = fused.split((heads, key_heads, key_heads), 1)
    else:
        q = draw(batch, heads, queries, dimension)
        k, v = (draw(batch, keys, key_heads, dimension).transpose(1, 2) for _ in range(2))
    return {"q": q + opposed, "k": k - opposed, "v": v, "g": draw(batch, queries, heads, dimension).transpose(1, 2)}


@cache
def oracle(shape: Shape, dtype: torch.dtype, scale: float, opposed: float = 0.0) -> dict[str, Tensor]:
    """Gradients, log-sum-exp to the base 2 and delta of :func:`inputs` in float64."""
    tensors, causal = inputs(shape, dtype, opposed), shape[6]
    q, k, v = (tensors[name].double().requires_grad_() for name in "qkv")
    group = q.shape[1] // k.shape[1]
    scores = q @ k.repeat_interleave(group, 1).mT * scale
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    out = scores.softmax(-1) @ v.repeat_interleave(group, 1)
    dq, dk, dv = torch.autograd.grad(out, (q, k, v), tensors["g"].double())
    delta = (out.detach() * tensors["g"].double()).sum(-1)
    return {"dq": dq, "dk": dk, "dv": dv, "lse": scores.detach().logsumexp(-1) * LOG2_E, "delta": delta}


def statistics_of(expected: dict[str, Tensor]) -> Tensor:
    """The two rows of a head as ``hopper_gradients.row_statistics`` lays them out."""
    rows = torch.stack([expected["lse"], expected["delta"]]).float()
    return torch.nn.functional.pad(rows, (0, tiles.padded(rows.shape[3]) - rows.shape[3])).contiguous()


def gradients(
    shape: Shape, dtype: torch.dtype, seed: int, tile: BackwardTile | None = None, kinds: str = "keys queries",
    module: Any = None, opposed: float = 0.0,
) -> dict[str, tuple[Tensor, Tensor]]:  # fmt: skip
    """Run the kernels for dK with dV ("keys") and for dQ ("queries"), or their namesakes in a module.

    Return what they wrote with what was expected, by name.
    """
    causal, scale = shape[6], 0.7 * shape[5] ** -0.5
    tensors = inputs(shape, dtype, opposed)
    expected = oracle(shape, dtype, scale, opposed)
    written = {name: torch.full_like(tiles.like(tensors[name[1]]), math.nan) for name in ("dq", "dk", "dv")}
    operands = (*(tensors[name] for name in "qkvg"), statistics_of(expected))
    calls = []
    if "keys" in kinds:
        what = (written["dk"], written["dv"], causal, scale, tile or hopper_gradients.KEYS[shape[5]])
        calls.append(hopper_gradients.keys_arguments(*operands, *what))
    if "queries" in kinds:
        what = (written["dq"], causal, scale, tile or hopper_gradients.QUERIES[shape[5]])
        calls.append(hopper_gradients.queries_arguments(*operands, *what))
    for kernel, programs, arguments in calls:
        launch(getattr(module, kernel.__name__, kernel), programs, arguments, seed)
    names = [name for name in written if ("queries" if name == "dq" else "keys") in kinds]
    return {name: (written[name], expected[name]) for name in names}


def error(pair: tuple[Tensor, Tensor]) -> float:
    """The norm of the error relative to that of what was expected; NaN where something was not written."""
    output, expected = pair
    return float((output.double() - expected).norm() / expected.norm())


def load_changed(source: str) -> ModuleType:
    """Return the module that a changed source makes.

    Parts of it that two empty lines separate are compiled once, also where several copies share them.
    """
    module = ModuleType("changed")
    for part in source.split("\n\n\n"):
        with patch.object(inspect, "getsourcelines", _source_lines(part)):
            exec(_compiled(part), vars(module))
    return module


@cache
def _compiled(source: str) -> CodeType:
    return compile(source, "<changed>", "exec")


def _source_lines(part: str) -> Callable[[FunctionType], tuple[list[str], int]]:
    """Return ``inspect.getsourcelines`` for the function of a part of a file, which ends with that function."""
    lines = part.splitlines(keepends=True)

    def lines_of(function: FunctionType) -> tuple[list[str], int]:
        first = function.__code__.co_firstlineno
        return lines[first - 1 :], first

    return lines_of
