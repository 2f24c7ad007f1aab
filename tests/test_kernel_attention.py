"""Attention under Triton's interpreter: forward and both backward passes against float64, and what must not pass."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_support import assert_accurate, inaccuracy, install_mutant, poisoned
from scalekernels.attention import (
    CASES,
    Case,
    attention,
    attention_over_cache,
    cost,
    inputs,
    providers,
    reference,
    results,
    terms,
)
from scalekernels.attention import descriptors as attention_descriptors
from scalekernels.attention import kernels as attention_kernels
from scalekernels.attention import launch as attention_launch
from scalekernels.attention import tiles as attention_tiles
from scalekernels.attention import tuning as attention_tuning
from scalekernels.attention.descriptors import undescribed
from scalekernels.attention.tiles import Tile
from scalekernels.providers import Unsupported
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from triton.tools.tensor_descriptor import TensorDescriptor

PROVIDERS = providers()
TRITON_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@contextmanager
def tiles_of(block_m: int, block_n: int) -> Iterator[None]:
    """Launch with tiles so small that short sequences have many of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(attention_tiles, "tile_for", lambda kind, row: Tile(block_m, block_n, 1, 1))
        yield


@pytest.fixture
def small_tiles() -> Iterator[None]:
    with tiles_of(16, 16):
        yield


def failure(case: Case, provider: str, backward: bool) -> str | None:
    """Why a provider fails the acceptance rule on a case; its outputs are poisoned before it writes them."""
    given = inputs(case)
    with poisoned():
        ours = PROVIDERS[provider].prepare(case, given, backward)()
    theirs = PROVIDERS["eager"].prepare(case, given, backward)()
    return inaccuracy(ours, theirs, results(case, given, backward), terms=terms(case, given, backward))


