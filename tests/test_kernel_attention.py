"""Attention under the interpreter, forward and backward, against float64: shapes, layouts, caches."""

from __future__ import annotations

import pytest
import torch
from attention_support import (
    PROVIDERS,
    failure,
    gradients,
    small_tiles,  # noqa: F401 - a fixture
    tiles_of,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from kernel_support import assert_accurate, poisoned
from scalekernels.attention import (
    CASES,
    Case,
    attention,
    attention_over_cache,
    inputs,
    reference,
)
from scalekernels.attention import kernels as attention_kernels
from scalekernels.attention import launch as attention_launch
from torch.nn.functional import scaled_dot_product_attention

TRITON_TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@pytest.mark.parametrize("provider", ["triton", "triton-descriptors"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_forward(case, provider):
    assert failure(case, provider, backward=False) is None


@pytest.mark.parametrize("provider", ["triton", "triton-atomic", "triton-descriptors"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.label)
def test_backward(case, provider):
    assert failure(case, provider, backward=True) is None


# Shrinking would run the slow interpreter for minutes; the example found says enough.
@pytest.mark.slow
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


@pytest.mark.usefixtures("small_tiles")
def test_log_sum_exp_is_kept_in_base_two():
    tensors = inputs(Case(1, 2, 1, 21, 35, 16, True, torch.float32))
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    with poisoned():
        _, lse = torch.ops.scalekernels.attention(q, k, v, True, 0.25, True)
    exact = reference(q.double(), k.double(), v.double(), causal=True, scale=0.25)["lse"]
    assert_accurate({"lse": lse}, {}, {"lse": exact})


HEAD_DIMENSIONS = (1, 24, 72, 80, 96, 112, 192)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("head_dimension", HEAD_DIMENSIONS)
@pytest.mark.usefixtures("small_tiles")
def test_head_dimensions_between_those_of_the_kernels(head_dimension, backward):
    assert failure(Case(1, 2, 1, 9, 21, head_dimension, True, torch.float32), "triton", backward) is None


@pytest.mark.usefixtures("small_tiles")
def test_a_cache_with_a_head_dimension_between_those_of_the_kernels():
    tensors = inputs(Case(1, 2, 1, 3, 11, 24, True, torch.float32))
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    with torch.no_grad():
        for query in (q, q[:, :, -1:]):
            mask = torch.ones(query.shape[2], 11, dtype=torch.bool).tril(11 - query.shape[2])
            exact = scaled_dot_product_attention(*(t.double() for t in (query, k, v)), mask, enable_gqa=True)
            assert (attention_over_cache(query, k, v) - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.float16, torch.float32, torch.float32)])
@pytest.mark.usefixtures("small_tiles")
def test_autocast_casts_as_pytorch_does_for_its_attention(dtypes):
    """The dtype of the result, the casts of the inputs and the dtypes of the gradients are those of PyTorch."""
    tensors = inputs(Case(1, 2, 2, 19, 19, 16, True, torch.float32))
    leaves = [tensors[name].to(dtype).requires_grad_() for name, dtype in zip("qkv", dtypes, strict=True)]
    grad = tensors["grad_out"].half()
    halves = [leaf.detach().half().requires_grad_() for leaf in leaves]
    with torch.autocast("cpu", dtype=torch.float16):
        out = attention(*leaves, causal=True)
        theirs = scaled_dot_product_attention(*leaves, is_causal=True)
        assert attention_over_cache(*(leaf.detach() for leaf in leaves)).dtype == torch.float16
    assert out.dtype == theirs.dtype == torch.float16
    by_hand = attention(*halves, causal=True)
    assert torch.equal(out, by_hand)
    grads = torch.autograd.grad(out, leaves, grad)
    assert [gradient.dtype for gradient in grads] == list(dtypes)
    for gradient, expected in zip(grads, torch.autograd.grad(by_hand, halves, grad), strict=True):
        assert torch.equal(gradient, expected.to(gradient.dtype))


def test_autocast_leaves_float64_alone():
    q = torch.zeros(1, 1, 3, 16, dtype=torch.float64)
    with torch.autocast("cpu", dtype=torch.float16), pytest.raises(TypeError, match="q is float64"):
        attention(q, q, q)


@pytest.mark.parametrize("scale", [0.01, 3.0])
@pytest.mark.usefixtures("small_tiles")
def test_scale_and_scores_far_from_zero(scale):
    """Scores in the hundreds overflow exp2 unless the running maximum and its correction are right."""
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, 1, 40, 16, generator=generator) * 6 for _ in range(3))
    exact = reference(q.double(), k.double(), v.double(), scale=scale)["out"]
    theirs = reference(q, k, v, scale=scale)["out"]
    assert_accurate({"out": attention(q, k, v, scale=scale)}, {"out": theirs}, {"out": exact})


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.usefixtures("small_tiles")
def test_views_give_the_same_as_copies_and_gradients_in_their_layout(deterministic):
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
        grads = torch.autograd.grad(out, (q, k, v), grad_out)
    expected = gradients(*copies, grad_out.contiguous(), **options)
    torch.testing.assert_close(grads, expected, rtol=0, atol=0)
    assert (grads[0].stride(), grads[2].stride()) == (q.stride(), v.stride())


