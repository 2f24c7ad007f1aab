"""Which gradients linear cross entropy computes, when, and how often a backward pass may run."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_support import (
    RICH,
    exact_gradients,
    small_chunks,  # noqa: F401 - a fixture
    tensors,
)
from kernel_support import (
    Operations,
    error,
    poisoned_memory,  # noqa: F401 - a fixture
)
from scalekernels import cross_entropy
from scalekernels.cross_entropy import linear_cross_entropy
from torch import Tensor
from torch._functorch import config as functorch


@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
def test_only_what_needs_a_gradient_gets_one(reduction):
    for needs in ((True, False), (False, True), (False, False)):
        x, weight, target = tensors(9, classes=20)
        x.requires_grad_(needs[0])
        weight.requires_grad_(needs[1])
        loss = linear_cross_entropy(x, weight, target, reduction=reduction)
        assert loss.requires_grad == any(needs)
        if any(needs):
            grad = torch.randn(loss.shape)
            loss.backward(grad)
            exact = exact_gradients(x, weight, target, grad, reduction=reduction)
            for leaf, oracle, needed in zip((x, weight), exact, needs, strict=True):
                assert (leaf.grad is not None) == needed
                assert not needed or error(leaf.grad, oracle) < 1e-5


def test_without_gradients_none_are_computed(monkeypatch):
    x, weight, target = tensors(9, classes=20)
    calls = []
    monkeypatch.setattr(cross_entropy.products, "accumulate", lambda *a, **k: calls.append(a))
    with torch.no_grad():
        linear_cross_entropy(x, weight, target)
    linear_cross_entropy(x, weight.detach(), target)
    assert not calls


@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
def test_a_second_backward_pass_gives_the_same(reduction):
    x, weight, target = tensors(9, classes=20)
    loss = linear_cross_entropy(x, weight, target, reduction=reduction, **RICH)
    grad = torch.randn(loss.shape)
    first, second, tripled = (
        torch.autograd.grad(loss, (x, weight), factor * grad, retain_graph=True) for factor in (1, 1, 3)
    )
    for once, again, three_times in zip(first, second, tripled, strict=True):
        assert torch.equal(once, again)
        assert torch.allclose(three_times, 3 * once, rtol=1e-5, atol=1e-6)


def test_the_operation_called_without_its_flags_computes_gradients_in_the_backward_pass():
    x, weight, target = tensors(9, classes=20)
    flagged = torch.autograd.grad(linear_cross_entropy(x, weight, target), (x, weight))
    loss = torch.ops.scalekernels.linear_cross_entropy(x, weight, target, -100, "mean", 0.0, 0.0, False, True)[0]
    for mine, oracle in zip(torch.autograd.grad(loss, (x, weight)), flagged, strict=True):
        assert torch.allclose(mine, oracle, rtol=1e-5, atol=1e-7)


def test_weights_tied_to_the_embedding():
    ours, theirs = (torch.randn(30, 8, generator=torch.Generator().manual_seed(0)).requires_grad_() for _ in range(2))
    tokens = torch.randint(30, (4, 7), generator=torch.Generator().manual_seed(1))
    hidden = torch.tanh(F.embedding(tokens[:, :-1], ours))
    linear_cross_entropy(hidden, ours, tokens[:, 1:]).backward()
    logits = F.linear(torch.tanh(F.embedding(tokens[:, :-1], theirs)), theirs)
    F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
    assert torch.allclose(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


def handed_over(dtype: torch.dtype, reduction: str = "mean") -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, target, and their loss in three chunks."""
    x, weight, target = tensors(11, classes=70)
    x, weight = (tensor.detach().to(dtype).requires_grad_() for tensor in (x, weight))
    return x, weight, target, linear_cross_entropy(x, weight, target, reduction=reduction, **RICH)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", cross_entropy.DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_given_away_are_computed_again_for_another_backward_pass(dtype, reduction):
    """To the bit, and what a user does to those that were given away changes nothing."""
    x, weight, _, loss = handed_over(dtype, reduction)
    recomputed = []
    with Operations() as calls:
        for _ in range(3):
            grads = torch.autograd.grad(loss, (x, weight), torch.tensor(0.7), retain_graph=True)
            recomputed.append([gradient.clone() for gradient in grads])
            for gradient in grads:
                gradient.zero_()
    assert calls.names.count("linear_cross_entropy_gradients") == 2
    for again in recomputed[1:]:
        assert all(torch.equal(before, after) for before, after in zip(recomputed[0], again, strict=True))
    assert all(gradient.any() for gradient in recomputed[0])


