"""Linear cross entropy under the interpreter, forward and backward, against ``reference`` in float64."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_support import Operations, inaccuracy, install_mutant, poisoned, rounded_to_nearest
from scalekernels import cross_entropy
from scalekernels.cross_entropy import Case, linear_cross_entropy, memory, reference
from torch import Tensor
from torch._functorch import config as functorch
from torch.profiler import ProfilerActivity, profile

FORWARD_BACKWARD = pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
RICH = {"softcap": 4.0, "z_loss": 0.01}  # options that change every number


@pytest.fixture(autouse=True, scope="module")
def poisoned_memory() -> Iterator[None]:
    """Memory that comes from torch.empty holds NaN, workspaces too: what is read before it is written shows."""
    with poisoned():
        yield


@pytest.fixture
def small_chunks(monkeypatch) -> None:
    """Four tokens to a chunk."""
    monkeypatch.setattr(memory, "FEWEST_TOKENS", 4)
    monkeypatch.setattr(memory, "MOST_TOKENS", 4)
    monkeypatch.setattr(memory, "TOKEN_MULTIPLE", 1)


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return (found.detach().double() - exact).abs().max().item() if exact.numel() else 0.0


def case_failure(case: Case, backward: bool, seed: int = 0) -> str | None:
    inputs = cross_entropy.inputs(case, seed=seed)
    providers = cross_entropy.providers()
    ours, theirs = (providers[name].prepare(case, inputs, backward)() for name in ("triton", "eager"))
    # A gradient sums rows of x or of the weight, with factors that add up to at most twice the incoming gradient: it
    # may be the small difference of large terms, and its rounding error is theirs. A product that sums n of them errs
    # by about sqrt(n) u (Higham & Mary 2019), u = 2^-24, in an order of the library's choosing.
    terms = max(1.0, *(tensor.abs().max().item() for tensor in inputs.values() if tensor.is_floating_point()))
    ulps = max(8.0, max(case.classes, case.tokens) ** 0.5 / 2)
    return inaccuracy(ours, theirs, cross_entropy.results(case, inputs, backward), ulps=ulps, terms=terms)


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


def tensors(*shape: int, classes: int, width: int = 12, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, width, generator=generator).requires_grad_()
    weight = torch.randn(classes, width, generator=generator).requires_grad_()
    return x, weight, torch.randint(classes, shape, generator=generator)


def exact_gradients(x: Tensor, weight: Tensor, target: Tensor, grad: Tensor, **options) -> tuple[Tensor, ...]:
    leaves = [tensor.detach().double().requires_grad_() for tensor in (x, weight)]
    return torch.autograd.grad(reference(*leaves, target, **options)["loss"], leaves, grad.double())


@FORWARD_BACKWARD
@pytest.mark.parametrize("case", cross_entropy.CASES, ids=lambda case: case.label)
def test_every_case_is_as_accurate_as_torch(case, backward):
    assert case_failure(case, backward) is None


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
        found = torch.autograd.grad(loss, (view, table), grad)
        exact = exact_gradients(view, table, labels, grad, reduction=reduction, **RICH)
        assert all(error(mine, oracle) < 1e-4 for mine, oracle in zip(found, exact, strict=True))


def test_one_token_without_a_leading_dimension():
    x, weight, target = tensors(classes=9)
    assert torch.allclose(linear_cross_entropy(x, weight, target), F.cross_entropy(F.linear(x, weight), target))


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


def smoothed(seed: int = 4, classes: int = 37) -> tuple[Tensor, ...]:
    """x, weight, target with every fourth ignored, and class weights of which some are 0."""
    x, weight, target = tensors(5, 6, classes=classes, seed=seed)
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
    found = (ours, *torch.autograd.grad(ours, (x, weight), grad))
    oracle = (theirs, *torch.autograd.grad(theirs, exact, grad.double()))
    return all(
        bool((one.detach() - two.detach()).abs().max() <= bound * max(1.0, two.detach().abs().max()))
        for one, two in zip(found, oracle, strict=True)
    )


@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("classes", [37, 4101])
def test_class_weights_and_label_smoothing_are_torchs(reduction, smoothing, weighed, classes):
    x, weight, target, each = smoothed(classes=classes)
    options = {"reduction": reduction, "label_smoothing": smoothing, "class_weight": each if weighed else None}
    assert agrees_with_torch(x, weight, target, **options)
    assert agrees_with_torch(x, weight, target.where(target != -100, 3), ignore_index=3, **options)


def test_class_weights_and_label_smoothing_in_chunks_and_with_the_other_options(small_chunks):
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
            found = torch.autograd.grad(loss, (x, weight), grad, retain_graph=True)
            assert all(error(mine, oracle) < 1e-4 for mine, oracle in zip(found, exact, strict=True))


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
    assert all(bool((one == 0).all()) for one in torch.autograd.grad(loss, (x, weight)))


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
    for mine, oracle in zip(*(torch.autograd.grad(one, (x, weight)) for one in (ours, theirs)), strict=True):
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


def test_logits_far_apart_do_not_overflow():
    x = torch.tensor([[1.0], [-1.0]])
    weight = torch.linspace(-5000, 5000, 9001)[:, None]
    target = torch.tensor([9000, 9000])
    losses = linear_cross_entropy(x, weight, target, reduction="none")
    exact = reference(x.double(), weight.double(), target, reduction="none")["loss"]
    assert error(losses, exact) <= 2**-22 * 10000


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
    for one, two, three in zip(first, second, tripled, strict=True):
        assert torch.equal(one, two)
        assert torch.allclose(three, 3 * one, rtol=1e-5, atol=1e-6)


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


def test_autocast_casts_as_linear_does():
    x, weight, target = tensors(13, classes=30)
    with torch.autocast("cpu", dtype=torch.float16):
        ours, theirs = linear_cross_entropy(x, weight, target), F.cross_entropy(F.linear(x, weight), target)
    exact = reference(x.double(), weight.double(), target)["loss"]
    assert ours.dtype == torch.float32
    assert error(ours, exact) <= 2 * max(error(theirs, exact), 2**-11)
    found, oracle = (torch.autograd.grad(loss, (x, weight)) for loss in (ours, theirs))
    assert all(gradient.dtype == torch.float32 for gradient in found)
    for mine, plain, truth in zip(found, oracle, torch.autograd.grad(exact, (x, weight)), strict=True):
        assert error(mine, truth.double()) <= 2 * error(plain, truth.double())


def test_sixteen_bit_gradients_do_not_underflow_in_large_batches():
    """Divided by 65536 and then rounded, float16 gradients of logits would be 0; here the division comes last."""
    x, weight, target = tensors(16, classes=200, width=4)
    half, table = (tensor.detach().half().requires_grad_() for tensor in (x, weight))
    share = torch.tensor(1 / 65536)
    found = torch.autograd.grad(linear_cross_entropy(half, table, target, reduction="sum"), table, share)[0]
    exact = exact_gradients(half, table, target, share, reduction="sum")[1]
    assert error(found, exact) <= 2**-9 * exact.abs().max().item() + 2**-25  # half of float16's smallest number


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


def peak_bytes(loss: Callable[[Tensor, Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, target: Tensor) -> int:
    """The most bytes that new tensors held at once during a loss and its gradients, by PyTorch's own accounting."""
    gc.collect()  # the interpreter keeps its arguments in cycles of references; a GPU's launch keeps nothing
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        value = loss(x, weight, target)
        gc.collect()
        kept = torch.autograd.grad(value, (x, weight))
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    assert held >= sum(gradient.nbytes for gradient in kept)
    return peak


