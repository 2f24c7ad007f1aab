"""Linear cross entropy and the norms without a GPU or the interpreter: refusals, memory rule, costs, tables."""

from __future__ import annotations

import importlib.util
from itertools import pairwise

import check_case
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scalekernels import cross_entropy, norm
from scalekernels.cross_entropy import linear_cross_entropy
from scalekernels.cross_entropy.memory import chunk_tokens, plan, row_length
from scalekernels.norm.kernels import BACKWARD_TILES, FORWARD_TILES, WIDE_TILE, WIDEST, tile_for
from scalekernels.providers import Unsupported

MODULES = pytest.mark.parametrize("module", [cross_entropy, norm], ids=["cross_entropy", "norm"])
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    "call",
    [
        lambda: norm.rms_norm(torch.ones(2, 3)),
        lambda: norm.layer_norm(torch.ones(2, 3), torch.ones(3), torch.ones(3)),
        lambda: linear_cross_entropy(torch.ones(2, 3), torch.ones(5, 3), torch.zeros(2, dtype=torch.int64)),
    ],
)
def test_a_tensor_on_the_cpu_is_refused_by_name(call):
    with pytest.raises(ValueError, match=r"x is on cpu; the fused kernels take CUDA tensors \(TRITON_INTERPRET=1"):
        call()


