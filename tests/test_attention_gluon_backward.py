"""The backward pass of attention in Gluon, run by the emulator and held against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gluon_attention_support import TOLERANCE, Shape, error, gradients, load_changed
from gluon_emulator import DeadlockError, HazardError
from scalekernels.attention import hopper, hopper_backward, hopper_gradients
from scalekernels.attention.hopper_gradients import BackwardTile

SHAPES: list[Shape] = [
    (1, 1, 1, 256, 256, 128, True),
    (1, 2, 1, 140, 270, 64, False),
    (2, 4, 2, 77, 130, 64, True),  # some keys are seen by no query
    (1, 3, 1, 1, 5, 128, False),
    (1, 1, 1, 5, 300, 128, True),
    (1, 1, 1, 391, 65, 64, True),
    (1, 2, 2, 129, 257, 128, False),
    (1, 2, 1, 450, 450, 64, True),
]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_float64(shape: Shape, seed: int) -> None:
    dtype = torch.float16 if seed == 1 else torch.bfloat16
    for name, pair in gradients(shape, dtype, seed).items():
        assert error(pair) < TOLERANCE[dtype], name


def test_heads_in_sections(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two heads side by side, and the third alone."""
    monkeypatch.setattr(hopper, "L2_BYTES", 2 * 4 * 200 * 64)
    for name, pair in gradients((1, 3, 3, 200, 200, 64, True), torch.bfloat16, 2).items():
        assert error(pair) < TOLERANCE[torch.bfloat16], name


@pytest.mark.parametrize(
    ("kind", "dimension"), [(kind, dimension) for kind in ("keys", "queries") for dimension in (64, 128)]
)
def test_every_candidate_is_right(kind: str, dimension: int) -> None:
    for tile in hopper_gradients.candidates(kind, dimension, True, "long"):
        shape = (1, 2, 1, 300, 300, dimension, True)
        for name, pair in gradients(shape, torch.bfloat16, 2, tile, kind).items():
            assert error(pair) < TOLERANCE[torch.bfloat16], (tile, name)


# --- broken copies ---------------------------------------------------------------------------------------------------

