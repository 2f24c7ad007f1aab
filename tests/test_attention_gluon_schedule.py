"""Which program of the Gluon forward pass computes which tiles of queries: each once, and all equally long."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators
# (the arguments of a jit function are pointers and sizes)

from __future__ import annotations

import pytest
import torch
from gluon_emulator import launch
from scalekernels.attention.hopper_forward import _own_tile, _own_turns
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl


@gluon.jit
def schedule(order, heads, section, query_length, BLOCK: gl.constexpr, DEALT: gl.constexpr):
    """Write down the program and key tiles of every tile of queries, as a consumer would go through them."""
    sizes = (heads, 1, 1, section, query_length, query_length)
    turns, section = _own_turns(sizes, BLOCK, DEALT)
    sizes = (heads, 1, 1, section, query_length, query_length)
    state = (turns * 0, turns * 0, turns * 0)
    for _own in range(turns):
        index, row0, tiles, state = _own_tile(state, sizes, BLOCK, True, BLOCK, DEALT)
        place = order + 3 * (index * gl.cdiv(query_length, BLOCK) + row0 // BLOCK)
        gl.store(place, gl.load(place) + 1)
        gl.store(place + 1, gl.program_id(0))
        gl.store(place + 2, tiles)


def loads_of(heads: int, section: int, tiles: int, programs: int, dealt: bool) -> tuple[Tensor, Tensor]:
    """Which program has each tile, which no other has, and the key tiles of each program, 1.5 for a start and end."""
    order = torch.zeros(heads * tiles, 3, dtype=torch.int32)
    sizes = {"heads": heads, "section": section, "query_length": 128 * tiles - 5, "BLOCK": 128, "DEALT": dealt}
    launch(schedule, programs, {"order": order} | sizes)
    assert torch.all(order[:, 0] == 1)
    owners = order[:, 1].long()
    return owners, torch.zeros(programs).index_add(0, owners, order[:, 2] + 1.5)


@pytest.mark.parametrize("dealt", [True, False])
def test_every_tile_has_one_program(dealt):
    cases = [
        (5, 3, 2, 4),
        (7, 2, 3, 5),
        (1, 1, 1, 1),
        (9, 4, 1, 7),
        (6, 1, 5, 3),
        (4, 4, 2, 8),
        (8, 3, 5, 4),
        (3, 1, 2, 6),
    ]
    for case in cases:
        owners, _ = loads_of(*case, dealt)
        assert set(owners.tolist()) == set(range(case[3])), case


@pytest.mark.slow
def test_causal_attention_is_balanced():
    """Two sections of eight heads of 64 tiles on 132 programs: without a new round for each, a fifth more."""
    for dealt, most in ((True, 1.005), (False, None)):
        _, loads = loads_of(16, 8, 64, 132, dealt)
        worst = float(loads.max() / loads.mean())
        assert worst <= most if most else worst > 1.1
