"""The Gluon attention kernels for Hopper, run by the emulator: right against float64, and broken copies fail.

What this cannot show is in the docstring of ``gluon_emulator.py``: layouts, memory order within a partition, and all
that the compiler does. ``test_compiled_kernels.py`` checks the machine code, ``make gpu`` runs it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from gluon_attention_support import LOG2_E, load_changed
from gluon_emulator import DeadlockError, HazardError, launch
from scalekernels.attention import hopper, hopper_forward, kernels, reference, tiles
from scalekernels.attention import launch as attention_launch
from scalekernels.attention.hopper import GluonTile
from torch import Tensor

# Batch, query heads, key heads, query length, key length, head dimension, causal, tile.
SHAPES = [
    (1, 2, 1, 256, 256, 128, True, GluonTile(128, 2)),
    (1, 1, 1, 200, 500, 128, False, GluonTile(128, 2)),
    (1, 1, 1, 300, 301, 128, True, GluonTile(64, 3)),
    (1, 4, 2, 129, 129, 128, True, GluonTile(128, 2, 2, False)),
    (2, 3, 1, 130, 70, 64, True, GluonTile(64, 4)),
    (1, 2, 2, 65, 384, 64, False, GluonTile(128, 3, 3)),
    (1, 1, 1, 513, 301, 64, True, GluonTile(128, 3, 3)),
    (1, 1, 1, 400, 450, 64, True, GluonTile(64, 4, 3, False)),
    (1, 1, 1, 63, 640, 64, False, GluonTile(128, 4, 2, False)),
    (1, 1, 1, 1, 1, 64, True, GluonTile(128, 3, 3)),
    (1, 2, 1, 1, 333, 128, False, GluonTile(128, 2)),
    (1, 1, 1, 250, 17, 64, True, GluonTile(128, 2)),
    (1, 1, 1, 140, 200, 256, True, GluonTile(64, 2)),
]


def tensors(shape: tuple[Any, ...], seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values as views of one fused projection: heads within rows, gaps between rows."""
    batch, heads, key_heads, query_length, key_length, size = shape[:6]
    generator = torch.Generator().manual_seed(seed)
    length = max(query_length, key_length)
    fused = torch.randn(batch, length, (heads + 2 * key_heads), size, generator=generator).to(dtype).transpose(1, 2)
    q, k, v = fused.split([heads, key_heads, key_heads], 1)
    return q[:, :, :query_length], k[:, :, :key_length], v[:, :, :key_length]