RELEASE = "        mbarrier.arrive(empty.index(before), pred=step > 0)\n"
FIRST_RELEASE = "        mbarrier.arrive(empty.index(slot))\n"
DQ_WAIT = "        dq = warpgroup_mma_wait(0, deps=(dq,))\n"
KEYS_DS = "        dp = warpgroup_mma_wait(1, deps=(dp,))  # ds runs beside dV\n"
KEYS_S = "        dk, s = warpgroup_mma_wait(1, deps=(dk, s))  # the exponentials run beside dp\n"
BOTH_WAIT = "        mbarrier.wait(full.index(slot), phase)\n"
PRODUCER_WAIT = "mbarrier.wait(empty.index(slot), phase ^ 1)"
# By name: the kernel that must fail, then pairs of old and new text; where an old text occurs in both kernels, the
# first occurrence in that kernel's part of the file is replaced.
BROKEN = {
    "keys: tile released at once": (
        "keys", RELEASE, "", BOTH_WAIT, BOTH_WAIT + "        mbarrier.arrive(empty.index(slot))\n",
    ),
    "keys: tile released before dK has read it": ("keys", RELEASE, "", KEYS_S, RELEASE + KEYS_S),
    "keys: tile never released": ("keys", RELEASE, ""),
    "keys: no wait for a tile": ("keys", BOTH_WAIT, ""),
    "keys: no wait for the own keys": ("keys", "    mbarrier.wait(own_full, 0)\n", ""),
    "keys: wait for the scores too small": ("keys", KEYS_S, KEYS_S.replace("wait(1", "wait(2")),
    "keys: wait for dp too small": ("keys", KEYS_DS, KEYS_DS.replace("wait(1", "wait(2")),
    "keys: producer in the wrong phase": ("keys", PRODUCER_WAIT, PRODUCER_WAIT.replace(" ^ 1", "")),
    "keys: producer does not wait": ("keys", f"            {PRODUCER_WAIT}\n", ""),
    "keys: bytes of one statistic expected": ("keys", "+ 2 * statistics_desc", "+ statistics_desc"),
    "keys: no fence before the results are stored": (
        "keys", "    fence_async_shared()\n    mbarrier.arrive(done)", "    mbarrier.arrive(done)",
    ),
    "keys: results stored without waiting": ("keys", "    mbarrier.wait(done, 0)\n", ""),
    "keys: end before the results are stored": ("keys", "    tma.store_wait(0)\n", ""),
    "keys: dK not scaled": ("keys", "(dk * scale)", "(dk * 1.0)"),
    "keys: delta omitted": (
        "keys", "ds = p * (dp - gl.expand_dims(delta_buffers.index(slot).load(column), 0))", "ds = p * dp",
    ),
    "keys: delta of another row": (
        "keys", "[delta_offset + statistics + row]", "[delta_offset + statistics + row + 1]",
    ),
    "keys: mask off by one": ("keys", "rows, 0) >= gl", "rows, 0) > gl"),
    "keys: mask lets the next key through": ("keys", "keys = first_key + gl", "keys = first_key - 1 + gl"),
    "keys: second masked tile forgotten": ("keys", "first_row < first_key + KEYS - 1", "first_row < first_key"),
    "keys: dK of the wrong tile": (
        "keys", "dk = warpgroup_mma(factor, q_buffers.index(before)",
        "dk = warpgroup_mma(factor, q_buffers.index(slot)",
    ),
    "keys: last tile's dK missing": (
        "keys", "    dk = warpgroup_mma_wait(0, deps=(dk,))\n", "    dk = warpgroup_mma_wait(0, deps=(dk,)) * 0.0\n",
    ),
    "keys: rows of the next head not started anew": (
        "keys", "row = gl.where(row == last_row, first_row, row + M)", "row = row + M",
    ),
    "keys: one head of the group": ("keys", "head = key_head * group + member", "head = key_head * group"),
    "keys: a tile less": (
        "keys", "tiles = query_tiles - first_tile\n", "tiles = gl.maximum(query_tiles - first_tile - 1, 1)\n",
    ),
    "keys: keys without queries have no tile": (
        "keys", "gl.minimum(first_key // M, query_tiles - 1)", "gl.minimum(first_key // M, query_tiles)",
    ),
    "queries: second tile released before dQ has read it": ("queries", RELEASE, "", BOTH_WAIT, RELEASE + BOTH_WAIT),
    "queries: second tile never released": ("queries", RELEASE, ""),
    "queries: first tile released before dQ has read it": (
        "queries", FIRST_RELEASE, "", RELEASE, RELEASE + FIRST_RELEASE,
    ),
    "queries: no wait for the first tile": ("queries", BOTH_WAIT, ""),
    "queries: no wait for the second tile": ("queries", "        mbarrier.wait(full.index(second), phase)\n", ""),
    "queries: no wait for the own rows": ("queries", "    mbarrier.wait(own_full, 0)\n", ""),
    "queries: first wait too small": (
        "queries", "warpgroup_mma_wait(3, deps=(s, dp))", "warpgroup_mma_wait(4, deps=(s, dp))",
    ),
    "queries: second wait too small": (
        "queries", "warpgroup_mma_wait(1, deps=(s_second", "warpgroup_mma_wait(2, deps=(s_second",
    ),
    "queries: wait for dQ too small": ("queries", DQ_WAIT, DQ_WAIT.replace("wait(0", "wait(1")),
    "queries: first tile released beside its dQ": (
        "queries", DQ_WAIT + FIRST_RELEASE, FIRST_RELEASE + DQ_WAIT,
    ),
    "queries: ds of the second tile missing": (
        "queries", "ds = hold_differences(ds)", "ds = hold_differences(ds) * 0.0",
    ),
    "queries: producer in the wrong phase": ("queries", PRODUCER_WAIT, PRODUCER_WAIT.replace(" ^ 1", "")),
    "queries: bytes of the keys alone expected": ("queries", "expect(bar, 2 * k_desc", "expect(bar, k_desc"),
    "queries: dQ not scaled": ("queries", "(dq * scale)", "(dq * 1.0)"),
    "queries: delta omitted": ("queries", "p * (dp - gl.expand_dims(delta, 1))", "p * dp"),
    "queries: delta of the base-2 logarithm": (
        "queries", "delta = gl.load(own + delta_offset)", "delta = gl.load(own)",
    ),
    "queries: mask off by one": (
        "queries", "bound = gl.minimum(bound, first_row + 1", "bound = gl.minimum(bound, first_row",
    ),
    "queries: last tile not masked": ("queries", "if first_key + N > whole:", "if first_key > whole:"),
    "queries: second half masked as the first": ("queries", "delta, first_key + N, whole", "delta, first_key, whole"),
    "queries: halves mixed up": ("queries", "dq = warpgroup_mma(ds, k, dq", "dq = warpgroup_mma(ds, k_second, dq"),
    "queries: heads of the group mixed up": ("queries", "head // group, first_row", "head % group, first_row"),
    "queries: a pair less": ("queries", "tiles = gl.cdiv(end, 2 * N)", "tiles = gl.cdiv(end - N, 2 * N)"),
}  # fmt: skip
BROKEN_SHAPES: list[Shape] = [
    (1, 4, 2, 200, 390, 64, True),
    (1, 2, 1, 390, 131, 64, False),
    (1, 1, 1, 60, 700, 64, False),
]


