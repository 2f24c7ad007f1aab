"""Options of linear cross entropy: class weights, label smoothing, caps, ignored and invalid targets."""

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
    error,
    inaccuracy,
    poisoned_memory,  # noqa: F401 - a fixture
)
from scalekernels import cross_entropy
from scalekernels.cross_entropy import Case, linear_cross_entropy, reference
from torch import Tensor


@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("shape", [(6,), (0,)])
def test_nothing_counts(shape, reduction):
    """All targets ignored, or none there: loss and gradients are F.cross_entropy's, a mean of nan included."""
    x, weight, target = tensors(*shape, classes=11)
    target = torch.full_like(target, -100)
    ours = linear_cross_entropy(x, weight, target, reduction=reduction, z_loss=0.1)
    plain = F.cross_entropy(F.linear(x, weight), target, reduction=reduction)
    results = [(loss, *torch.autograd.grad(loss, (x, weight), torch.ones_like(loss))) for loss in (ours, plain)]
    for mine, theirs in zip(*results, strict=True):
        assert torch.equal(mine.isnan(), theirs.isnan())
        assert torch.equal(mine.nan_to_num(), theirs.nan_to_num())


def smoothed(seed: int = 4, classes: int = 37, tokens: int = 6) -> tuple[Tensor, ...]:
    """x, weight, target with every fourth ignored, and class weights of which some are 0."""
    x, weight, target = tensors(5, tokens, classes=classes, seed=seed)
    target.view(-1)[::4] = -100
    return x, weight, target, torch.rand(classes, generator=torch.Generator().manual_seed(seed)).sub(0.1).clamp(min=0)


def agrees_with_torch(x: Tensor, weight: Tensor, target: Tensor, bound: float = 1e-5, **options) -> bool:
    """Whether loss and gradients are those of F.cross_entropy in float64, to ``bound`` of the largest number."""
    exact = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    plain = {("weight" if name == "class_weight" else name): value for name, value in options.items()}
    if plain.get("weight") is not None:
        plain["weight"] = plain["weight"].double()
    logits = F.linear(*exact)
    theirs = F.cross_entropy(logits.flatten(0, -2), target.flatten(), **plain).view_as(
        target if options.get("reduction") == "none" else torch.ones(())
    )
    ours = linear_cross_entropy(x, weight, target, **options)
    grad = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    outputs = (ours, *torch.autograd.grad(ours, (x, weight), grad))
    oracle = (theirs, *torch.autograd.grad(theirs, exact, grad.double()))
    return all(
        bool((output.detach() - truth.detach()).abs().max() <= bound * max(1.0, truth.detach().abs().max()))
        for output, truth in zip(outputs, oracle, strict=True)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighed", [False, True])
# Several tiles of classes are summed alike for every reduction: one with a gradient for each row stands for all.
@pytest.mark.parametrize(
    ("classes", "reduction"), [*((37, reduction) for reduction in cross_entropy.REDUCTIONS), (4101, "none")]
)
def test_class_weights_and_label_smoothing_are_torchs(reduction, smoothing, weighed, classes):
    x, weight, target, each = smoothed(classes=classes, tokens=3 if classes == 37 else 1)
    options = {"reduction": reduction, "label_smoothing": smoothing, "class_weight": each if weighed else None}
    assert agrees_with_torch(x, weight, target, **options)
    assert agrees_with_torch(x, weight, target.where(target != -100, 3), ignore_index=3, **options)


@pytest.mark.usefixtures("small_chunks")
def test_class_weights_and_label_smoothing_in_chunks_and_with_the_other_options():
    x, weight, target, each = smoothed()
    options = {"class_weight": each.bfloat16(), "label_smoothing": 0.2, **RICH}
    for reduction in cross_entropy.REDUCTIONS:
        loss = linear_cross_entropy(x, weight, target, reduction=reduction, **options)
        grad = torch.randn(loss.shape)
        assert (
            error(loss, reference(x.double(), weight.double(), target, reduction=reduction, **options)["loss"]) < 1e-4
        )
        exact = exact_gradients(x, weight, target, grad, reduction=reduction, **options)
        for _ in range(2):  # the second time from scratch
            outputs = torch.autograd.grad(loss, (x, weight), grad, retain_graph=True)
            assert all(error(mine, oracle) < 1e-4 for mine, oracle in zip(outputs, exact, strict=True))


def test_float16_with_class_weights_and_label_smoothing():
    x, weight, target, each = smoothed()
    x, weight = x.detach().half().requires_grad_(), weight.detach().half().requires_grad_()
    for reduction in cross_entropy.REDUCTIONS:
        assert agrees_with_torch(
            x, weight, target, 2**-8, reduction=reduction, class_weight=each, label_smoothing=0.1
        )  # fmt: skip


def test_no_weight_in_all_targets_is_a_mean_of_nan():
    x, weight, target, each = smoothed()
    loss = linear_cross_entropy(x, weight, target, class_weight=torch.zeros_like(each))
    assert loss.isnan()
    assert all(bool((gradient == 0).all()) for gradient in torch.autograd.grad(loss, (x, weight)))


def test_class_weights_without_smoothing_take_a_logit_of_minus_infinity():
    x = torch.tensor([[1.0], [1.0]])
    weight = torch.tensor([[0.5], [-torch.inf], [1.0]])
    target, each = torch.tensor([0, 2]), torch.tensor([2.0, 1.0, 3.0])
    ours = linear_cross_entropy(x, weight, target, class_weight=each)
    assert torch.allclose(ours, F.cross_entropy(F.linear(x, weight), target, each))


def test_an_infinite_cap_is_none():
    x, weight, target = tensors(9, classes=20)
    capped, plain = (linear_cross_entropy(x, weight, target, softcap=cap) for cap in (float("inf"), None))
    assert torch.equal(capped, plain)


def test_another_ignore_index():
    x, weight, target = tensors(30, classes=5)
    ours = linear_cross_entropy(x, weight, target, ignore_index=3)
    theirs = F.cross_entropy(F.linear(x, weight), target, ignore_index=3)
    assert torch.allclose(ours, theirs, rtol=1e-6)
    for mine, oracle in zip(*(torch.autograd.grad(loss, (x, weight)) for loss in (ours, theirs)), strict=True):
        assert torch.allclose(mine, oracle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 0.15, 0.25, 1.0, 8.0, 1e4])