@pytest.fixture
def scaled_down(monkeypatch) -> None:
    """The plan's memory rule for products of two sizes that are each smaller by 32."""
    for name in ("FEWEST_TOKENS", "MOST_TOKENS", "TOKEN_MULTIPLE"):
        monkeypatch.setattr(memory, name, getattr(memory, name) // 32)
    monkeypatch.setattr(memory, "WORKSPACE_BYTES", memory.WORKSPACE_BYTES // 1024)


def head(width: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """GPT-2's head, 8192 tokens × 50257 classes, and a width, each by 32: what fills the memory is less by 1024."""
    given = cross_entropy.inputs(Case(8192 // 32, width // 32, 50257 // 32, dtype))
    return given["x"].requires_grad_(), given["weight"].requires_grad_(), given["target"]


def eager(x: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(x, weight), target)


@pytest.mark.usefixtures("scaled_down")
@pytest.mark.parametrize(
    ("dtype", "width"), [*((torch.bfloat16, width) for width in (768, 1024, 2048, 4096)), (torch.float32, 768)]
)
def test_peak_memory_is_a_sixth_of_the_full_logits_path(dtype, width):
    """As the allocator saw it, inside of the operations too; without oneDNN, whose products allocate scratch."""
    x, weight, target = head(width, dtype)
    cross_entropy.weight_gradient_path("cpu", torch.bfloat16)  # tried once, not a part of any step
    with warnings.catch_warnings(action="ignore"), torch.backends.mkldnn.flags(enabled=False):  # it speaks of TF32
        ours = peak_bytes(linear_cross_entropy, x, weight, target)
        theirs = peak_bytes(eager, x, weight, target)
    returned = x.nbytes + weight.nbytes
    spending = memory.plan(x.shape[0], x.shape[1], weight.shape[0], dtype)
    assert spending.accumulator == (torch.bfloat16 if dtype == torch.bfloat16 and width > 1024 else torch.float32)
    small = 2**15  # losses and numbers, and the copies of the interpreted product
    assert spending.peak_bytes <= ours - returned < spending.peak_bytes + small
    assert theirs >= 3 * x.shape[0] * weight.shape[0] * dtype.itemsize
    assert ours - returned <= (theirs - returned) / 6


@pytest.mark.usefixtures("scaled_down")
@pytest.mark.parametrize("width", [768, 4096])
def test_bfloat16_gradients_are_as_accurate_as_eager_whatever_they_are_summed_in(width):
    """Summed in float32 at a width of 768, in bfloat16, in four chunks, at 4096."""
    case = Case(8192 // 32, width // 32, 50257 // 32, torch.bfloat16)
    with rounded_to_nearest():
        assert case_failure(case, True) is None
        assert case_failure(case, False) is None


@pytest.mark.parametrize(("chunks", "expected"), [(1, 1.0), (4, 2.5**0.5), (32, 16.5**0.5)])
def test_a_sum_kept_in_bfloat16_errs_as_its_roundings_say(chunks, expected):
    """√((n + 1)/2) times the error of one rounding, n chunks of independent terms, as ``memory`` derives it."""
    generator = torch.Generator().manual_seed(0)
    total, exact = torch.empty(300, 40, dtype=torch.bfloat16), torch.zeros(300, 40, dtype=torch.float64)
    for chunk in range(chunks):
        left, right = (torch.randn(64, n, generator=generator).bfloat16() for n in (300, 40))
        cross_entropy.products.accumulate(total, left.t(), right, keep=chunk > 0)
        exact += left.t().double() @ right.double()
    error, rounding = ((found.double() - exact).square().mean().sqrt() for found in (total, exact.bfloat16()))
    assert error / rounding == pytest.approx(expected, rel=0.05)


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
            found = torch.autograd.grad(loss, (x, weight), torch.tensor(0.7), retain_graph=True)
            recomputed.append([gradient.clone() for gradient in found])
            for gradient in found:
                gradient.zero_()
    assert calls.names.count("linear_cross_entropy_gradients") == 2
    for again in recomputed[1:]:
        assert all(torch.equal(one, other) for one, other in zip(recomputed[0], again, strict=True))
    assert all(gradient.any() for gradient in recomputed[0])


def test_the_first_backward_pass_copies_no_gradient():
    for dtype in (torch.float32, torch.bfloat16):
        x, weight, _, loss = handed_over(dtype)
        node = loss.grad_fn
        made = [gradient.data_ptr() for gradient in node.gradients]
        with Operations() as calls:
            found = torch.autograd.grad(loss, (x, weight))
        assert [gradient.data_ptr() for gradient in found] == made
        assert calls.names == ["scale_gradient_"] * 2
        assert node.gradients is None


def test_gradients_accumulate_and_those_of_an_earlier_loss_stay():
    """Two backward passes add up in .grad, through one graph and through two, and nothing else is written to."""
    x, weight, target, loss = handed_over(torch.float32)
    exact = exact_gradients(x, weight, target, torch.tensor(1.0), **RICH)
    loss.backward(retain_graph=True)
    kept = [leaf.grad.clone() for leaf in (x, weight)]
    loss.backward()
    linear_cross_entropy(x, weight, target, **RICH).backward()
    for leaf, oracle in zip((x, weight), exact, strict=True):
        assert error(leaf.grad, 3 * oracle) < 1e-6
    first = [leaf.grad for leaf in (x, weight)]
    before = [gradient.clone() for gradient in first]
    x.grad = weight.grad = None
    (2 * linear_cross_entropy(x, weight, target, **RICH)).backward()
    assert all(torch.equal(gradient, copy) for gradient, copy in zip(first, before, strict=True))
    for leaf, once in zip((x, weight), kept, strict=True):
        assert torch.allclose(leaf.grad, 2 * once, rtol=1e-6)


@pytest.mark.usefixtures("small_chunks")
def test_one_weight_under_two_losses_of_one_graph():
    x, weight, target = tensors(9, classes=20)
    losses = [linear_cross_entropy(x * factor, weight, target) for factor in (1.0, 2.0)]
    (losses[0] + 3 * losses[1]).backward()
    plain = [F.cross_entropy(F.linear(x * factor, weight), target) for factor in (1.0, 2.0)]
    for leaf, oracle in zip((x, weight), torch.autograd.grad(plain[0] + 3 * plain[1], (x, weight)), strict=True):
        assert torch.allclose(leaf.grad, oracle, rtol=1e-5, atol=1e-6)


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
            found = torch.autograd.grad(loss, (part, weight), grad, retain_graph=True)
            assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, oracle, strict=True))
            for gradient in found:
                gradient.zero_()


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


@pytest.mark.parametrize("reduction", cross_entropy.REDUCTIONS)
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
    for mine, theirs in zip(*(torch.autograd.grad(one, (x, weight), grad) for one in (ours, plain)), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert len(graphs) == 1


# A line of the kernels (or two), the part of it that is changed, and what it becomes.
MUTATIONS = {
    "mask one short": ("present = column < classes", "< classes", "< classes - 1"),
    "padding counted": ("present = column < classes", "< classes", "< stride"),
    "no rescale by the maximum": (
        "return new, total * tl.exp2((highest - new) * LOG2_E)",
        "highest - new",
        "new - new",
    ),
    "threads not rescaled": ("tl.sum(total * tl.exp2((highest - top) * LOG2_E)", "highest - top", "top - top"),
    "whole tiles left out": (
        "for start in range(whole, classes, BLOCK):\n        value",
        "whole, classes",
        "0, classes",
    ),
    "target not subtracted": ("tl.where(column == label, gradient - factor, gradient)", "- factor", "- 0.0"),
    "z loss without gradient": ("share = (amount + 2.0 * z_loss * normaliser) / total", "2.0 *", "0.0 *"),
    "z loss not added": ("entropy + z_loss * normaliser * normaliser", "+ z_loss", "+ 0.0"),
    "cap's derivative": ("4.0 * t / ((1.0 + t) * (1.0 + t))", "4.0", "2.0"),
    "cap's sign": ("return cap * tl.where(u < 0, -tanh, tanh)", "u < 0", "u < -9"),
    "target's logit not capped": (
        "wanted, _slope_there = capped(wanted, softcap)",
        "capped(wanted",
        "capped(2 * wanted",
    ),
    "rows' gradients dropped": ("factor = tl.load(row_gradient + row)", "tl.load", "1.0 + 0.0 * tl.load"),
    "ignored rows left": ("zero = tl.zeros((BLOCK,), logits", "tl.zeros((BLOCK,)", "0.5 + tl.zeros((BLOCK,)"),
    "last factor": (".to(tl.float32) * tl.load(factor)", "tl.load(factor)", "(tl.load(factor) * 0.5)"),
    "factor in place": (".to(tl.float32) * number", "number", "1.0"),
    "only factors above 1": ("if number != 1.0:", "!=", ">"),
}


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered:RuntimeWarning")  # a column of nothing but poison
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_kernel_fails_the_same_acceptance(monkeypatch, tmp_path, mutation):
    line, part, changed = MUTATIONS[mutation]
    assert line.count(part) == 1
    install_mutant(monkeypatch, tmp_path, cross_entropy.kernels, line, line.replace(part, changed))
    cases = [Case(6, 5, 130, torch.float32, reduction, ignored=True, **RICH) for reduction in ("mean", "none")]
    cases.append(Case(9, 5, 13000, torch.float32))  # whole tiles and a rest; the maximum of some rows is in either
    cases.append(Case(6, 5, 130, torch.float16))  # whose gradient of weight is summed in float32

    def failures() -> list[str | None]:
        return [case_failure(case, backward) for case in cases for backward in (False, True)]

    assert any(failures())
    monkeypatch.undo()
    assert not any(failures())


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


def test_what_is_launched_is_what_is_compiled_ahead_of_time(monkeypatch):
    kernels = cross_entropy.kernels
    compiled = {
        (one.function.__name__, one.num_warps, one.num_stages, *sorted(one.constants.items()))
        for one in kernels.compilations(90)
    }
    launched = []

    class Spy:
        def __init__(self, kernel):
            self.kernel, self.name = kernel, kernel.fn.__name__

        def __getitem__(self, grid):
            def launch(*arguments, **options):
                names = self.kernel.arg_names
                constants = {name: None for name, value in zip(names, arguments, strict=False) if value is None}
                constants |= {name: value for name, value in options.items() if name in names}
                launched.append((self.name, options["num_warps"], options["num_stages"], *sorted(constants.items())))
                return self.kernel[grid](*arguments, **options)

            return launch

    for name in ("losses", "scaled", "scale"):
        monkeypatch.setattr(kernels, name, Spy(getattr(kernels, name)))
    for softcap in (None, 2.0):
        for reduction in cross_entropy.REDUCTIONS:
            for dtype in cross_entropy.DTYPES:
                case = Case(3, 4, 10, dtype, reduction, softcap)
                for backward in (False, True):
                    cross_entropy.providers()["triton"].prepare(case, cross_entropy.inputs(case), backward)()
                    values = cross_entropy.inputs(case)
                    x, weight = (values[name].requires_grad_(backward) for name in ("x", "weight"))
                    loss = linear_cross_entropy(
                        x, weight, values["target"], reduction=reduction, softcap=softcap, label_smoothing=0.1
                    )
                    if backward:
                        loss.sum().backward()
    assert set(launched) == compiled