@pytest.fixture
def changed() -> Callable[..., Any]:
    """Return the kernels' module with pieces of its source replaced."""

    def change(kind: str, *replacements: str) -> Any:
        source = Path(hopper_backward.__file__).read_text(encoding="utf-8")
        split = source.index("def _mask_keys")
        parts = {"keys": source[:split], "queries": source[split:]}
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            assert old in parts[kind], f"not in the source: {old}"
            parts[kind] = parts[kind].replace(old, new, 1)
        return load_changed(parts["keys"] + parts["queries"])

    return change


def works(shape: Shape, seed: int, kind: str, module: Any) -> bool:
    try:
        tile = BackwardTile(64, 3, late=kind == "queries")  # as shipped
        pairs = gradients(shape, torch.bfloat16, seed, tile, kind, module)
    except (HazardError, DeadlockError):
        return False
    return all(error(pair) < TOLERANCE[torch.bfloat16] for pair in pairs.values())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_fails(name: str, changed: Callable[..., Any]) -> None:
    kind, *replacements = BROKEN[name]
    module = changed(kind, *replacements)
    assert not all(works(shape, seed, kind, module) for seed in range(9) for shape in BROKEN_SHAPES)


@pytest.mark.parametrize("kind", ["keys", "queries"])
def test_the_shapes_of_the_broken_copies_are_right_without_a_change(kind: str) -> None:
    assert all(works(shape, seed, kind, hopper_backward) for shape in BROKEN_SHAPES for seed in range(3))


@pytest.mark.parametrize("is_masked", [True, False])
def test_keys_beyond_the_end_do_not_count_however_small_the_scores(
    is_masked: bool, changed: Callable[..., Any]
) -> None:
    """All scores are near -200, so that exp2(0 - lse), the weight of a key of zeros, overflows."""
    module = hopper_backward
    if not is_masked:
        module = changed("queries", "bound = gl.full([M], key_length", "bound = gl.full([M], key_length + 99")
    pairs = gradients((1, 1, 1, 70, 131, 64, False), torch.bfloat16, 2, module=module, opposed=5.0)
    assert math.isfinite(error(pairs["dq"])) == is_masked
    assert not is_masked or all(error(pair) < 4 * TOLERANCE[torch.bfloat16] for pair in pairs.values())