@pytest.mark.parametrize("provider", ["triton", "triton-descriptors"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_forward(case, provider):
    assert failure(case, provider, backward=False) is None


@pytest.mark.parametrize("provider", ["triton", "triton-atomic", "triton-descriptors"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_backward(case, provider):
    assert failure(case, provider, backward=True) is None


# Shrinking would run the slow interpreter for minutes; the example found says enough.
@settings(max_examples=6, deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
@given(
    query_length=st.integers(1, 45),
    key_length=st.integers(1, 45),
    group=st.integers(1, 3),
    causal=st.booleans(),
    block_m=st.sampled_from([16, 32]),
    block_n=st.sampled_from([16, 32]),
    dtype=st.sampled_from([torch.float16, torch.float32]),
)
def test_any_lengths(query_length, key_length, group, causal, block_m, block_n, dtype):
    case = Case(1, group, 1, query_length, key_length, 16, causal, dtype)
    with tiles_of(block_m, block_n):
        assert failure(case, "triton", backward=False) is None
        assert failure(case, "triton-descriptors", backward=False) is None
        assert failure(case, "triton", backward=True) is None
        assert failure(case, "triton-atomic", backward=True) is None
        assert failure(case, "triton-descriptors", backward=True) is None


@pytest.fixture
def loads(monkeypatch) -> list[bool]:
    """Whether each forward launch loaded keys and values through descriptors."""
    seen, launch = [], attention_launch._launch

    def note(kernel, programs, tile, arguments, constants):
        if "DESCRIPTORS" in constants:
            assert isinstance(arguments["k"], TensorDescriptor) == constants["DESCRIPTORS"]
            seen.append(constants["DESCRIPTORS"])
        launch(kernel, programs, tile, arguments, constants)

    monkeypatch.setattr(attention_launch, "_launch", note)
    return seen


@pytest.mark.parametrize("causal", [False, True])
def test_descriptors_of_views_read_the_same_bits_as_pointers(small_tiles, loads, causal):
    """Heads within rows, gaps between rows and heads, and NaN in the rows that lie beyond the end of a head."""
    generator = torch.Generator().manual_seed(6)
    q = torch.randn(2, 4, 37, 16, generator=generator)
    k = torch.randn(2, 45, 2, 16, generator=generator).transpose(1, 2)  # (B, T, H, D) in memory
    v = torch.full((2, 2, 64, 32), torch.nan)
    v[:, :, :45, :16] = torch.randn(2, 2, 45, 16, generator=generator)
    v = v[:, :, :45, :16]
    expected, lse = torch.ops.scalekernels.attention(q, k, v, causal, 0.25, True)
    found, found_lse = torch.ops.scalekernels.attention(q, k, v, causal, 0.25, True, True)
    assert loads == [False, True]
    assert expected.isfinite().all()
    torch.testing.assert_close((found, found_lse), (expected, lse), rtol=0, atol=0)


def test_what_descriptors_cannot_describe_goes_through_pointers(small_tiles, loads):
    memory = torch.randn(2 * 2 * 20 * 20 + 1, generator=torch.Generator().manual_seed(7), dtype=torch.float32).half()
    dense = memory[:1280].view(2, 2, 20, 16)
    others = {
        "base": memory[1:1281].view(2, 2, 20, 16),
        "stride": memory[:1600].view(2, 2, 20, 20)[..., :16],
        "stride of 0": dense[:, :1].expand(2, 2, 20, 16),
    }
    case = Case(2, 2, 2, 20, 20, 16, False, torch.float16)
    for other in others.values():
        for name, k, v in (("k", other, dense), ("v", dense, other)):
            found = attention(dense, k, v, descriptors=True)
            torch.testing.assert_close(found, attention(dense, k, v), rtol=0, atol=0)
            with pytest.raises(Unsupported, match=f"of {name} is no multiple of 16 bytes"):
                PROVIDERS["triton-descriptors"].prepare(case, {"q": dense, "k": k, "v": v}, False)
    assert not any(loads)


def test_gradients_by_descriptors_are_the_same_bits(small_tiles, loads):
    given = inputs(Case(1, 2, 1, 33, 40, 16, True, torch.float32))
    grad_out = given.pop("grad_out")
    tensors = [given[name].requires_grad_() for name in ("q", "k", "v")]
    found = gradients(*tensors, grad_out, causal=True, descriptors=True)
    torch.testing.assert_close(found, gradients(*tensors, grad_out, causal=True), rtol=0, atol=0)
    assert loads == [True, True, False, False]  # the forward pass and that for dQ, each way


def test_on_blackwell_a_tensor_with_gaps_is_not_described(monkeypatch):
    gaps = torch.zeros(2, 2, 20, 32)[..., :16]
    assert undescribed(k=gaps, v=gaps.contiguous()) is None
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: 100)
    assert undescribed(k=gaps.contiguous(), v=gaps) == "v has gaps in memory"
    assert undescribed(k=gaps.contiguous().transpose(0, 1), v=gaps.contiguous().transpose(1, 2)) is None


@pytest.mark.parametrize(
    ("arch", "dtype", "size"), [(80, torch.float16, 64), (90, torch.float32, 64), (90, torch.float16, 32)]
)
def test_descriptors_serve_what_was_compiled_without_spills(monkeypatch, arch, dtype, size):
    monkeypatch.setattr(attention_descriptors, "INTERPRETED", False)
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: arch)
    assert "serve compute capability" in undescribed(k=torch.zeros(1, 1, 8, size, dtype=dtype))
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: 90)
    assert undescribed(k=torch.zeros(1, 1, 8, 64, dtype=torch.float16)) is None


def test_log_sum_exp_is_kept_in_base_two(small_tiles):
    given = inputs(Case(1, 2, 1, 21, 35, 16, True, torch.float32))
    q, k, v = given["q"], given["k"], given["v"]
    with poisoned():
        _, lse = torch.ops.scalekernels.attention(q, k, v, True, 0.25, True)
    exact = reference(q.double(), k.double(), v.double(), causal=True, scale=0.25)["lse"]
    assert_accurate({"lse": lse}, {}, {"lse": exact})


@pytest.mark.parametrize("scale", [0.01, 3.0])
def test_scale_and_scores_far_from_zero(small_tiles, scale):
    """Scores in the hundreds overflow exp2 unless the running maximum and its correction are right."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 1, 40, 16, generator=generator) * 6 for _ in range(3))
    exact = reference(q.double(), k.double(), v.double(), scale=scale)["out"]
    theirs = reference(q, k, v, scale=scale)["out"]
    assert_accurate({"out": attention(q, k, v, scale=scale)}, {"out": theirs}, {"out": exact})


def gradients(q: Tensor, k: Tensor, v: Tensor, grad_out: Tensor, **options: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(attention(q, k, v, **options), (q, k, v), grad_out)


@pytest.mark.parametrize("deterministic", [True, False])
def test_views_give_the_same_as_copies_and_gradients_in_their_layout(small_tiles, deterministic):
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 19, 4, 16, generator=generator).transpose(1, 2).requires_grad_()  # (B, T, H, D) in memory
    k = torch.randn(2, 2, 46, 40, generator=generator)[:, :, ::2, 8:24].requires_grad_()  # gaps between rows
    v = torch.randn(23, 2, 2, 16, generator=generator).permute(1, 2, 0, 3).requires_grad_()  # (T, B, H, D) in memory
    grad_out = torch.randn(2, 4, 19, 32, generator=generator)[..., ::2]  # not even contiguous in its last dimension
    options = {"causal": True, "deterministic": deterministic}
    copies = [tensor.detach().contiguous().requires_grad_() for tensor in (q, k, v)]
    out = attention(q, k, v, **options)
    torch.testing.assert_close(out, attention(*copies, **options), rtol=0, atol=0)
    assert out.stride() == q.stride()
    with poisoned():
        found = torch.autograd.grad(out, (q, k, v), grad_out)
    expected = gradients(*copies, grad_out.contiguous(), **options)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert (found[0].stride(), found[2].stride()) == (q.stride(), v.stride())


def test_expanded_inputs_and_the_gradient_of_a_sum(small_tiles):
    """A stride of zero, in an input and in the gradient of a sum, in every dimension of that."""
    q = torch.randn(2, 2, 17, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    k = torch.randn(1, 1, 17, 16, generator=torch.Generator().manual_seed(4)).expand(2, 2, 17, 16)
    (found,) = torch.autograd.grad(attention(q, k, k).sum(), q)
    (expected,) = torch.autograd.grad(attention(q, k.clone(), k.clone()).sum(), q)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qv", "kv"])
@pytest.mark.parametrize("deterministic", [True, False])
def test_gradients_not_asked_for_are_not_computed(small_tiles, monkeypatch, wanted, deterministic):
    given = inputs(Case(1, 2, 1, 20, 20, 16, True, torch.float32))
    grad_out = given.pop("grad_out")
    all_of_them = dict(zip("qkv", gradients(*(one.requires_grad_() for one in given.values()), grad_out), strict=True))
    some = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in given.items()}
    launched = []
    launch = attention_launch._launch
    monkeypatch.setattr(
        attention_launch, "_launch", lambda kernel, *rest: launched.append(kernel) or launch(kernel, *rest)
    )
    out = attention(**some, deterministic=deterministic)
    out.backward(grad_out)
    full = reference(**{name: tensor.detach().double() for name, tensor in some.items()})
    assert out.shape == full["out"].shape
    for name, tensor in some.items():
        assert (tensor.grad is not None) == (name in wanted)
    assert (attention_kernels.attention_backward_queries in launched) == (
        "q" in wanted and (deterministic or wanted == "q")
    )
    assert (attention_kernels.attention_backward_keys in launched) == (wanted != "q")
    assert all_of_them.keys() == some.keys()


def test_repeats_are_bitwise_the_same(small_tiles):
    case = Case(1, 2, 1, 40, 37, 16, True, torch.float16)
    given = inputs(case)
    first, second = (PROVIDERS["triton"].prepare(case, given, True)() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_offsets_beyond_two_to_the_31_elements(small_tiles, tmp_path):
    """Rows of one tile lie 2^30 elements apart in a sparse file: 32-bit products of row and stride would wrap."""
    apart, rows = 2**30 + 16, 4
    memory = torch.from_file(str(tmp_path / "sparse"), True, apart * rows, dtype=torch.float16)
    generator = torch.Generator().manual_seed(5)
    views = [memory.as_strided((1, 1, rows, 16), (apart, apart, apart, 1), offset) for offset in (0, 16, 32)]
    dense = [view.copy_(torch.randn(1, 1, rows, 16, generator=generator)).clone() for view in views]
    torch.testing.assert_close(attention(*views), attention(*dense), rtol=0, atol=0)
    heads = [view.transpose(1, 2) for view in views]  # the same distances between heads
    torch.testing.assert_close(attention(*heads), attention(*(one.transpose(1, 2) for one in dense)), rtol=0, atol=0)
    given = [view.requires_grad_() for view in views]
    expected = [one.requires_grad_() for one in dense]
    grad_out = torch.randn(1, 1, rows, 16, generator=generator).half()
    torch.testing.assert_close(gradients(*given, grad_out), gradients(*expected, grad_out), rtol=0, atol=0)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (7, 40), (33, 34), (21, 21)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_queries_over_a_cache_are_the_last_rows_of_causal_attention(small_tiles, queries, keys, dtype):
    """The oracle aligns at the top left, where queries and keys are of one length: all queries, of which the last."""
    given = inputs(Case(2, 4, 2, keys, keys, 16, True, dtype))
    q, k, v = given["q"], given["k"], given["v"]
    exact = reference(q.double(), k.double(), v.double(), causal=True, scale=0.3)["out"][:, :, -queries:]
    theirs = reference(q, k, v, causal=True, scale=0.3)["out"][:, :, -queries:]
    with poisoned():
        ours = attention_over_cache(q[:, :, -queries:], k, v, scale=0.3)
    assert ours.dtype == dtype
    assert_accurate({"out": ours}, {"out": theirs}, {"out": exact})


def test_what_a_cache_cannot_be_is_refused(small_tiles):
    q, k = torch.randn(1, 1, 3, 16, requires_grad=True), torch.randn(1, 1, 5, 16)
    with pytest.raises(ValueError, match="q has length 3 and k 2; the queries must be the last of the keys"):
        attention_over_cache(q, k[:, :, :2], k[:, :, :2])
    with pytest.raises(RuntimeError, match="have no gradient"):
        attention_over_cache(q, k, k)
    (found,) = torch.autograd.grad(attention_over_cache(q[:, :, 2:], k, k).sum(), q)
    (expected,) = torch.autograd.grad(reference(q[:, :, 2:], k, k)["out"].sum(), q)
    torch.testing.assert_close(found, expected)


MUTATIONS = {
    "mask one key too narrow": ("(keys <= rows)", "(keys < tl.maximum(rows, 1))"),
    "mask one key too wide": ("(keys <= rows)", "(keys <= rows + 1)"),
    "one key beyond the end": ("seen = keys < key_length", "seen = keys <= key_length"),
    "accumulator not rescaled": ("acc = acc * correction[:, None]", "acc = acc"),
    "weights not rescaled": ("total = total * correction +", "total = total +"),
    "whole tiles one too many": ("(first_row + 1) // BLOCK_N", "(first_row + BLOCK_N) // BLOCK_N"),
    "keys: delta forgotten": ("(dweights - delta[None, :])", "dweights"),
    "keys: scale forgotten": ("(grad_k * scale)", "grad_k"),
    "keys: one query head for the whole group": ("index * group + step // wholes", "index * group"),
    "keys: diagonal tiles not masked": ("tl.cdiv(first_key + BLOCK_N - 1, BLOCK_M)", "first_key // BLOCK_M"),
    "queries: delta forgotten": ("(dweights - delta[:, None])", "dweights"),
    "queries: scale forgotten": ("(grad_q * scale)", "grad_q"),
}


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails(small_tiles, monkeypatch, tmp_path, mutation):
    case = Case(1, 2, 1, 50, 45, 16, True, torch.float32)
    install_mutant(monkeypatch, tmp_path, attention_kernels, *MUTATIONS[mutation])
    assert failure(case, "triton", backward=":" in mutation) is not None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("index // query_heads, index % query_heads // group", "index // query_heads, 0"),
        ("index // query_heads, index % query_heads // group", "0, index % query_heads // group"),
        ("[batch, head, first, 0]", "[batch, head, first + 1, 0]"),
    ],
)
def test_a_broken_load_by_descriptors_fails(small_tiles, monkeypatch, tmp_path, old, new):
    """Pointers, which read none of this, stay right."""
    case = Case(2, 4, 2, 18, 20, 16, True, torch.float32)
    install_mutant(monkeypatch, tmp_path, attention_kernels, old, new)
    for backward in (False, True):
        assert failure(case, "triton-descriptors", backward) is not None
        assert failure(case, "triton", backward) is None


@pytest.mark.parametrize(
    ("old", "new"), [("tile * scale", "tile"), ("if first_key + BLOCK_N > key_length:", "if first_key < 0:")]
)
def test_a_broken_atomic_pass_fails(small_tiles, monkeypatch, tmp_path, old, new):
    """Both mutations leave dK and dV alone; keys beyond the end, where not masked, add infinity times zero to dQ."""
    case = Case(1, 1, 1, 48, 33, 16, False, torch.float32)
    given = inputs(case)
    given["q"] = given["q"].abs() * 40
    given["k"] = -given["k"].abs() * 40  # all scores far below zero, so that a score of zero is far too much
    with poisoned():
        ours = PROVIDERS["triton-atomic"].prepare(case, given, True)()
    theirs = PROVIDERS["eager"].prepare(case, given, True)()
    exact = results(case, given, True)
    assert inaccuracy(ours, theirs, exact) is None
    install_mutant(monkeypatch, tmp_path, attention_kernels, old, new)
    with poisoned(), warnings.catch_warnings(action="ignore"):  # the interpreter speaks of the overflow
        ours = PROVIDERS["triton-atomic"].prepare(case, given, True)()
    assert (inaccuracy(ours, theirs, exact) or "").startswith("grad_q")


def test_operators_pass_opcheck(small_tiles):
    q = torch.randn(1, 2, 7, 16, requires_grad=True)
    k, v = (torch.randn(1, 1, 9, 16, requires_grad=True) for _ in range(2))
    torch.library.opcheck(torch.ops.scalekernels.attention.default, (q, k, v, True, 0.25, True))
    q, k, v = q.detach(), k.detach(), v.detach()
    out, lse = torch.ops.scalekernels.attention(q, k, v, True, 0.25, True)
    for needs in ((True, True), (True, False), (False, True)):
        arguments = (out, q, k, v, out, lse, True, 0.25, True, *needs)
        torch.library.opcheck(torch.ops.scalekernels.attention_backward.default, arguments)


def test_compile_keeps_one_graph(small_tiles):
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attention(q * 2, k, v, causal=True).square().sum()

    given = inputs(Case(1, 2, 1, 18, 18, 16, True, torch.float32))
    tensors = [given[name].requires_grad_() for name in ("q", "k", "v")]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    found = torch.autograd.grad(compiled(*tensors), tensors)
    torch.testing.assert_close(found, torch.autograd.grad(function(*tensors), tensors))


def test_counters_see_the_flops(small_tiles):
    case = Case(2, 4, 2, 10, 12, 16, True, torch.float32)
    given = inputs(case)
    tensors = [given[name].requires_grad_() for name in ("q", "k", "v")]
    with FlopCounterMode(display=False) as counter:
        out = attention(*tensors, causal=True)
    assert counter.get_total_flops() == cost(case, backward=False).flops == 2 * 2 * 4 * 10 * 12 * 16
    with FlopCounterMode(display=False) as counter:
        out.backward(given["grad_out"])
    assert counter.get_total_flops() == cost(case, backward=True).flops


def test_a_second_derivative_is_refused(small_tiles):
    q = torch.randn(1, 1, 3, 16, requires_grad=True)
    (first,) = torch.autograd.grad(attention(q, q, q).square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        first.sum().backward()


def test_bfloat16_is_refused_by_the_interpreter():
    q = torch.randn(1, 1, 3, 16, dtype=torch.bfloat16)
    with pytest.raises(TypeError, match="allowed there: float16, float32"):
        attention(q, q, q)
    with pytest.raises(Unsupported, match="bfloat16"):
        PROVIDERS["triton"].prepare(Case(1, 1, 1, 3, 3, 16, False, torch.bfloat16), {}, False)
    with pytest.raises(Unsupported, match="backward pass alone"):
        PROVIDERS["triton-atomic"].prepare(CASES[0], {}, False)


def test_autotuning_takes_the_fastest_that_agrees(monkeypatch):
    """A candidate that is quick and wrong loses, NaN included; the quickest right one wins."""
    shipped, wrong, undefined, quick = (Tile(16, 16, 1, stages) for stages in (1, 2, 3, 4))
    results = {shipped: 1.0, wrong: 1.01, undefined: float("nan"), quick: 1.0 + 1e-7}
    seconds = {shipped: 3.0, wrong: 1.0, undefined: 1.0, quick: 2.0}
    monkeypatch.setattr(attention_tuning, "_seconds", lambda tile, launch: seconds[tile])
    launch = lambda tile: (torch.full((4,), results[tile]),)  # noqa: E731
    assert attention_tuning.fastest(shipped, [wrong, undefined, quick], launch) == quick
    assert attention_tuning.fastest(shipped, [wrong, undefined], launch) == shipped


def test_autotuning_is_asked_for_by_the_environment(monkeypatch):
    monkeypatch.setattr(attention_tuning, "CANDIDATES", (Tile(16, 16, 4, 2), Tile(32, 16, 4, 2)))
    monkeypatch.setattr(attention_tuning, "_winners", {})
    case = Case(1, 1, 1, 33, 20, 16, True, torch.float32)
    assert failure(case, "triton", backward=True) is None
    assert not attention_tuning._winners
    monkeypatch.setenv("SCALEKERNELS_AUTOTUNE", "1")
    assert failure(case, "triton", backward=True) is None
    assert {kind for kind, *_ in attention_tuning._winners} == {"forward", "keys", "queries"}
    assert all(tile.warps <= 2 for tile in attention_tuning._winners.values())


def test_mutants_leave_no_trace(tmp_path: Path):
    """A mutation whose text is not in the kernel fails instead of testing nothing."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="occurs 0 times"):
        install_mutant(patch, tmp_path, attention_kernels, "no such text", "")
