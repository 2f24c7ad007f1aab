"""The backward pass of attention in Gluon for D 256, and dQ by single tiles, run by the emulator against float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gluon_attention_support import TOLERANCE, Shape, error, gradients, load_changed
from gluon_emulator import DeadlockError, HazardError
from scalekernels.attention import hopper_gradients, hopper_single, hopper_wide
from scalekernels.attention.hopper_gradients import BackwardTile

SHAPES: list[Shape] = [
    (1, 2, 1, 77, 130, 256, True),  # some keys are seen by no query
    (2, 1, 1, 130, 71, 256, False),
    (1, 1, 1, 5, 3, 256, True),
    (1, 2, 2, 1, 65, 256, False),
]
SINGLE = BackwardTile(32, 3, consumers=3, paired=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradients_agree_with_float64(shape: Shape, seed: int) -> None:
    dtype = torch.float16 if seed == 1 else torch.bfloat16
    for name, pair in gradients(shape, dtype, seed).items():
        assert error(pair) < TOLERANCE[dtype], name


def test_they_have_kernels_of_their_own() -> None:
    assert hopper_gradients.keys_kernel(256) is hopper_wide.hopper_keys_wide
    assert hopper_gradients.queries_kernel(hopper_gradients.QUERIES[256]) is hopper_single.hopper_queries_single


@pytest.mark.parametrize("is_masked", [True, False])
def test_keys_beyond_the_end_do_not_count_however_small_the_scores(
    is_masked: bool, changed: Callable[..., Any]
) -> None:
    """All scores are near -200, so that exp2(0 - lse), the weight of a key of zeros, overflows."""
    module = hopper_single if is_masked else changed(hopper_single, "key_length, gl.int32", "key_length + 99, gl.int32")
    pairs = gradients((1, 1, 1, 70, 71, 64, False), torch.bfloat16, 2, SINGLE, "queries", module, opposed=5.0)
    assert math.isfinite(error(pairs["dq"])) == is_masked


# --- broken copies ---------------------------------------------------------------------------------------------------

RELEASE = "        mbarrier.arrive(empty.index(before), pred=step > 0)\n"
TILE_WAIT = "        mbarrier.wait(full.index(slot), phase)\n"
DS_STORED = "        ds_buffers.index(WHO).store(ds.to(dtype))\n        fence_async_shared()\n"
FIRST_DP = "        dp = warpgroup_mma(v"
DQ_WAIT = "        dq = warpgroup_mma_wait(0, deps=(dq,))\n"
DK_WAIT = "        dk = warpgroup_mma_wait(1, deps=(dk,))\n"
LAST_WAIT = "    mbarrier.wait(ds_full, group * pairs & 1)\n"
COLUMNS = ".slice(WHO * HALF, HALF, dim=1)\n        total"
LAST_DQ = "dq = warpgroup_mma(ds, k_buffers.index(before)"
P_STORED = "        p_buffers.index(WHO).store(p.to(dtype))\n        fence_async_shared()\n"
# Pairs of old and new text; the first occurrence is replaced.
BROKEN_KEYS = {
    "no wait for the first tile": (TILE_WAIT, ""),
    "no wait for the second tile": ("        mbarrier.wait(full.index(slot + 1), phase)\n", ""),
    "no wait for the ds of both": ("        mbarrier.wait(ds_full, step & 1)\n", ""),
    "no wait for ds to be read": ("        mbarrier.wait(ds_empty, step & 1)\n", ""),
    "no wait for the p of both": ("        mbarrier.wait(p_full, step & 1)\n", ""),
    "no wait for p to be read": ("        mbarrier.wait(p_empty, step & 1 ^ 1)\n", ""),
    "no fence after p is stored": (P_STORED, P_STORED.replace("        fence_async_shared()\n", "")),
    "no fence after ds is stored": (DS_STORED, DS_STORED.replace("        fence_async_shared()\n", "")),
    "p released before it is read": (
        "        mbarrier.arrive(p_empty)\n", "", FIRST_DP, "        mbarrier.arrive(p_empty)\n" + FIRST_DP,
    ),
    "tile released before dK has read it": (RELEASE, "", DK_WAIT, RELEASE + DK_WAIT),
    "second tile never released": ("        mbarrier.arrive(empty.index(before + 1), pred=step > 0)\n", ""),
    "wait for the scores too small": ("warpgroup_mma_wait(2, deps=(s,))", "warpgroup_mma_wait(3, deps=(s,))"),
    "wait for dK too small": ("warpgroup_mma_wait(1, deps=(dk,))", "warpgroup_mma_wait(2, deps=(dk,))"),
    "wait for dp too small": ("warpgroup_mma_wait(2, deps=(dp,))", "warpgroup_mma_wait(3, deps=(dp,))"),
    "columns of the other": (COLUMNS, COLUMNS.replace("WHO", "(1 - WHO)")),
    "tiles mixed up": ("        own = slot + WHO\n", "        own = slot + 1 - WHO\n"),
    "rows of the pair's first": ("row + WHO * M, scale_log2", "row, scale_log2"),
    "rows of the next head not started anew": ("gl.where(row == last_row, first_row, row + 2 * M)", "row + 2 * M"),
    "the last pair's dK missing": (LAST_WAIT + "    dk = _add", LAST_WAIT + "    _ = _add"),
    "delta omitted": ("(dp - gl.expand_dims(delta_buffers.index(own).load(column), 0))", "dp"),
    "dK not scaled": ("(dk * scale)", "(dk * 1.0)"),
    "no wait for the own keys": ("    mbarrier.wait(own_full, 0)\n", ""),
    "results written before the other has read its keys": (LAST_WAIT, ""),
    "one pair less": ("pairs = query_pairs - first_pair\n", "pairs = gl.maximum(query_pairs - first_pair - 1, 1)\n"),
}  # fmt: skip
BROKEN_QUERIES = {
    "tile released before dQ has read it": (RELEASE, "", TILE_WAIT, RELEASE + TILE_WAIT),
    "tile never released": (RELEASE, ""),
    "no wait for a tile": (TILE_WAIT, ""),
    "no wait for the own rows": ("    mbarrier.wait(own_full, 0)\n", ""),
    "wait for the scores too small": ("warpgroup_mma_wait(1, deps=(s, dp))", "warpgroup_mma_wait(2, deps=(s, dp))"),
    "wait for dQ too small": (DQ_WAIT, DQ_WAIT.replace("wait(0", "wait(1")),
    "tile released beside its dQ": (DQ_WAIT + RELEASE, RELEASE + DQ_WAIT),
    "mask off by one": ("bound = gl.minimum(bound, first_row + 1", "bound = gl.minimum(bound, first_row"),
    "dQ of the wrong tile": (LAST_DQ, LAST_DQ.replace("before", "slot")),
    "one tile less": ("tiles = gl.cdiv(end, N)", "tiles = gl.cdiv(end - N, N)"),
    "rows of two consumers only": ("mbarrier.init(done, count=CONSUMERS)", "mbarrier.init(done, count=2)"),
    "heads of the group mixed up": ("head // group, first_row", "head % group, first_row"),
}  # fmt: skip
BROKEN = {("keys", name) for name in BROKEN_KEYS} | {("queries", name) for name in BROKEN_QUERIES}
BROKEN_SHAPES: dict[str, list[Shape]] = {
    "keys": [(1, 2, 1, 200, 70, 256, True), (1, 1, 1, 60, 300, 256, False)],
    "queries": [(1, 4, 2, 190, 170, 64, True), (1, 1, 1, 60, 290, 64, False)],
}


@pytest.fixture
def changed() -> Callable[..., Any]:
    """Return a module with pieces of its source replaced."""

    def change(module: Any, *replacements: str) -> Any:
        source = Path(module.__file__).read_text(encoding="utf-8")
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            assert old in source, f"not in the source: {old}"
            source = source.replace(old, new, 1)
        return load_changed(source)

    return change


def works(shape: Shape, seed: int, kind: str, module: Any) -> bool:
    try:
        pairs = gradients(shape, torch.bfloat16, seed, SINGLE if kind == "queries" else None, kind, module)
    except (HazardError, DeadlockError):
        return False
    return all(error(pair) < TOLERANCE[torch.bfloat16] for pair in pairs.values())


@pytest.mark.parametrize(("kind", "name"), sorted(BROKEN))
def test_a_broken_copy_fails(kind: str, name: str, changed: Callable[..., Any]) -> None:
    replacements = BROKEN_KEYS[name] if kind == "keys" else BROKEN_QUERIES[name]
    module = changed(hopper_wide if kind == "keys" else hopper_single, *replacements)
    assert not all(works(shape, seed, kind, module) for seed in range(9) for shape in BROKEN_SHAPES[kind])


@pytest.mark.parametrize("kind", ["keys", "queries"])
def test_the_shapes_of_the_broken_copies_are_right_without_a_change(kind: str) -> None:
    assert all(works(shape, seed, kind, None) for shape in BROKEN_SHAPES[kind] for seed in range(2))