def test_the_cap_and_its_derivative_at_any_size(scale):
    """Logits from far below the cap to far above it, where 1 − tanh² underflows rather than turn negative or nan."""
    case = Case(4, 3, 50, torch.float32, "sum", softcap=2.0)
    inputs = cross_entropy.inputs(case)
    inputs["x"] *= scale
    for backward in (False, True):
        ours, theirs = (
            cross_entropy.providers()[name].prepare(case, inputs, backward)() for name in ("triton", "eager")
        )
        assert inaccuracy(ours, theirs, cross_entropy.results(case, inputs, backward)) is None


def test_a_target_out_of_range_is_refused():
    x, weight, target = tensors(4, classes=10)
    for wrong in (10, -1, -101):
        target[2] = wrong
        with pytest.raises(IndexError, match=f"target {wrong} is out of bounds: classes are 0 to 9, or -100"):
            linear_cross_entropy(x, weight, target)


def test_where_a_target_cannot_be_checked_the_kernel_makes_it_nan():
    logits, losses = torch.randn(3, 64), torch.empty(3)
    cross_entropy.kernels.losses[(3,)](
        logits,
        torch.tensor([5, 64, -7]),
        losses,
        None,
        60,
        64,
        -100,
        0.0,
        0.0,
        None,
        None,
        CAPPED=False,
        GRADIENT=True,
        BLOCK=64,
        TILES=1,
    )
    assert losses.isnan().tolist() == [False, True, True]
    assert logits[:, :60].isnan().all(1).tolist() == [False, True, True]


X, W, T = torch.ones(4, 6), torch.ones(9, 6), torch.zeros(4, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "raised", "words"),
    [
        (lambda: linear_cross_entropy(X, W[:, :5], T), ValueError, r"x has shape \(4, 6\) and weight \(9, 5\)"),
        (lambda: linear_cross_entropy(X, W[0], T), ValueError, r"weight \(6,\)"),
        (lambda: linear_cross_entropy(X, W[:0], T), ValueError, r"weight has shape \(0, 6\)"),
        (lambda: linear_cross_entropy(X, W, T[:3]), ValueError, r"target has shape \(3,\); x of \(4, 6\) needs \(4,\)"),
        (lambda: linear_cross_entropy(X, W, T.int()), TypeError, "target is int32; allowed: int64"),
        (lambda: linear_cross_entropy(X.double(), W.double(), T), TypeError, "x is float64"),
        (lambda: linear_cross_entropy(X, W.half(), T), TypeError, "weight is float16; allowed: float32"),
        (lambda: linear_cross_entropy(X, W, T, reduction="avg"), ValueError, "reduction is 'avg'; allowed: mean, sum"),
        (lambda: linear_cross_entropy(X, W, T, softcap=0.0), ValueError, "softcap is 0.0"),
        (lambda: linear_cross_entropy(X, W, T, z_loss=-1.0), ValueError, "z_loss is -1.0"),
        (lambda: linear_cross_entropy(X, W, T, label_smoothing=1.1), ValueError, "label_smoothing is 1.1"),
        (lambda: linear_cross_entropy(X, W, T, class_weight=W[:8, 0]), ValueError, r"class_weight has shape \(8,\)"),
        (lambda: linear_cross_entropy(X, W, T, class_weight=T.new_ones(9)), TypeError, "class_weight is torch.int64"),
        (lambda: linear_cross_entropy(X, W, T, class_weight=W[:, 0].clone().requires_grad_()), ValueError, "detach"),
    ],
)
def test_a_wrong_argument_is_named(call, raised, words):
    with pytest.raises(raised, match=words):
        call()
