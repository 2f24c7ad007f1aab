"""Linear cross entropy under the interpreter, forward and backward, against ``reference`` in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cross_entropy_support import (
    FORWARD_BACKWARD,
    RICH,
    case_failure,
    exact_gradients,
    small_chunks,  # noqa: F401 - a fixture
    tensors,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_support import (
    error,
    poisoned_memory,  # noqa: F401 - a fixture
)
from scalekernels import cross_entropy
from scalekernels.cross_entropy import Case, linear_cross_entropy, memory, reference


@pytest.mark.parametrize("classes", [22, 4090, 4097])
def test_gradients_of_single_logits_are_exact_to_rounding(classes):
    """What the kernel itself writes, before any matrix product, for one token of one number."""
    values = cross_entropy.inputs(Case(1, 1, classes, torch.float32, "none", z_loss=0.1), seed=6)
    exact = (values["x"].double() @ values["weight"].double().T).requires_grad_()
    loss = F.cross_entropy(exact, values["target"]) + 0.1 * exact.logsumexp(1).square().sum()
    (oracle,) = torch.autograd.grad(loss, exact)
    logits = torch.zeros(1, memory.row_length(classes))
    logits[:, :classes] = exact.detach()
    cross_entropy.kernels.losses[(1,)](
        logits, values["target"], torch.empty(1), None, classes, logits.shape[1], -100, 0.0, 0.1, None, None,
        CAPPED=False, GRADIENT=True, BLOCK=cross_entropy.kernels.BLOCK, TILES=2,
    )  # fmt: skip
    assert (logits[:, :classes].double() - oracle).abs().sum() < 16 * 2**-23 * oracle.abs().sum()


@FORWARD_BACKWARD
@pytest.mark.parametrize("case", cross_entropy.CASES, ids=lambda case: case.label)
def test_every_case_is_as_accurate_as_torch(case, backward):
    assert case_failure(case, backward) is None


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    tokens=st.integers(1, 40),
    width=st.integers(1, 40),
    classes=st.one_of(st.integers(1, 70), st.integers(4090, 4100)),
    reduction=st.sampled_from(cross_entropy.REDUCTIONS),
    softcap=st.sampled_from([None, 0.5, 30.0]),
    z_loss=st.sampled_from([0.0, 0.1]),
    backward=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_shape_is_as_accurate_as_torch(tokens, width, classes, reduction, softcap, z_loss, backward, seed):
    # One row times one column is a dot product, whose rounding is the BLAS's own (2e-4 of 24 at 4,097 classes, for
    # torch's exactly rounded factors too); what the kernel writes there is tested above.
    assume(tokens * width > 1)
    ignored = tokens % 5 > 1
    case = Case(tokens, width, classes, torch.float32, reduction, softcap, z_loss, ignored)
    assert case_failure(case, backward, seed) is None


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("tokens", [3, 4, 5, 8, 13])
def test_chunks_of_four_tokens(tokens, reduction):
    for dtype in (torch.float32, torch.float16):
        case = Case(tokens, 7, 65, dtype, reduction, ignored=True, **RICH)
        assert case_failure(case, True) is None
        assert case_failure(case, False) is None


@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
def test_leading_dimensions_and_strides(reduction):
    x, weight, target = tensors(3, 5, classes=40)
    wide = torch.randn(3, 5, 30).requires_grad_()
    for view, table in ((x, weight), (wide[..., 4:16], weight), (x.transpose(0, 1), weight[::2])):
        labels = (target if view.shape[0] == 3 else target.t()) % table.shape[0]
        loss = linear_cross_entropy(view, table, labels, reduction=reduction, **RICH)
        assert loss.dtype == torch.float32
        assert loss.shape == (labels.shape if reduction == "none" else ())
        assert error(loss, reference(view.double(), table.double(), labels, reduction=reduction, **RICH)["loss"]) < 1e-4
        grad = torch.randn(*loss.shape, 2)[..., 0]
        grads = torch.autograd.grad(loss, (view, table), grad)
        exact = exact_gradients(view, table, labels, grad, reduction=reduction, **RICH)
        assert all(error(mine, oracle) < 1e-4 for mine, oracle in zip(grads, exact, strict=True))


def test_one_token_without_a_leading_dimension():
    x, weight, target = tensors(classes=9)
    assert torch.allclose(linear_cross_entropy(x, weight, target), F.cross_entropy(F.linear(x, weight), target))


def test_logits_far_apart_do_not_overflow():
    x = torch.tensor([[1.0], [-1.0]])
    weight = torch.linspace(-5000, 5000, 9001)[:, None]
    target = torch.tensor([9000, 9000])
    losses = linear_cross_entropy(x, weight, target, reduction="none")
    exact = reference(x.double(), weight.double(), target, reduction="none")["loss"]
    assert error(losses, exact) <= 2**-22 * 10000


def test_autocast_casts_as_linear_does():
    x, weight, target = tensors(13, classes=30)
    with torch.autocast("cpu", dtype=torch.float16):
        ours, theirs = linear_cross_entropy(x, weight, target), F.cross_entropy(F.linear(x, weight), target)
    exact = reference(x.double(), weight.double(), target)["loss"]
    assert ours.dtype == torch.float32
    assert error(ours, exact) <= 2 * max(error(theirs, exact), 2**-11)
    grads, oracle = (torch.autograd.grad(loss, (x, weight)) for loss in (ours, theirs))
    assert all(gradient.dtype == torch.float32 for gradient in grads)
    for mine, plain, truth in zip(grads, oracle, torch.autograd.grad(exact, (x, weight)), strict=True):
        assert error(mine, truth.double()) <= 2 * error(plain, truth.double())


def test_autocast_computes_what_casts_by_hand_do():
    x, weight, target = tensors(13, classes=30)
    halves = [tensor.detach().half().requires_grad_() for tensor in (x, weight)]
    with torch.autocast("cpu", dtype=torch.float16):
        ours = linear_cross_entropy(x, weight, target)
    by_hand = linear_cross_entropy(*halves, target)
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours, linear_cross_entropy(x, weight, target))
    for mine, half in zip(torch.autograd.grad(ours, (x, weight)), torch.autograd.grad(by_hand, halves), strict=True):
        assert torch.equal(mine, half.float())


def test_sixteen_bit_gradients_do_not_underflow_in_large_batches():
    """Divided by 65536 and then rounded, float16 gradients of logits would be 0; here the division comes last."""
    x, weight, target = tensors(16, classes=200, width=4)
    half, table = (tensor.detach().half().requires_grad_() for tensor in (x, weight))
    share = torch.tensor(1 / 65536)
    grads = torch.autograd.grad(linear_cross_entropy(half, table, target, reduction="sum"), table, share)[0]
    exact = exact_gradients(half, table, target, share, reduction="sum")[1]
    assert error(grads, exact) <= 2**-9 * exact.abs().max().item() + 2**-25  # half of float16's smallest number
