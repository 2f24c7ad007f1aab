"""GPT in one dtype on the fused kernels: the eager model's numbers, one compilation for all blocks, one cast a step."""

from __future__ import annotations

import pytest
import torch
from kernel_support import Operations
from scalekernels.cross_entropy import products
from support import train_spec
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from waiting import Waits, host_reads

from scalebench.families import gpt
from scalebench.families.modules.gpt_fused import gelu
from scalebench.optim.optimizers import build_optimizer
from scalebench.tasks import NextToken
from scalebench.workloads import gradient_sums
from scalebench.workloads.agreement import compare_losses
from scalebench.workloads.checkpointing import recompute_blocks
from scalebench.workloads.decoding import Sampling, chooser, generate
from scalebench.workloads.loop import Step, loss_scaler
from scalebench.workloads.mixed_precision import WorkingCopy

SHAPE = {"depth": 2, "width": 16, "vocab_size": 61, "context": 20, "head_dim": 16}
FORMS = {
    "rms, rotary, tied": {},
    "layer, learned, bias": {"norm": "layer", "positions": "learned", "bias": True, "tied": False},
}
EPS = torch.finfo(torch.float32).eps


def model(implementation: str, **fields: object) -> nn.Module:
    torch.manual_seed(0)
    return gpt.build(gpt.explicit(**SHAPE, **fields), implementation)


def batch(rows: int = 2) -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, 61, (rows, 21), generator=torch.Generator().manual_seed(1))
    return drawn[:, :-1], drawn[:, 1:]


def results_of(built: nn.Module) -> dict[str, Tensor]:
    loss = NextToken.losses(NextToken.__new__(NextToken), built, batch())
    loss.mean().backward()
    gradients = {name: parameter.grad.double() for name, parameter in built.named_parameters()}
    return {"loss": loss.detach().double(), "logits": built(batch()[0]).detach().double()} | gradients


@pytest.mark.parametrize("form", FORMS)
def test_eager_and_fused_agree_in_parameters_loss_logits_and_gradients(form: str) -> None:
    eager, fused = model("eager", **FORMS[form]), model("fused", **FORMS[form])
    assert list(eager.state_dict()) == list(fused.state_dict())
    theirs, ours = results_of(eager), results_of(fused)
    for name, truth in results_of(model("eager", **FORMS[form]).double()).items():
        error, allowed = ((outputs[name] - truth).abs().max().item() for outputs in (ours, theirs))
        assert error <= max(4 * allowed, 64 * EPS * truth.abs().max().item()), name


