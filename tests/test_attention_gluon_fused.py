"""All gradients of attention by one Gluon kernel, run by the emulator and held against float64."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gluon_emulator
import gluon_machine
import gluon_operations
import pytest
import torch
from gluon_attention_support import TOLERANCE, Shape, error, inputs, load_changed, oracle, statistics_of
from gluon_emulator import DeadlockError, HazardError, launch
from scalekernels.attention import hopper_fused, hopper_gradients, tiles
from scalekernels.attention.hopper_gradients import Method
from torch import Tensor

SHAPES: list[Shape] = [
    (1, 2, 1, 140, 270, 128, False),
    (2, 4, 2, 77, 200, 128, True),  # some keys are seen by no query
    (1, 1, 1, 270, 165, 128, True),
    (1, 2, 2, 129, 257, 128, False),
    (1, 2, 1, 270, 270, 128, True),
    (1, 1, 1, 3, 5, 128, True),
    (1, 4, 2, 150, 300, 64, True),
    (1, 2, 1, 270, 200, 64, False),
]
ROWS = hopper_gradients.ROWS


@contextlib.contextmanager
def recorded(counters: Tensor) -> Iterator[dict[tuple[int, int], list[str]]]:
    """Collect, by program and tile of queries, what happens to counters ("read", "count") and sums ("add")."""
    events: dict[tuple[int, int], list[str]] = {}
    count, add = gluon_emulator.LANGUAGE.atomic_add, gluon_operations.add_async

    def note(program: int, tile: int, kind: str) -> None:
        events.setdefault((program, tile), []).append(kind)

    def noted_count(pointer: Any, value: Any, **options: Any) -> Any:
        assert pointer.storage.data_ptr() == counters.data_ptr()
        note(gluon_machine.here().machine.program, int(pointer.offset), "count" if value else "read")
        return count(pointer, value, **options)

    def noted_add(descriptor: Any, at: list[int], memory: Any) -> None:
        machine, tile = gluon_machine.here().machine, int(at[0]) // ROWS
        add(descriptor, at, memory, lambda: note(machine.program, tile, "add"))

    replaced = gluon_emulator.REPLACED
    places = [place for place, (_, new) in enumerate(replaced) if new is add]
    gluon_emulator.LANGUAGE.atomic_add = noted_count
    for place in places:
        replaced[place] = (replaced[place][0], noted_add)
    try:
        yield events
    finally:
        gluon_emulator.LANGUAGE.atomic_add = count
        for place in places:
            replaced[place] = (replaced[place][0], add)


def default_method(dimension: int, ordered: bool) -> Method:
    return together(dimension, ordered)[0]


def together(dimension: int, ordered: bool) -> list[Method]:
    """The candidate methods that use the kernel for all gradients."""
    listed = hopper_gradients.methods(dimension, True, "long", ordered)
    return [method for method in listed if method != hopper_gradients.APART]


def gradients(
    shape: Shape, seed: int, method: Method, module: Any = hopper_fused, opposed: float = 0.0
) -> tuple[dict[str, tuple[Tensor, Tensor]], bool]:
    """Run a module's kernel; return what it wrote with what was expected, by name, and whether the order was right.

    The emulator runs programs one after the other: in the order of their numbers every turn has come already.
    """
    causal, scale = shape[6], 0.7 * shape[5] ** -0.5
    tensors, expected = inputs(shape, torch.bfloat16, opposed), oracle(shape, torch.bfloat16, scale, opposed)
    dk, dv = (torch.full_like(tiles.like(tensors[name]), math.nan) for name in "kv")
    sums, counters = hopper_gradients.sums_of(tensors["q"])
    operands = (*(tensors[name] for name in "qkvg"), statistics_of(expected), dk, dv, sums, counters)
    _, programs, arguments = hopper_gradients.all_arguments(*operands, causal, scale, method)
    with recorded(counters) as events:
        launch(module.hopper_all, programs, arguments, seed)
    dq = sums[:, :, : shape[3]] * scale
    in_turn = True
    if method.name == "ordered":
        in_turn = bool((counters == blocks_that_add(shape, counters)).all())
        in_turn = in_turn and all(order == ["read", "add", "add", "count"] for order in events.values())
    pairs = {name: (written, expected[name]) for name, written in {"dq": dq, "dk": dk, "dv": dv}.items()}
    return pairs, in_turn


def blocks_that_add(shape: Shape, counters: Tensor) -> Tensor:
    """How many blocks of keys add to each tile of queries: of a causal mask's, those that begin before the tile ends.

    Blocks that no query sees add zeros to the last tile.
    """
    blocks, tiles_used = -(-shape[4] // (2 * ROWS)), -(-shape[3] // ROWS)
    tile = torch.arange(counters.shape[2])
    seen = ((tile + 1) * ROWS + 2 * ROWS - 1) // (2 * ROWS) if shape[6] else torch.full_like(tile, blocks)
    seen = torch.where(tile == tiles_used - 1, blocks, seen.clamp(max=blocks))
    return torch.where(tile < tiles_used, seen, 0)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_float64(shape: Shape, ordered: bool) -> None:
    for seed in range(4):
        pairs, in_turn = gradients(shape, seed, default_method(shape[5], ordered))
        assert in_turn
        for name, pair in pairs.items():
            assert error(pair) < TOLERANCE[torch.bfloat16], (name, seed)


@pytest.mark.parametrize("dimension", [64, 128])
def test_every_candidate_is_right(dimension: int) -> None:
    for method in (*together(dimension, True), *together(dimension, False)):
        pairs, in_turn = gradients((1, 2, 1, 300, 300, dimension, True), 2, method)
        assert in_turn
        assert all(error(pair) < TOLERANCE[torch.bfloat16] for pair in pairs.values()), method


LOOP_WAIT = "        mbarrier.wait(full.index(slot), phase)\n"
DS_STORED = "        fence_async_shared()\n        mbarrier.arrive(ds_full)\n        if IN_REGISTERS"
RELEASES = "        mbarrier.arrive(empty.index(before), pred=step > 0)\n"
DK_WAIT = "        dk = warpgroup_mma_wait(2, deps=(dk,))\n"
DQ_WAIT = "        dq, s = warpgroup_mma_wait(1, deps=(dq, s))\n"
LAST_HAND_OVER = "    _hand_over(dq, dq_buffers.index(WHO), dq_full.index(WHO), dq_empty.index(WHO), rounds"
# Pairs of old and new text; the first occurrence is replaced.
BROKEN = {
    "no wait for a tile": (LOOP_WAIT, ""),
    "no wait for the ds of both": ("        mbarrier.wait(ds_full, step & 1)\n", ""),
    "no wait for ds to be read": ("        mbarrier.wait(ds_empty, step & 1)\n", ""),
    "no fence after ds is stored": (DS_STORED, DS_STORED.replace("        fence_async_shared()\n", "", 1)),
    "tile released before it is read": (RELEASES, "", DK_WAIT, RELEASES + DK_WAIT),
    "wait for the scores and dQ too small": (DQ_WAIT, DQ_WAIT.replace("wait(1", "wait(2")),
    "wait for dK too small": (DK_WAIT, DK_WAIT.replace("wait(2", "wait(3")),
    "wait for dp too small": ("warpgroup_mma_wait(1, deps=(dp,))", "warpgroup_mma_wait(2, deps=(dp,))"),
    "halves mixed up": ("slice(WHO * HALF", "slice((1 - WHO) * HALF"),
    "ds of one consumer only": ("ds_buffers.index(base + 1).permute", "ds_buffers.index(base).permute"),
    "ds not transposed": ("ds_buffers.index(base).permute((1, 0))", "ds_buffers.index(base)"),
    "dQ written before the adder has read the last": ("    mbarrier.wait(dq_empty, phase)\n", ""),
    "no fence after dQ is written": ("dq_buffer.store(dq)\n    fence_async_shared()\n", "dq_buffer.store(dq)\n"),
    "dQ added before it is written": ("            mbarrier.wait(dq_full.index(who), step & 1)\n", ""),
    "dQ released before it is read": ("        tma.store_wait(1)\n", ""),
    "dQ of the first round added, too": ("if step > 0:\n            _hand", "if step >= 0:\n            _hand"),
    "dQ of the last tile missing": (LAST_HAND_OVER, LAST_HAND_OVER.replace("(dq,", "(dq * 0.0,")),
    "columns added to those of the other": ("[row, who * (D // 2)]", "[row, (1 - who) * (D // 2)]"),
    "dQ added to the tile after": ("+ last_row - step % tiles * M", "+ last_row - (step + 1) % tiles * M"),
    "sums of the next head not started anew": ("step // tiles * padded_length", "step // tiles * 0"),
    "keys overwritten while the other's dQ reads them": ("    mbarrier.wait(ds_empty, rounds & 1)", "    #"),
    "dK not scaled": ("(dk * scale)", "(dk * 1.0)"),
    "delta omitted": ("(dp - gl.expand_dims(delta_buffers.index(slot).load(column), 0))", "dp"),
    "mask off by one": ("gl.expand_dims(rows, 0) >= gl", "gl.expand_dims(rows, 0) > gl"),
    "tiles in the other order": ("row = last_row\n", "row = first_row\n"),
    "the row is not carried": (
        "        row = gl.where(row == first_row, last_row, row - M)\n", "        row_now = row_next\n"
        "        row_next = gl.where(row == first_row, last_row, row - M)\n", "    row = last_row\n",
        "    row = last_row\n    row_next = row - M\n    row_now = row_next\n",
    ),
}  # fmt: skip
BROKEN_ORDER = {
    "turns not awaited": ("                _await_turn(counter, block)\n", "                pass\n"),
    "counted before the additions are made": ("additions_wait(row) // M", "row // M"),
    "turns not counted": ("gl.atomic_add(counters + additions_wait(row) // M, 1,", "gl.atomic_add(counter, 0,"),
    "one block more expected": (
        "_await_turn(counter, block)\n            async",
        "_await_turn(counter, block + 1)\n            async",
    ),
    "turns of another tile": ("counter = counters + row // M", "counter = counters + sums_row // M"),
}
BROKEN_SHAPES: list[Shape] = [(1, 2, 1, 140, 300, 128, True), (1, 2, 1, 300, 131, 128, False)]


@pytest.fixture
def changed() -> Callable[..., Any]:
    """Return the kernel's module with pieces of its source replaced, and few polls."""

    def change(*replacements: str) -> Any:
        source = Path(hopper_fused.__file__).read_text(encoding="utf-8")
        for old, new in zip(("1 << 20", *replacements[::2]), ("1 << 2", *replacements[1::2]), strict=True):
            assert old in source, f"not in the source: {old}"
            source = source.replace(old, new, 1)
        return load_changed(source)

    return change


