"""Distillation of students on the fused kernels: the gradient of the written-out formula, in float32 and in 16 bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import train_spec
from torch import Tensor, nn

from scalebench.families import gpt
from scalebench.tasks import NextToken
from scalebench.workloads.distill_loss import Distilled
from scalebench.workloads.distill_teacher import RunningTeacher
from scalebench.workloads.loop import backward, loss_scaler
from scalebench.workloads.mixed_precision import WorkingCopy

SYMBOLS, WEIGHT, TEMPERATURE = 61, 0.7, 2.0
EPS = torch.finfo(torch.float32).eps


def model(implementation: str, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    shape = gpt.explicit(1, 16, vocab_size=SYMBOLS, context=8, head_dim=16)
    return gpt.build(shape, implementation)


def batch() -> tuple[Tensor, Tensor]:
    drawn = torch.randint(0, SYMBOLS, (2, 9), generator=torch.Generator().manual_seed(1))
    return drawn[:, :-1], drawn[:, 1:]


def task() -> NextToken:
    unused: Any = None
    return NextToken(unused, 8, 2, 0, 0.2, 1)


def written_out(built: nn.Module, teacher: nn.Module) -> Tensor:
    """The loss by its formula, from a model's logits."""
    tokens, targets = batch()
    logits, taught = built(tokens), teacher(tokens).detach().to(built.tokens.weight.dtype)
    p, q = (torch.softmax(each / TEMPERATURE, -1) for each in (taught, logits))
    soft = (p * (p.log() - q.log())).sum(-1).mean()
    hard = -torch.log_softmax(logits, -1).gather(-1, targets[..., None]).mean()
    return WEIGHT * TEMPERATURE**2 * soft + (1 - WEIGHT) * hard


def gradients(built: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.grad.double() for name, parameter in built.named_parameters()}


def distilled(teacher: nn.Module, precision: str) -> Distilled:
    spec: Any = train_spec(precision=precision)
    return Distilled(task(), RunningTeacher(teacher, task(), spec), WEIGHT, TEMPERATURE)


@pytest.mark.parametrize("implementation", ["triton", "fused"])
def test_the_gradient_in_float32_is_that_of_the_formula(implementation: str) -> None:
    teacher = model("eager", seed=5).eval()
    exact, plain, ours = model("eager").double(), model("eager"), model(implementation)
    for built in (exact, plain):
        written_out(built, teacher).backward()
    distilled(teacher, "float32").loss(ours, batch()).backward()
    truth, near, fused = map(gradients, (exact, plain, ours))
    assert list(fused) == list(truth)
    for name, values in truth.items():
        error, allowed = ((each[name] - values).abs().max().item() for each in (fused, near))
        assert error <= max(4 * allowed, 64 * EPS * values.abs().max().item()), name


def test_the_gradient_through_a_16_bit_copy_is_as_near_as_under_autocast() -> None:
    teacher = model("eager", seed=5).eval()
    exact, plain, ours = model("eager").double(), model("eager"), model("fused")
    written_out(exact, teacher).backward()
    spec = train_spec(precision="float16", batch_size=2)  # the interpreter multiplies no bfloat16
    scaler = loss_scaler(torch.device("cpu"), train_spec())  # none: these gradients are not too small
    learned = distilled(teacher, "float16")
    backward(plain, learned, batch(), spec, scaler)
    copy = WorkingCopy(ours, torch.float16, sum_in_products=True)
    backward(copy.module, learned, batch(), spec, scaler)
    truth, near, fused = map(gradients, (exact, plain, ours))
    for name, values in truth.items():
        error, allowed = ((each[name] - values).norm().item() for each in (fused, near))
        assert error <= 2 * allowed + 0.01 * values.norm().item(), name
