"""Weight gradients summed by the products that compute them: against autograd, compiled, and over micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scalebench.workloads.checkpointing import recompute_blocks
from scalebench.workloads.gradient_sums import SummingLinear
from scalebench.workloads.mixed_precision import WorkingCopy

BFLOAT16_EPS = torch.finfo(torch.bfloat16).eps


class Block(nn.Module):
    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(12), nn.Linear(12, 20, bias=bias), nn.Linear(20, 12, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.silu(self.up(self.norm(x.float()).to(x.dtype))))


class Model(nn.Module):
    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 12)
        self.blocks = nn.ModuleList(Block(bias) for _ in range(3))
        self.head = nn.Linear(12, 7, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x)
        return self.head(x).float().square().mean()


def tokens(number: int) -> Tensor:
    return torch.randint(7, (4, 9), generator=torch.Generator().manual_seed(number))


def gradients(model: Model, runs: nn.Module, micro_batches: int) -> dict[str, Tensor]:
    for number in range(micro_batches):
        runs(tokens(number)).backward()
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def apart(sums: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """The largest distance of two sets of gradients, each in terms of its largest number."""
    return max(((sums[name] - other[name]).abs().max() / other[name].abs().max()).item() for name in other)


@pytest.mark.parametrize("micro_batches", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_sums_are_nearer_to_float32_than_gradients_rounded_to_16_bits(bias: bool, micro_batches: int) -> None:
    distances = []
    for sum_in_products in (False, True):
        model = Model(bias)
        copy = WorkingCopy(model, torch.bfloat16, sum_in_products=sum_in_products)
        ours = gradients(model, copy.module, micro_batches)
        exact = copy.module.float()  # the same weights and activations' form, in float32 throughout
        for parameter in exact.parameters():
            parameter.grad = None
        reference = Model(bias)
        reference.load_state_dict(exact.state_dict())
        distances.append(apart(ours, gradients(reference, reference, micro_batches)))
    separate, summed = distances
    assert summed <= max(separate, BFLOAT16_EPS)
    assert separate < 16 * BFLOAT16_EPS


def test_every_linear_layer_of_the_blocks_sums_and_the_tied_head_does_not() -> None:
    model = Model()
    names = dict(model.named_parameters())
    copy = WorkingCopy(model, torch.bfloat16, sum_in_products=True)
    summing = [name for name, layer in copy.module.named_modules() if isinstance(layer, SummingLinear)]
    assert summing == [f"blocks.{block}.{name}" for block in range(3) for name in ("up", "down")]
    assert list(dict(copy.module.named_parameters())) == list(names)
    assert not any(isinstance(layer, SummingLinear) for layer in model.modules())
    copy.module(tokens(0)).backward()
    for parameter, buffer, copied in zip(model.parameters(), copy.buffers, copy.copies, strict=True):
        assert parameter.grad is not None
        assert parameter.grad.data_ptr() == buffer.data_ptr()
        assert copied.grad is None


@pytest.mark.parametrize("order", ["no backward", "two forwards", "cleared in between"])
def test_a_cleared_gradient_is_replaced_whatever_ran_before(order: str) -> None:
    model, fresh = Model(), Model()
    copy = WorkingCopy(model, torch.bfloat16, sum_in_products=True)
    expected = gradients(fresh, WorkingCopy(fresh, torch.bfloat16, sum_in_products=True).module, 2)
    copy.module(tokens(5)).backward()
    if order == "no backward":
        copy.module(tokens(6))
        model.zero_grad()
        grads = gradients(model, copy.module, 2)
    elif order == "cleared in between":
        first = copy.module(tokens(0))
        model.zero_grad()
        first.backward()
        copy.module(tokens(1)).backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    else:
        model.zero_grad()
        losses = [copy.module(tokens(number)) for number in range(2)]
        for loss in losses:
            loss.backward()
        grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(torch.equal(grads[name], expected[name]) for name in expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo looks, and hides what it causes
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # dynamo does, for its own use
@pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")  # inductor, at import
@pytest.mark.parametrize(("backend", "whole"), [("aot_eager", False), ("aot_eager", True), ("inductor", False)])
def test_compiled_blocks_and_models_give_the_same_sums_from_one_compilation(backend: str, whole: bool) -> None:
    plain, compiled = Model(True), Model(True)
    expected = gradients(plain, WorkingCopy(plain, torch.bfloat16, sum_in_products=True).module, 2)
    from torch._dynamo.testing import CompileCounterWithBackend  # takes a second to import

    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    copy = WorkingCopy(compiled, torch.bfloat16, sum_in_products=True)
    runs = copy.module
    if whole:
        runs = torch.compile(runs, fullgraph=True, dynamic=False, backend=counter)
    for block in () if whole else runs.blocks:
        block.compile(fullgraph=True, dynamic=False, backend=counter)
    for _ in range(2):
        compiled.zero_grad()
        assert apart(gradients(compiled, runs, 2), expected) <= 4 * BFLOAT16_EPS
    assert counter.frame_count == 1


def test_recomputed_blocks_give_the_same_sums() -> None:
    plain, checkpointed = Model(), Model()
    recompute_blocks(checkpointed)
    sums = [
        gradients(model, WorkingCopy(model, torch.bfloat16, sum_in_products=True).module, 2)
        for model in (plain, checkpointed)
    ]
    assert all(torch.equal(sums[0][name], sums[1][name]) for name in sums[0])