def works(shape: Shape, seed: int, ordered: bool, module: Any) -> bool:
    """Whether results are right and, where ordered, no turn had to be given up."""
    try:
        pairs, in_turn = gradients(shape, seed, Method("ordered" if ordered else "unordered", 64, 2), module)
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("is_masked", [True, False])
def test_keys_beyond_the_end_do_not_count_however_small_the_scores(
    causal: bool, is_masked: bool, changed: Callable[..., Any]
) -> None:
    """All scores are near -200, so that exp2(0 - lse), the weight of a key of zeros, overflows."""
    module = hopper_fused
    if not is_masked:
        pieces = ("gl.where(keys < key_length", "expand_dims(keys < key_length")
        module = changed(*itertools.chain.from_iterable((piece, f"{piece} + 99") for piece in pieces))
    pairs, _ = gradients((1, 1, 1, 140, 131, 128, causal), 2, Method("unordered", 64, 2), module, opposed=5.0)
    assert math.isfinite(error(pairs["dq"])) == is_masked
    assert not is_masked or all(error(pair) < 4 * TOLERANCE[torch.bfloat16] for pair in pairs.values())


@pytest.mark.parametrize("name", ["apart", "ordered", "unordered"])
def test_the_host_side_returns_gradients_in_the_layouts_of_the_inputs(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the kernels run by the emulator, and the passes over rows, which the interpreter's tests check, replaced."""
    shape, scale = (1, 2, 1, 150, 150, 64, True), 0.1
    tensors, expected = inputs(shape, torch.bfloat16), oracle(shape, torch.bfloat16, scale)

    def emulated(kernel: Any, programs: int, arguments: dict[str, Any]) -> None:
        launch(kernel, programs, arguments, seed=2)

    def scaled(sums: Tensor, dq: Tensor, scale: float) -> None:
        dq.copy_(sums[:, :, : dq.shape[2]] * scale)

    monkeypatch.setattr(hopper_gradients, "launch", emulated)
    monkeypatch.setattr(hopper_gradients, "scale_queries", scaled)
    monkeypatch.setattr(hopper_gradients, "row_statistics", lambda *_: statistics_of(expected))
    operands = (tensors["g"], tensors["q"], tensors["k"], tensors["v"], tensors["q"], expected["lse"], True, scale)
    method = Method(name, 64, 3)
    gradients = dict(zip(("dq", "dk", "dv"), hopper_gradients.backward(*operands, method=method), strict=True))
    for which, gradient in gradients.items():
        assert error((gradient, expected[which])) < TOLERANCE[torch.bfloat16]
        assert gradient.stride() == tiles.like(tensors[which[1]]).stride()
    dq, dk, dv = hopper_gradients.backward(*operands, need_q=False, method=method)
    assert not dq.numel()
    for which, gradient in {"dk": dk, "dv": dv}.items():
        assert error((gradient, expected[which])) < TOLERANCE[torch.bfloat16]