def test_the_first_backward_pass_copies_no_gradient():
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, _, loss = handed_over(dtype)
        node = loss.grad_fn
        addresses = [gradient.data_ptr() for gradient in node.gradients]
        with Operations() as calls:
            grads = torch.autograd.grad(loss, (x, weight))
        assert [gradient.data_ptr() for gradient in grads] == addresses
        assert calls.names == ["scale_gradient_"] * 2
        assert node.gradients is None


def test_gradients_accumulate_and_those_of_an_earlier_loss_stay():
    """Two backward passes add up in .grad, through one graph and through two, and nothing else is written to."""
    x, weight, target, loss = handed_over(torch.float32)
    exact = exact_gradients(x, weight, target, torch.tensor(1.0), **RICH)
    loss.backward(retain_graph=True)
    earlier = [leaf.grad.clone() for leaf in (x, weight)]
    loss.backward()
    linear_cross_entropy(x, weight, target, **RICH).backward()
    for leaf, oracle in zip((x, weight), exact, strict=True):
        assert error(leaf.grad, 3 * oracle) < 1e-6
    first = [leaf.grad for leaf in (x, weight)]
    before = [gradient.clone() for gradient in first]
    x.grad = weight.grad = None
    (2 * linear_cross_entropy(x, weight, target, **RICH)).backward()
    assert all(torch.equal(gradient, copy) for gradient, copy in zip(first, before, strict=True))
    for leaf, once in zip((x, weight), earlier, strict=True):
        assert torch.allclose(leaf.grad, 2 * once, rtol=1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_one_weight_under_two_losses_of_one_graph():
    x, weight, target = tensors(9, classes=20)
    losses = [linear_cross_entropy(x * factor, weight, target) for factor in (1.0, 2.0)]
    (losses[0] + 3 * losses[1]).backward()
    plain = [F.cross_entropy(F.linear(x * factor, weight), target) for factor in (1.0, 2.0)]
    for leaf, oracle in zip((x, weight), torch.autograd.grad(plain[0] + 3 * plain[1], (x, weight)), strict=True):
        assert torch.allclose(leaf.grad, oracle, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", cross_entropy.DTYPES)
@functorch.patch(donated_buffer=False)
def test_a_compiled_graph_gives_the_same_gradients_each_time(dtype):
    """Where a graph may be gone through twice, that is: by default PyTorch refuses, to reuse what the first leaves."""
    x, weight, target, _ = handed_over(dtype)

    def head(x, weight, target):
        return linear_cross_entropy(x * 2, weight, target)

    compiled = torch.compile(head, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (11, 7):
        part, labels = x.detach()[:tokens].clone().requires_grad_(), target[:tokens].clone()
        loss, plain = compiled(part, weight, labels), head(part, weight, labels)
        grad = torch.tensor(0.7)
        oracle = torch.autograd.grad(plain, (part, weight), grad)
        for _ in range(3):
            grads = torch.autograd.grad(loss, (part, weight), grad, retain_graph=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(grads, oracle, strict=True))
            for gradient in grads:
                gradient.zero_()


@pytest.mark.slow
def test_opcheck():
    x, weight, target = tensors(2, 3, classes=10)
    for reduction in ("mean", "none"):
        arguments = (x, weight, target, -100, reduction, 2.0, 0.1, True, True)
        torch.library.opcheck(torch.ops.scalekernels.linear_cross_entropy.default, arguments)
    plain = (torch.rand(2, 3), x.detach(), weight.detach(), target, -100, 2.0, 0.1, True, False)
    torch.library.opcheck(torch.ops.scalekernels.linear_cross_entropy_gradients.default, plain)
    arguments = (torch.randn(3, 4), torch.tensor(0.5))
    torch.library.opcheck(torch.ops.scalekernels.scaled_gradient.default, (*arguments, torch.float16))
    torch.library.opcheck(torch.ops.scalekernels.scale_gradient_.default, arguments)


@pytest.mark.parametrize(
    "reduction",
    [pytest.param(name, marks=[pytest.mark.slow] * (name != "none")) for name in cross_entropy.REDUCTIONS],
)
@functorch.patch(cse=False)  # which imports inductor
def test_compile_keeps_one_graph(reduction):
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    def head(x, weight, target):
        with torch.autocast("cpu", dtype=torch.float16):
            return linear_cross_entropy(torch.tanh(x), weight, target, reduction=reduction, **RICH) * 2

    x, weight, target = tensors(2, 5, classes=10)
    compiled = torch.compile(head, fullgraph=True, backend=backend)
    ours, plain = compiled(x, weight, target), head(x, weight, target)
    assert torch.equal(ours, plain)
    grad = torch.randn(plain.shape)
    for mine, theirs in zip(*(torch.autograd.grad(loss, (x, weight), grad) for loss in (ours, plain)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1