def test_gelu_is_torchs_tanh_form_with_its_gradient() -> None:
    x = torch.linspace(-12, 12, 4001, dtype=torch.float64).float().requires_grad_()
    exact = x.detach().double().requires_grad_()
    gelu(x).sum().backward()
    torch.nn.functional.gelu(exact, approximate="tanh").sum().backward()
    torch.testing.assert_close(gelu(x).double(), nn.functional.gelu(exact, approximate="tanh"), rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(x.grad.double(), exact.grad, rtol=2e-6, atol=2e-6)


@pytest.mark.slow  # inductor has to be imported
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by inductor, at import
def test_compiled_gelu_keeps_its_input_alone_so_that_each_way_is_one_elementwise_pass() -> None:
    torch._dynamo.reset()
    x = torch.randn(3, 40, dtype=torch.bfloat16, requires_grad=True)
    out = torch.compile(gelu, fullgraph=True, backend="aot_eager_decomp_partition")(x)
    assert [(kept.shape, kept.dtype) for kept in out.grad_fn.saved_tensors] == [(x.shape, x.dtype)]
    (gradient,) = torch.autograd.grad(out.sum(), x)
    (expected,) = torch.autograd.grad(gelu(x).sum(), x)
    torch.testing.assert_close(gradient, expected, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_greedy_with_the_cache_is_greedy_without_it_and_eager(form: str) -> None:
    fields = FORMS[form] | {"tied": False}  # tied weights predict the token that was read, for ever
    fused, eager, start = model("fused", **fields), model("eager", **fields), batch()[0][:, :7]
    tokens = generate(fused, start, 8, chooser(Sampling()))
    for built in (fused, eager):
        assert torch.equal(tokens[:, 7:], built(tokens[:, :-1]).argmax(-1)[:, 6:])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks, and hides what it causes
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does, for its own use
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("whole", [False, True])
def test_the_graph_has_no_breaks_and_one_compilation_serves_all_blocks(form: str, whole: bool) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    built, expected = model("fused", **FORMS[form]), results_of(model("fused", **FORMS[form]))
    if whole:
        runs = torch.compile(built, fullgraph=True, dynamic=False, backend=counter)
    else:
        runs = built
        for block in built.blocks:
            block.compile(fullgraph=True, dynamic=False, backend=counter)
    loss = runs(batch()[0], targets=batch()[1], reduction="mean")
    loss.backward()
    assert counter.frame_count == 1
    assert loss.item() == pytest.approx(expected["loss"].mean().item(), rel=1e-6)
    for name, parameter in built.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), expected[name], rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks, and hides what it causes
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does, for its own use
@pytest.mark.parametrize("form", FORMS)
def test_compiled_blocks_add_weight_gradients_in_their_products(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[bool] = []

    def accumulate(total: Tensor, left: Tensor, right: Tensor, *, keep: bool) -> None:
        calls.append(keep)
        products.accumulate(total, left, right, keep=keep)

    monkeypatch.setattr(gradient_sums, "accumulate", accumulate)
    separate, summed = model("fused", **FORMS[form]), model("fused", **FORMS[form])
    gradients = []
    for built in (separate, summed):
        copy = WorkingCopy(built, torch.float16, sum_in_products=built is summed)
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        for block in copy.module.blocks if built is summed else ():
            block.compile(fullgraph=True, dynamic=False, backend=counter)
        for _ in range(2):
            (copy.module(batch()[0], targets=batch()[1], reduction="mean") * 2.0**6).backward()
        assert counter.frame_count == (built is summed)
        assert calls == ([False] * 8 + [True] * 8 if built is summed else [])  # two blocks of four linear layers
        gradients.append([parameter.grad.clone() for parameter in built.parameters()])
    for ours, theirs in zip(*reversed(gradients), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=4e-3, atol=2e-3 * theirs.abs().max().item())


class Casts(TorchDispatchMode):
    """Counts the operations that bring weights into the working copy."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += "_foreach_copy" in str(function)
        return function(*args, **(kwargs or {}))


class Dtypes(TorchDispatchMode):
    """Collects the dtypes of all results with as many numbers as the residual stream, and of the kernels' inputs."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size, self.stream, self.inputs = size, set(), {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.namespace == "scalekernels":
            self.inputs.setdefault(function._opname, set()).add(args[0].dtype)
        results = function(*args, **(kwargs or {}))
        for result in results if isinstance(results, tuple) else (results,):
            if isinstance(result, Tensor) and result.numel() == self.size:
                self.stream.add(result.dtype)
        return results


@pytest.mark.parametrize("form", FORMS)
def test_stream_norms_and_loss_take_16_bits_from_float32_master_weights(form: str) -> None:
    built = model("fused", **FORMS[form])
    copy = WorkingCopy(built, torch.float16, sum_in_products=True)
    with Dtypes(2 * 20 * 16) as dtypes:
        copy.module(batch()[0], targets=batch()[1], reduction="mean").backward()
    assert dtypes.stream == {torch.float16}  # forward and backward
    assert dtypes.inputs.pop("scaled_gradient") == {torch.float32}  # the head's, which is summed over chunks
    assert dtypes.inputs.keys() > {"norm", "norm_gradients", "linear_cross_entropy", "attention"}
    assert set().union(*dtypes.inputs.values()) == {torch.float16}
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    assert {parameter.grad.dtype for parameter in built.parameters()} == {torch.float32}


def step_on(built: nn.Module, accumulation: int, dtype: torch.dtype | None) -> tuple[Step, WorkingCopy | None]:
    # Torch's own optimizer: the fused one takes seconds a step under the interpreter.
    spec = train_spec(implementation="sdpa", accumulation=accumulation, optimizer="sgd", learning_rate=0.3)
    optimizer = build_optimizer(built, spec)
    copy = None if dtype is None else WorkingCopy(built, dtype)
    if copy is not None:
        copy.follow(optimizer)
    task = NextToken.__new__(NextToken)
    return Step(
        built if copy is None else copy.module, optimizer, task, spec, loss_scaler(torch.device("cpu"), spec)
    ), copy


@pytest.mark.slow
@pytest.mark.parametrize(("form", "accumulation"), list(zip(FORMS, [1, 2], strict=True)))
def test_a_working_copy_trains_like_float32_and_is_cast_once_a_step(form: str, accumulation: int) -> None:
    built = model("fused", **FORMS[form])
    step, copy = step_on(built, accumulation, torch.float16)
    exact, _ = step_on(model("fused", **FORMS[form]), accumulation, None)
    matrices = [parameter for parameter in copy.module.parameters() if parameter.ndim == 2]
    assert {parameter.dtype for parameter in matrices} == {torch.float16}
    assert {parameter.dtype for parameter in built.parameters()} == {torch.float32}
    assert {norm.weight.dtype for norm in copy.module.modules() if "Norm" in type(norm).__name__} == {torch.float32}
    addresses = set()
    for _ in range(2):
        with Casts() as casts, Operations() as seen:
            loss = step(batch())
        assert casts.count == 2  # one for each dtype: matrices, and the weights of norms
        assert seen.names.count("linear_cross_entropy") == accumulation
        assert loss.item() == pytest.approx(exact(batch()).item(), abs=2e-3)
        for master, working in zip(built.parameters(), copy.module.parameters(), strict=True):
            assert torch.equal(working.detach(), master.detach().to(working.dtype))
            assert working.grad is None
        addresses.add(tuple(buffer.data_ptr() for buffer in copy.buffers))
    assert len(addresses) == 1


@pytest.mark.slow
def test_gradients_of_micro_batches_are_summed_in_float32_and_replaced_after_a_step() -> None:
    built = model("fused")
    copy = WorkingCopy(built, torch.float16)
    parts = []
    for scale in (2.0**4, 2.0**-8):  # the second would be lost in a sum of 16 bits
        (copy.module(*batch()[:1], targets=batch()[1], reduction="mean") * scale).backward()
        parts.append([parameter.grad.clone() for parameter in built.parameters()])
    for first, both in zip(*parts, strict=True):
        assert (both - first * (1 + 2.0**-12)).norm() <= 0.05 * (first * 2.0**-12).norm()
    built.zero_grad()
    copy.module(batch()[0], targets=batch()[1], reduction="mean").backward()
    for parameter, first in zip(built.parameters(), parts[0], strict=True):
        torch.testing.assert_close(parameter.grad, first * 2.0**-4, rtol=0.02, atol=1e-4)


def test_checkpointing_recomputes_blocks_of_the_working_copy() -> None:
    plain, checkpointed = model("fused"), model("fused")
    recompute_blocks(checkpointed)
    gradients = []
    for built in (plain, checkpointed):
        copy = WorkingCopy(built, torch.float16)
        with Operations() as seen:
            copy.module(batch()[0], targets=batch()[1], reduction="mean").backward()
        gradients.append(([parameter.grad.clone() for parameter in built.parameters()], seen.names.count("attention")))
    assert [count for _, count in gradients] == [2, 4]
    for ours, theirs in zip(gradients[1][0], gradients[0][0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["triton", "fused"])
def test_no_step_of_the_fused_kernels_reads_a_number_from_the_device(implementation: str) -> None:
    """Forward and backward of two micro-batches, clipping and update; `fused` with a copy and summing products."""
    built = model(implementation)
    spec = train_spec(implementation=implementation, accumulation=2)
    optimizer = build_optimizer(built, spec)
    assert type(optimizer).__module__.startswith("scalekernels")
    runs = built
    if implementation == "fused":
        copy = WorkingCopy(built, torch.float32, sum_in_products=True)
        copy.follow(optimizer)
        runs = copy.module
    step = Step(runs, optimizer, NextToken.__new__(NextToken), spec, loss_scaler(torch.device("cpu"), spec))
    losses = torch.zeros(2)
    with Waits() as waits, host_reads() as reads:
        for index in range(2):
            losses[index] = step(batch())
    assert waits.seen == []
    # Targets on a CPU are checked, for each micro-batch; the keys of gradient sums are on the CPU on a GPU, too.
    assert reads.count(("scalekernels.cross_entropy", "__bool__")) == 4
    assert set(reads) <= {("scalekernels.cross_entropy", "__bool__"), ("scalebench.workloads.gradient_sums", "__int__")}
    assert losses[1] < losses[0]


SMALL = {"device": "cpu", "precision": "float32", "depth": 1, "width": 16, "head_dim": 16, "batch_size": 2}


@pytest.mark.slow
@pytest.mark.parametrize(("form", "steps"), [("rotary", 24), ("learned", 3)])  # ten of warm-up, twelve of decay
def test_every_implementation_trains_alike(form: str, steps: int) -> None:
    ways = (("triton", "none"), ("fused", "none"))
    results = compare_losses(ways, steps, length=16, form=form, **SMALL)
    assert [result["agrees"] for result in results.values()] == [True] * 3, results
    assert max(result["worst_nats"] for result in results.values()) < 5e-6


@pytest.mark.slow
def test_a_wrong_update_is_seen_in_the_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalebench.families.modules.gpt_fused.SQRT_8_OVER_PI", 1.5)
    result = compare_losses((("fused", "none"), ("fused", "step")), steps=3, length=16, **SMALL)
    assert not result["fused none"]["agrees"]
    assert result["fused none"]["mean_nats"] > 1e-3
    assert "error" in result["fused step"]  # no CUDA graph on a CPU: told, and the others go on