@pytest.mark.usefixtures("small_tiles")
def test_expanded_inputs_and_the_gradient_of_a_sum():
    """A stride of zero, in an input and in the gradient of a sum, in every dimension of that."""
    q = torch.randn(2, 2, 17, 16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    k = torch.randn(1, 1, 17, 16, generator=torch.Generator().manual_seed(4)).expand(2, 2, 17, 16)
    (gradient,) = torch.autograd.grad(attention(q, k, k).sum(), q)
    (expected,) = torch.autograd.grad(attention(q, k.clone(), k.clone()).sum(), q)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0)


@pytest.mark.parametrize("wanted", ["q", "k", "v", "qv", "kv"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.usefixtures("small_tiles")
def test_gradients_not_asked_for_are_not_computed(monkeypatch, wanted, deterministic):
    tensors = inputs(Case(1, 2, 1, 20, 20, 16, True, torch.float32))
    grad_out = tensors.pop("grad_out")
    all_of_them = dict(
        zip("qkv", gradients(*(operand.requires_grad_() for operand in tensors.values()), grad_out), strict=True)
    )
    some = {name: tensor.detach().requires_grad_(name in wanted) for name, tensor in tensors.items()}
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


@pytest.mark.usefixtures("small_tiles")
def test_repeats_are_bitwise_the_same():
    case = Case(1, 2, 1, 40, 37, 16, True, torch.float16)
    tensors = inputs(case)
    first, second = (PROVIDERS["triton"].prepare(case, tensors, True)() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.usefixtures("small_tiles")
def test_offsets_beyond_two_to_the_31_elements(tmp_path):
    """Rows of one tile lie 2^30 elements apart in a sparse file: 32-bit products of row and stride would wrap."""
    apart, rows = 2**30 + 16, 4
    memory = torch.from_file(str(tmp_path / "sparse"), True, apart * rows, dtype=torch.float16)
    generator = torch.Generator().manual_seed(5)
    views = [memory.as_strided((1, 1, rows, 16), (apart, apart, apart, 1), offset) for offset in (0, 16, 32)]
    dense = [view.copy_(torch.randn(1, 1, rows, 16, generator=generator)).clone() for view in views]
    torch.testing.assert_close(attention(*views), attention(*dense), rtol=0, atol=0)
    heads = [view.transpose(1, 2) for view in views]  # the same distances between heads
    torch.testing.assert_close(
        attention(*heads), attention(*(tensor.transpose(1, 2) for tensor in dense)), rtol=0, atol=0
    )
    leaves = [view.requires_grad_() for view in views]
    expected = [tensor.requires_grad_() for tensor in dense]
    grad_out = torch.randn(1, 1, rows, 16, generator=generator).half()
    torch.testing.assert_close(gradients(*leaves, grad_out), gradients(*expected, grad_out), rtol=0, atol=0)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 40), (7, 40), (33, 34), (21, 21)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.usefixtures("small_tiles")
def test_queries_over_a_cache_are_the_last_rows_of_causal_attention(queries, keys, dtype):
    """The oracle aligns at the top left, where queries and keys are of one length: all queries, of which the last."""
    tensors = inputs(Case(2, 4, 2, keys, keys, 16, True, dtype))
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    exact = reference(q.double(), k.double(), v.double(), causal=True, scale=0.3)["out"][:, :, -queries:]
    theirs = reference(q, k, v, causal=True, scale=0.3)["out"][:, :, -queries:]
    with poisoned():
        ours = attention_over_cache(q[:, :, -queries:], k, v, scale=0.3)
    assert ours.dtype == dtype
    assert_accurate({"out": ours}, {"out": theirs}, {"out": exact})


@pytest.mark.usefixtures("small_tiles")
def test_what_a_cache_cannot_be_is_refused():
    q, k = torch.randn(1, 1, 3, 16, requires_grad=True), torch.randn(1, 1, 5, 16)
    with pytest.raises(ValueError, match="q has length 3 and k 2; the queries must be the last of the keys"):
        attention_over_cache(q, k[:, :, :2], k[:, :, :2])
    with pytest.raises(RuntimeError, match="have no gradient"):
        attention_over_cache(q, k, k)
    (gradient,) = torch.autograd.grad(attention_over_cache(q[:, :, 2:], k, k).sum(), q)
    (expected,) = torch.autograd.grad(reference(q[:, :, 2:], k, k)["out"].sum(), q)
    torch.testing.assert_close(gradient, expected)
