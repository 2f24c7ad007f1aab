"""All gradients of attention by one Gluon kernel, run by the emulator and held against float64."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gluon_emulator
import gluon_machine
import pytest
import torch
from gluon_emulator import DeadlockError, HazardError, launch
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
    (1, 4, 2, 150, 300, 64, True),
    (1, 2, 1, 333, 200, 64, False),
]


def collected(sums: Tensor, length: int, rows: int, scale: float) -> Tensor:
    """dQ from its sums, by the position of accumulator elements in threads (PTX ISA, wgmma, layout of D)."""
    batch, heads, padded, dimension = sums.shape
    parts = sums.reshape(batch, heads, padded // rows, 2, dimension // 16, 2, 4, 8, 4, 2)
    # half of the columns, 8 columns, 8 rows, warp, thread's row, thread's pair of columns, column
    parts = parts.permute(0, 1, 2, 6, 5, 7, 3, 4, 8, 9)
    return parts.reshape(batch, heads, padded, dimension)[:, :, :length] * scale


# What happens to one tile of queries in one block of keys: a block that adds nothing but 0 is not counted.
IN_TURN = (["read", "add", "add", "count"], ["read", "add", "add"])


@contextlib.contextmanager
def recorded(sums: Tensor, counters: Tensor) -> Iterator[dict[tuple[int, int], list[str]]]:
    """Collect, by program and tile of queries, the reads of counters and the additions to sums and counters."""
    events: dict[tuple[int, int], list[str]] = {}
    per_tile = sums.numel() // counters.numel()
    load, add = gluon_emulator.LANGUAGE.load, gluon_emulator.LANGUAGE.atomic_add

    def note(pointer: Any, kind: str) -> None:
        of_counters = pointer.storage.data_ptr() == counters.data_ptr()
        tile = int(torch.as_tensor(pointer.offset).min()) // (1 if of_counters else per_tile)
        name = kind if of_counters or kind == "read" else "add"
        events.setdefault((gluon_machine.here().machine.program, tile), []).append(name)

    def noted_load(pointer: Any, **options: Any) -> Any:
        note(pointer, "read")
        return load(pointer, **options)

    def noted_add(pointer: Any, value: Any, **options: Any) -> Any:
        note(pointer, "count")
        return add(pointer, value, **options)

    gluon_emulator.LANGUAGE.load, gluon_emulator.LANGUAGE.atomic_add = noted_load, noted_add
    try:
        yield events
    finally:
        gluon_emulator.LANGUAGE.load, gluon_emulator.LANGUAGE.atomic_add = load, add


def gradients(
    shape: Shape, seed: int, ordered: bool, module: Any = hopper_fused, tile: BackwardTile | None = None
) -> tuple[dict[str, tuple[Tensor, Tensor]], bool]:
    """Run the kernel of a module; return what it wrote with what was expected, by name, and whether the order held.

    The emulator runs programs one after the other: in the order of their numbers every turn has come already.
    """
    causal, scale = shape[6], 0.7 * shape[5] ** -0.5
    tile = tile or hopper_gradients.ALL[shape[5]]
    given = inputs(shape, torch.bfloat16)
    expected = oracle(given, causal, scale)
    dk, dv = (torch.full_like(tiles.like(given[name]), math.nan) for name in "kv")
    sums, counters = hopper_gradients.sums_of(given["q"], tile)
    operands = (*(given[name] for name in "qkvg"), statistics_of(expected), dk, dv, sums, counters)
    _, programs, arguments = hopper_gradients.all_arguments(*operands, causal, scale, tile, ordered)
    with recorded(sums, counters) as events:
        launch(module.hopper_all, programs, arguments, seed)
    dq = collected(sums, shape[3], tile.rows, scale)
    in_turn = True
    if ordered:
        blocks = -(-shape[4] // (2 * hopper_gradients.ROWS))
        rows = torch.arange(counters.shape[2]) * tile.rows
        seen = (rows + tile.rows + 127) // 128 if causal else torch.full_like(rows, blocks)
        seen = torch.where(rows < shape[3], seen.clamp(max=blocks), 0)
        in_turn = bool((counters == seen).all()) and all(order in IN_TURN for order in events.values())
    pairs = {name: (written, expected[name]) for name, written in {"dq": dq, "dk": dk, "dv": dv}.items()}
    return pairs, in_turn


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_float64(shape: Shape, ordered: bool) -> None:
    for seed in range(4):
        pairs, in_turn = gradients(shape, seed, ordered)
        assert in_turn
        for name, pair in pairs.items():
            assert error(pair) < TOLERANCE[torch.bfloat16], (name, seed)


@pytest.mark.parametrize("dimension", [64, 128])
def test_every_candidate_is_right(dimension: int) -> None:
    for tile in hopper_gradients.candidates("all", dimension, True, "long"):
        pairs, in_turn = gradients((1, 2, 1, 300, 300, dimension, True), 2, True, tile=tile)
        assert in_turn
        assert all(error(pair) < TOLERANCE[torch.bfloat16] for pair in pairs.values()), tile


BOTH_WAIT = "        mbarrier.wait(full.index(slot), phase)\n"
DS_STORED = "        fence_async_shared()\n        mbarrier.arrive(ds_full)\n        before = slot\n"
RELEASES = "        mbarrier.arrive(ds_empty)\n        mbarrier.arrive(empty.index(before), pred=step > 0)\n"
DV_WAIT = "        dk, dq = warpgroup_mma_wait(1, deps=(dk, dq))\n"
# Pairs of old and new text; the first occurrence is replaced.
BROKEN = {
    "no wait for a tile": (BOTH_WAIT, ""),
    "no wait for the ds of both": ("        mbarrier.wait(ds_full, step & 1)\n", ""),
    "no wait for ds to be read": ("        mbarrier.wait(ds_empty, step & 1)\n", ""),
    "no fence after ds is stored": (DS_STORED, DS_STORED.replace("        fence_async_shared()\n", "", 1)),
    "ds and tile released before they are read": (RELEASES, "", DV_WAIT, RELEASES + DV_WAIT),
    "wait for the scores too small": ("warpgroup_mma_wait(3, deps=(s,))", "warpgroup_mma_wait(4, deps=(s,))"),
    "wait for dQ too small": (DV_WAIT, DV_WAIT.replace("wait(1", "wait(2")),
    "halves mixed up": ("k_left.slice(WHO * HALF", "k_left.slice((1 - WHO) * HALF"),
    "ds of one consumer only": ("dq = warpgroup_mma(ds_right, k_right", "dq = warpgroup_mma(ds_left, k_right"),
    "dQ added to the tile after": ("sums_row_before, dq, turn", "sums_row, dq, turn"),
    "dQ of the last tile missing": (
        "    mbarrier.arrive(ds_empty)\n    _add_queries(target, sums_row_before, dq,",
        "    mbarrier.arrive(ds_empty)\n    _add_queries(target, sums_row_before, dq * 0.0,",
    ),
    "keys overwritten while the other's dQ reads them": ("    mbarrier.wait(ds_empty, (group * tiles) & 1)", "    #"),
    "sums of the next head not started anew": ("sums_row + padded_length - last_row + first_row", "sums_row + M"),
    "dK not scaled": ("(dk * scale)", "(dk * 1.0)"),
    "delta omitted": ("(dp - gl.expand_dims(delta_buffers.index(slot).load(column), 0))", "dp"),
}  # fmt: skip
BROKEN_ORDER = {
    "turns not awaited": ("        mbarrier.wait(turn.index(slot), phase)\n", "        pass\n"),
    "counted before the additions": ("            mbarrier.wait(added.index(slot), phase)\n", ""),
    "turns not counted": ("            mbarrier.arrive(released.index(slot))\n", ""),
    "blocks that add 0 count, too": ("CAUSAL, KEYS, M) >= 0", "CAUSAL, KEYS, M) >= -9"),
    "one block more expected": ("return last - block", "return last - block + 1"),
    "blocks in the wrong order": ("        block = blocks - 1 - block\n", "        pass\n"),
}
BROKEN_SHAPES: list[Shape] = [(1, 2, 1, 140, 300, 128, True), (1, 2, 1, 300, 131, 128, False)]


@pytest.fixture
def changed(tmp_path: Path) -> Callable[..., Any]:
    """Return the kernel's module with pieces of its source replaced, and few polls."""

    def change(*replacements: str) -> Any:
        source = Path(hopper_fused.__file__).read_text(encoding="utf-8")
        for old, new in zip(("1 << 20", *replacements[::2]), ("1 << 2", *replacements[1::2]), strict=True):
            assert old in source, f"not in the source: {old}"
            source = source.replace(old, new, 1)
        path = tmp_path / "changed_fused.py"
        path.write_text(source, encoding="utf-8")
        spec = importlib.util.spec_from_file_location("changed_fused", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return change


def works(shape: Shape, seed: int, ordered: bool, module: Any) -> bool:
    """Whether results are right and, where ordered, no turn had to be given up."""
    try:
        pairs, in_turn = gradients(shape, seed, ordered, module, BackwardTile(64, 2))
    except (HazardError, DeadlockError):
        return False
    return in_turn and all(error(pair) < TOLERANCE[torch.bfloat16] for pair in pairs.values())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_fails(name: str, changed: Callable[..., Any]) -> None:
    module = changed(*BROKEN[name])
    assert not all(works(shape, seed, False, module) for seed in range(9) for shape in BROKEN_SHAPES)


@pytest.mark.parametrize("name", BROKEN_ORDER)
def test_a_broken_order_is_seen(name: str, changed: Callable[..., Any]) -> None:
    module = changed(*BROKEN_ORDER[name])
    assert not all(works(shape, seed, True, module) for seed in range(40) for shape in BROKEN_SHAPES)


@pytest.mark.parametrize("ordered", [False, True])
def test_the_shapes_of_the_broken_copies_are_right_without_a_change(ordered: bool) -> None:
    assert all(works(shape, seed, ordered, hopper_fused) for shape in BROKEN_SHAPES for seed in range(3))


@pytest.mark.parametrize("method", ["apart", "ordered", "atomic", None])
def test_the_host_side_returns_gradients_in_the_layouts_of_the_inputs(
    method: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels run by the emulator, and the passes over rows, which the interpreter's tests hold, replaced."""
    given, scale = inputs((1, 2, 1, 150, 150, 64, True), torch.bfloat16), 0.1
    expected = oracle(given, True, scale)

    def emulated(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
        launch(kernel, programs, arguments, seed=2)

    def collect(sums: Tensor, dq: Tensor, scale: float, tile: BackwardTile) -> None:
        dq.copy_(collected(sums, dq.shape[2], tile.rows, scale))

    monkeypatch.setattr(hopper_gradients, "launch", emulated)
    monkeypatch.setattr(hopper_gradients, "collect", collect)
    monkeypatch.setattr(hopper_gradients, "row_statistics", lambda *_: statistics_of(expected))
    operands = (given["g"], given["q"], given["k"], given["v"], given["q"], expected["lse"], True, scale)
    found = dict(zip(("dq", "dk", "dv"), hopper_gradients.backward(*operands, method=method), strict=True))
    for name, gradient in found.items():
        assert error((gradient, expected[name])) < TOLERANCE[torch.bfloat16]
        assert gradient.stride() == tiles.like(given[name[1]]).stride()
    dq, dk, dv = hopper_gradients.backward(*operands, need_q=False, method=method)
    assert not dq.numel()
    assert (dk == found["dk"]).all()
    assert (dv == found["dv"]).all()