@given(st.integers(0, 300_000), st.integers(1, 300_000), st.sampled_from(DTYPES))
def test_chunks_cover_the_tokens_within_the_memory_rule(tokens, classes, dtype):
    chunk = chunk_tokens(tokens, classes, dtype)
    assert 1 <= chunk <= min(8192, max(tokens, 1))
    workspace = chunk * row_length(classes) * dtype.itemsize
    assert workspace <= 272 * 2**20 or chunk <= 2048
    assert 0 <= row_length(classes) - classes < 64
    if tokens:
        last = tokens - (-(-tokens // chunk) - 1) * chunk
        assert last > chunk - 128 * -(-tokens // chunk)  # chunks are of one size but for what rounding them up takes


@pytest.mark.parametrize(
    ("tokens", "classes", "dtype", "chunk"),
    [
        (8192, 50257, torch.bfloat16, 2816),
        (8192, 50257, torch.float32, 2048),
        (8192, 256, torch.bfloat16, 8192),
        (9000, 256, torch.bfloat16, 4608),
        (2049, 50257, torch.bfloat16, 2049),
        (2849, 50257, torch.bfloat16, 1536),
        (65536, 16384, torch.bfloat16, 8192),
        (100, 50257, torch.bfloat16, 100),
    ],
)
def test_chunks_of_known_sizes(tokens, classes, dtype, chunk):
    assert chunk_tokens(tokens, classes, dtype) == chunk


def eager_bytes(tokens: int, width: int, classes: int, size: int) -> int:
    """What the eager path holds above inputs and returned gradients: three tensors of all logits, before those exist.

    The interpreted test of the peak measures this, and that ours holds what its plan says.
    """
    return size * (3 * tokens * classes - width * (tokens + classes))


@pytest.mark.parametrize("width", [768, 1024, 1536, 2048, 3072, 4096])
def test_bfloat16_memory_is_a_sixth_of_the_full_logits(width):
    tokens, classes = 8192, 50257
    planned = plan(tokens, width, classes, torch.bfloat16)
    workspace, weight = planned.tokens * row_length(classes) * 2, classes * width
    exact = width <= 1536
    assert planned.accumulator == (torch.float32 if exact else torch.bfloat16)
    assert planned.peak_bytes == (max(workspace + 2 * weight, 4 * weight) if exact else workspace)
    assert 6 * planned.peak_bytes <= eager_bytes(tokens, width, classes, 2) <= 6 * tokens * classes


@given(st.integers(0, 300_000), st.integers(1, 20_000), st.integers(1, 300_000), st.sampled_from(DTYPES))
def test_a_plan_rounds_only_where_that_saves_memory_and_four_times_at_most(tokens, width, classes, dtype):
    planned = plan(tokens, width, classes, dtype)
    row, weight, chunk = row_length(classes) * dtype.itemsize, width * classes, chunk_tokens(tokens, classes, dtype)
    tokens_at_once = planned.tokens if planned.accumulator == torch.float32 else chunk
    exact = tokens_at_once * row if dtype == torch.float32 else max(tokens_at_once * row + 2 * weight, 4 * weight)
    small = 6 * exact <= eager_bytes(tokens, width, classes, dtype.itemsize)
    if planned.accumulator == torch.float32:
        assert planned.tokens == chunk or (small and 2048 <= planned.tokens < chunk and dtype == torch.bfloat16)
        assert planned.peak_bytes == exact
        rounded = max(chunk, -(-tokens // 4) + 127) * row  # at most: chunks are multiples of 128 tokens
        assert small or dtype != torch.bfloat16 or exact <= rounded
    else:
        assert dtype == planned.accumulator == torch.bfloat16
        assert not small
        assert chunk <= planned.tokens <= max(tokens, 1) <= 4 * planned.tokens
        assert planned.peak_bytes == planned.tokens * row < exact


@pytest.mark.parametrize(
    ("shape", "dtype", "chunks", "accumulator"),
    [
        ((8192, 4096, 50257), torch.bfloat16, 3, torch.bfloat16),
        ((8192, 1024, 50257), torch.bfloat16, 3, torch.float32),
        ((8192, 1536, 50257), torch.bfloat16, 4, torch.float32),  # three chunks would be more than a sixth
        ((8192, 4096, 50257), torch.float16, 3, torch.float32),  # a sum of gradients may leave its range
        ((65536, 4096, 50257), torch.bfloat16, 24, torch.float32),  # a sixth is more, and four chunks would be large
        ((2048, 768, 50257), torch.bfloat16, 1, torch.bfloat16),  # one product, one rounding
        ((65536, 768, 256), torch.bfloat16, 8, torch.float32),
        ((0, 8, 10), torch.bfloat16, 0, torch.bfloat16),
    ],
)
def test_plans_of_known_shapes(shape, dtype, chunks, accumulator):
    planned = plan(*shape, dtype)
    assert (-(-shape[0] // planned.tokens), planned.accumulator) == (chunks, accumulator)


def test_costs():
    case = cross_entropy.Case(8192, 768, 50257, torch.bfloat16)
    forward, both = cross_entropy.cost(case, False), cross_entropy.cost(case, True)
    assert (forward.flops, both.flops) == (2 * 8192 * 768 * 50257, 6 * 8192 * 768 * 50257)
    assert forward.bytes_read == both.bytes_read == 2 * 768 * (8192 + 50257) + 8 * 8192
    assert (forward.bytes_written, both.bytes_written) == (4, 4 + 2 * 768 * (8192 + 50257))
    plain = norm.Case("rms", 16384, 4096, False, torch.bfloat16)
    rows = 16384 * 4096 * 2
    assert norm.cost(plain, False).bytes_moved == 2 * rows + 4096 * 2 + 16384 * 4
    assert norm.cost(plain, True).bytes_moved == 3 * rows + 2 * 4096 * 2 + 16384 * 4
    summed = norm.Case("layer", 16384, 4096, True, torch.bfloat16)
    assert norm.cost(summed, False).bytes_moved == 4 * rows + 2 * 4096 * 2 + 2 * 16384 * 4
    assert norm.cost(summed, True).bytes_moved == 4 * rows + 3 * 4096 * 2 + 2 * 16384 * 4


def test_ladders():
    assert [case.width for case in cross_entropy.LADDER] == [768, 1024, 2048, 4096]
    assert {(case.tokens, case.classes, case.dtype) for case in cross_entropy.LADDER} == {(8192, 50257, torch.bfloat16)}
    assert {(case.rows, case.dtype) for case in norm.LADDER} == {(16384, torch.bfloat16)}
    assert {(c.kind, c.residual, c.width) for c in norm.LADDER} == {
        (kind, residual, width)
        for kind in ("rms", "layer")
        for residual in (False, True)
        for width in (768, 1024, 2048, 4096, 8192)
    }


def test_the_check_on_a_gpu_sums_over_chunks_in_both_ways():
    expected = [(8, torch.float32), (3, torch.bfloat16)]
    for case, (chunks, accumulator) in zip(cross_entropy.LARGER[: len(expected)], expected, strict=True):
        planned = plan(case.tokens, case.width, case.classes, case.dtype)
        assert (-(-case.tokens // planned.tokens), planned.accumulator) == (chunks, accumulator)
    assert set(cross_entropy.LARGER) < set(check_case.cases(cross_entropy, ["bfloat16"], larger=True))
    assert not set(cross_entropy.LARGER) & set(check_case.cases(cross_entropy, ["bfloat16"], larger=False))


@MODULES
def test_labels_tell_cases_and_configurations_apart(module):
    cases = (*module.CASES, *module.LADDER)
    assert len({case.label for case in cases}) == len(cases)
    for arch in (80, 90, 100):
        configurations = list(module.compilations(arch))
        assert len({(configuration.kernel, configuration.label) for configuration in configurations}) == len(
            configurations
        )
        for configuration in configurations:
            assert list(configuration.signature) == configuration.function.arg_names
            assert {name for name, kind in configuration.signature.items() if kind == "constexpr"} == set(
                configuration.constants
            )
            assert set(configuration.aligned) <= set(configuration.signature) - set(configuration.constants)


@pytest.mark.parametrize("tiles", [FORWARD_TILES, BACKWARD_TILES], ids=["forward", "backward"])
def test_every_width_has_a_tile_that_holds_it(tiles):
    assert all(block == tile.block for block, tile in tiles.items())
    assert all(small < large for small, large in pairwise(tiles))
    assert max(tiles) == WIDEST
    for width in (1, 127, 128, 129, 768, 8191, 8192):
        assert tile_for(tiles, width).block >= width
        assert tile_for(tiles, width).block <= 2 * max(width, 64)
    assert tile_for(tiles, 8193) == WIDE_TILE
    assert all(tile.programs > 0 for tile in BACKWARD_TILES.values())


@MODULES
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_pytorch_providers_agree_with_the_reference(module, backward):
    """The oracle itself: PyTorch's own functions land where ``reference`` does."""
    for case in module.CASES:
        if case.dtype != torch.float32:
            continue
        inputs = module.inputs(case)
        exact = module.results(case, inputs, backward)
        for name in ("eager", "torch-fused"):
            provider = module.providers().get(name)
            try:
                outputs = provider.prepare(case, inputs, backward)() if provider else exact
            except Unsupported:
                continue
            assert outputs.keys() == exact.keys()
            for key, oracle in exact.items():
                assert outputs[key].shape == inputs.get(key, oracle).shape
                assert (outputs[key].double() - oracle).abs().max() <= 1e-4 * oracle.abs().max().clamp(min=1)


@MODULES
def test_inputs_repeat_and_follow_the_seed(module):
    case = module.CASES[1]
    first, again, other = (module.inputs(case, seed=seed) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["x"], other["x"])
    assert any(name.startswith("grad_") for name in first)


def test_providers_say_why_they_cannot_run():
    plain, capped = cross_entropy.CASES[0], cross_entropy.CASES[3]
    assert list(cross_entropy.providers()) == ["eager", "compiled", "torch-fused", "liger", "triton"]
    assert list(norm.providers()) == ["eager", "compiled", "liger", "triton"]
    has_fused = hasattr(F, "linear_cross_entropy")
    with pytest.raises(
        Unsupported, match="softcap" if has_fused else "has no torch.nn.functional.linear_cross_entropy"
    ):
        cross_entropy.providers()["torch-fused"].prepare(capped, cross_entropy.inputs(capped), True)
    if importlib.util.find_spec("liger_kernel") is None:
        with pytest.raises(Unsupported, match="liger_kernel is not installed"):
            cross_entropy.providers()["liger"].prepare(plain, cross_entropy.inputs(plain), True)
        with pytest.raises(Unsupported, match="liger_kernel is not installed"):
            norm.providers()["liger"].prepare(norm.CASES[0], norm.inputs(norm.CASES[0]), False)