@cache
def oracle(shape: tuple[Any, ...], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Output and log-sum-exp in float64."""
    q, k, v = (tensor.double() for tensor in tensors(shape, seed, dtype))
    return reference(q, k, v, causal=shape[6], scale=0.7 / math.sqrt(q.shape[3]))


def forward(
    shape: tuple[Any, ...], seed: int, dtype: torch.dtype = torch.bfloat16, kernel: Any = None, at_most: int = 3
) -> tuple[float, float]:
    """Relative error of out and absolute error of lse, NaN where anything was left unwritten, by few programs."""
    q, k, v = tensors(shape, seed, dtype)
    causal, tile = shape[6:]
    out, lse = torch.full_like(q, math.nan), torch.full(q.shape[:3], math.nan)
    scale = 0.7 / math.sqrt(q.shape[3])
    call = hopper.forward_arguments(q, k, v, out, lse, causal, scale * LOG2_E, tile)
    programs, arguments, constants = call
    arguments["section"] = min(arguments["section"], 3 * arguments["group"])  # more than one section
    kernel = kernel or hopper_forward.attention_forward_hopper
    launch(kernel, min(programs, at_most), arguments | constants, seed)
    exact = oracle(shape, seed, dtype)
    error = (out.double() - exact["out"]).norm() / exact["out"].norm()
    return float(error), float((lse.double() - exact["lse"]).abs().max())


def is_right(errors: tuple[float, float], dtype: torch.dtype = torch.bfloat16) -> bool:
    """Weights and output are rounded to ``dtype``, sums and lse are float32; NaN is wrong."""
    return errors[0] < torch.finfo(dtype).eps and errors[1] < 1e-5


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_forward_is_right_in_every_schedule(shape, seed):
    assert is_right(forward(shape, seed))


@pytest.mark.parametrize("programs", [1, 2, 5, 1000])
def test_any_number_of_programs(programs):
    assert is_right(forward((2, 4, 2, 200, 200, 64, True, GluonTile(64, 2)), 3, at_most=programs))
    assert is_right(forward((1, 2, 1, 300, 130, 256, False, GluonTile(64, 2)), 4, at_most=programs))


def test_float16():
    for shape in SHAPES[:6]:
        assert is_right(forward(shape, 2, torch.float16), torch.float16)


def test_a_run_can_be_repeated():
    assert forward(SHAPES[4], 7) == forward(SHAPES[4], 7)


# --- which tensors, which launch -------------------------------------------------------------------------------------


@pytest.fixture
def hopper_device(monkeypatch) -> None:
    """Tensors on the CPU count as on compute capability 9.0."""
    monkeypatch.setattr(tiles, "architecture", lambda device: 90)


def test_views_of_a_fused_projection_are_taken_as_they_are(hopper_device):
    q, k, v = tensors(SHAPES[4], 0, torch.float16)
    assert not q.is_contiguous()
    assert hopper.unsupported(q=q, k=k, v=v) is None
    described = hopper.described(q, 64)
    assert described.base is q
    assert described.strides == list(q.stride())


def test_what_tma_does_not_take_is_left_to_the_other_kernels(hopper_device):
    q = torch.zeros(2, 3, 8, 64, dtype=torch.bfloat16)
    shifted = torch.zeros(2 * 3 * 8 * 64 + 1, dtype=torch.bfloat16)[1:].view(2, 3, 8, 64)
    narrow = torch.zeros(2, 3, 8, 65, dtype=torch.bfloat16)[..., :64]
    for name, tensor in {"base": shifted, "row": narrow, "repeated": q[:, :1].expand(2, 3, 8, 64)}.items():
        assert "k is no multiple of 16 bytes above 0" in str(hopper.unsupported(q=q, k=tensor)), name
    for tensor in (q.float(), torch.zeros(1, 1, 8, 32, dtype=torch.float16)):
        assert "16 bits and head dimensions" in str(hopper.unsupported(q=tensor))
    one_row = torch.zeros(5, 64, dtype=torch.bfloat16).as_strided((1, 1, 1, 64), (3, 0, 1, 1))
    assert hopper.unsupported(q=one_row) is None
    assert hopper.described(one_row, 64).strides == [64, 64, 64, 1]


def test_other_devices_use_the_other_kernels():
    assert "compute capability 9.0" in str(hopper.unsupported(q=torch.zeros(1, 1, 8, 64, dtype=torch.float16)))


def test_the_environment_switches_gluon_off(hopper_device, monkeypatch):
    q = torch.zeros(1, 1, 8, 64, dtype=torch.float16)
    assert hopper.unsupported(q=q) is None
    monkeypatch.setenv("SCALEKERNELS_GLUON", "0")
    assert "switches" in str(hopper.unsupported(q=q))


def test_the_table_decides_and_gluon_can_be_refused(hopper_device, monkeypatch):
    launched = []
    monkeypatch.setattr(attention_launch, "_launch", lambda kernel, *rest: launched.append((kernel, rest[1])))
    monkeypatch.setattr(attention_launch, "_require", lambda *_: None)
    tile = GluonTile(64, 3)
    monkeypatch.setitem(hopper.FORWARD, (128, True, "short"), tile)
    q, k, v = tensors(SHAPES[2], 0, torch.bfloat16)
    for takes_gluon, descriptors in ((True, False), (False, False), (True, True)):
        attention_launch.forward(q, k, v, True, 1.0, descriptors, takes_gluon)
    gluon_kernel, kernel = hopper_forward.attention_forward_hopper, kernels.attention_forward
    assert [launch[0] for launch in launched] == [gluon_kernel, kernel, kernel]
    assert launched[0][1] == tile


def test_candidates_begin_with_the_tile_of_the_table_and_differ():
    for case, tile in hopper.FORWARD.items():
        listed = hopper.candidates(*case)
        assert listed[0] == tile
        assert len(set(listed)) == len(listed) > 1


def test_heads_side_by_side_share_the_cache():
    assert hopper.section(64, 8, 8192, 128, True) == 64  # eight key heads of 4 MiB, with eight query heads each
    assert hopper.section(64, 1, 8192, 128, True) == 8
    assert hopper.section(3, 1, 128, 64, True) == 3
    assert hopper.section(64, 4, 1 << 20, 128, True) == 4
    assert hopper.section(64, 4, 8192, 128, False) == 4


# --- broken copies ---------------------------------------------------------------------------------------------------

Q_RELEASE = "        if not SHARED_OUT:\n            mbarrier.arrive(q_empty.index(WHO), count=1)\n"
V_WAIT = "            mbarrier.wait(v_full.index(before), before_phase)\n"
K_WAIT = "            mbarrier.wait(k_full.index(slot), phase)\n"
K_RELEASE = "            mbarrier.arrive(k_empty.index(slot), count=1)\n"
V_RELEASE = "            mbarrier.arrive(v_empty.index(before), count=1)\n"
SCORES = "            scores = warpgroup_mma_wait(1, deps=(score_token,))\n"
VALUES = "            acc, raw = warpgroup_mma_wait(0, deps=(acc_token, raw))\n"
BROKEN = {
    "keys released before they are read": (SCORES + K_RELEASE, K_RELEASE + SCORES),
    "values released before they are read": (VALUES + V_RELEASE, V_RELEASE + VALUES),
    "no wait for values": (V_WAIT, ""),
    "no wait for keys": (K_WAIT, ""),
    "no wait for queries": ("        mbarrier.wait(q_full.index(WHO), q_phase)\n", ""),
    "queries released before they are read": (Q_RELEASE, "", "        for step in range(1, tiles):\n",
                                              Q_RELEASE + "        for step in range(1, tiles):\n"),
    "producer does not wait for queries to be read": (
        "            mbarrier.wait(q_empty.index(who), q_phase ^ 1)\n", ""),
    "no wait for the output before": ("        tma.store_wait(0)  # the output before has left its buffer\n", ""),
    "last values not released": ("        mbarrier.arrive(v_empty.index(slot), count=1)\n", ""),
    "producer does not wait for keys to be read": ("            mbarrier.wait(k_empty.index(slot), phase ^ 1)\n", ""),
    "wrong phase": ("mbarrier.wait(v_empty.index(before), before_phase ^ 1)",
                    "mbarrier.wait(v_empty.index(before), before_phase)"),
    "phase does not flip": ("phase = phase ^ 1", "phase = phase ^ 0"),
    "keys never released": (K_RELEASE, ""),
    "wait for scores too small": (SCORES, SCORES.replace("wait(1", "wait(2")),
    "wait for values too small": (VALUES, VALUES.replace("wait(0", "wait(1")),
    "one arrival too few is counted": ("mbarrier.init(v_empty.index(i), count=CONSUMERS)",
                                       "mbarrier.init(v_empty.index(i), count=1)"),
    "bytes of half a tile expected": ("mbarrier.expect(v_full.index(before), v_desc.block_type.nbytes)",
                                      "mbarrier.expect(v_full.index(before), v_desc.block_type.nbytes // 2)"),
    "no fence after the barriers are made": ("    fence_async_shared()\n\n    descriptors", "\n    descriptors"),
    "no fence before the output is stored": ("        fence_async_shared()\n        place", "        place"),
    "no wait for the last store": ("        turn_phase, q_phase = turn_phase ^ 1, q_phase ^ 1\n    tma.store_wait(0)\n",
                                   "        turn_phase, q_phase = turn_phase ^ 1, q_phase ^ 1\n"),
    "sum before the correction": ("total = total * correction + gl.sum(weights, 1)",
                                  "total = (total + gl.sum(weights, 1)) * correction"),
    "no correction": ("            acc = acc * gl.expand_dims(gl.convert_layout(correction",
                      "            acc = acc * 1.0 * gl.expand_dims(gl.convert_layout(correction * 0.0 + 1.0"),
    "correction of the tile before": (
        "            raw, correction, peak", "            raw, latest, peak",
        "            total = _hold(total)\n",
        "            total = _hold(total)\n            correction, stale = stale, latest\n",
        "        for step in range(1, tiles):\n",
        "        stale = total * 0.0 + 1.0\n        for step in range(1, tiles):\n"),
    "mask off by one": ("layout=rows_layout) + 1, key", "layout=rows_layout), key"),
    "mask lets the next key through": ("layout=rows_layout) + 1, key", "layout=rows_layout) + 2, key"),
    "end of the keys not masked": ("gl.full([ROWS], key_length, gl", "gl.full([ROWS], key_length + 1, gl"),
    "one tile too few is masked": ("masked = tiles - whole", "masked = tiles - whole - 1"),
    "rows without keys yet are NaN": ('shift = gl.where(new_peak == float("-inf"), 0.0, new_peak)', "shift = new_peak"),
    "weights of the wrong tile": ("values = v_bufs.index(before)", "values = v_bufs.index(slot)"),
    "lse natural": ("peak + gl.log2(total)", "peak + gl.log(total)"),
    "turns out of step": ("(1 if WHO == 0 else 0)", "1"),
    "heads of the group mixed up": ("key_head = head // group", "key_head = head % group"),
    "output of the wrong rows": ("index % query_heads, row0, 0]", "index % query_heads, row0 + 1, 0]"),
}  # fmt: skip
BROKEN_SHAPES = [
    (1, 4, 2, 200, 390, 64, True, GluonTile(64, 2)),
    (1, 2, 1, 129, 390, 64, False, GluonTile(64, 2)),
]  # ten and four tiles of queries for three programs


@pytest.fixture
def changed() -> Callable[..., Any]:
    """Return the kernel with pieces of its source replaced: old, new, old, new ..."""

    def change(*replacements: str) -> Any:
        source = Path(hopper_forward.__file__).read_text(encoding="utf-8")
        for old, new in zip(replacements[::2], replacements[1::2], strict=True):
            assert source.count(old) == 1, f"{source.count(old)} times in the source: {old}"
            source = source.replace(old, new)
        return load_changed(source).attention_forward_hopper

    return change


def works(shape: tuple[Any, ...], seed: int, kernel: Any) -> bool:
    try:
        return is_right(forward(shape, seed, kernel=kernel))
    except (HazardError, DeadlockError):
        return False


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_copy_fails(name, changed):
    kernel = changed(*BROKEN[name])
    assert not all(works(shape, seed, kernel) for shape in BROKEN_SHAPES for seed in range(3))


def test_the_shapes_of_the_broken_copies_are_right_without_a_change():
    kernel = hopper_forward.attention_forward_hopper
    assert all(works(shape, seed, kernel) for shape in BROKEN_SHAPES for seed in range(3))
