"""Optimizers against their formulas written out, which parameters they take, their rates, and the schedules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from support import train_spec
from torch.optim import AdamW

from scalebench.errors import InputError
from scalebench.families import FAMILIES, gpt, linear, mlp
from scalebench.optim.muon import Muon, orthogonalised
from scalebench.optim.optimizers import OPTIMIZERS, build_optimizer, hidden_matrices
from scalebench.optim.schedules import schedule_factor, set_learning_rate
from scalebench.workloads.training_spec import TrainSpec

ELEMENTWISE = [name for name in OPTIMIZERS if name != "muon"]
CONFIG = {"vocab_size": 61, "context": 16}


@pytest.mark.parametrize("name", ELEMENTWISE)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_optimizers_step_as_their_formulas_say(name: str, implementation: str) -> None:
    """Three steps on changing gradients in float64, against the update written out."""
    spec = train_spec(optimizer=name, implementation=implementation, learning_rate=0.1)
    gradient = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    module = torch.nn.Linear(2, 2, bias=False).double()
    start = module.weight.detach().clone()
    optimizer = build_optimizer(module, spec)
    for step in range(3):
        module.weight.grad = gradient * (1 - step)
        optimizer.step()
    expected = written_out(name, start.numpy().copy(), gradient.numpy(), spec)
    np.testing.assert_allclose(module.weight.detach().numpy(), expected, rtol=1e-9)


def written_out(name: str, w: np.ndarray, gradient: np.ndarray, s: TrainSpec) -> np.ndarray:
    first, second, rate, decoupled = np.zeros_like(w), np.zeros_like(w), s.learning_rate, name in ("adamw", "lion")
    for step in range(1, 4):
        if decoupled:
            w = w * (1 - rate * s.weight_decay)
        g = gradient * (2 - step) + (0 if decoupled else s.weight_decay * w)
        if name == "sgd":
            w = w - rate * g
        elif name in ("momentum", "nesterov"):
            first = g if step == 1 else s.momentum * first + g
            w = w - rate * (g + s.momentum * first if name == "nesterov" else first)
        elif name == "lion":
            w = w - rate * np.sign(s.beta1 * first + (1 - s.beta1) * g)
            first = s.beta2 * first + (1 - s.beta2) * g
        elif name == "adagrad":
            second = second + g**2
            w = w - rate * g / (np.sqrt(second) + 1e-10)
        elif name == "rmsprop":
            second = s.beta2 * second + (1 - s.beta2) * g**2
            w = w - rate * g / (np.sqrt(second) + 1e-8)
        else:
            first = s.beta1 * first + (1 - s.beta1) * g
            second = s.beta2 * second + (1 - s.beta2) * g**2
            corrected = np.sqrt(second / (1 - s.beta2**step)) + 1e-8
            w = w - rate * first / (1 - s.beta1**step) / corrected
    return w


def test_muon_moves_a_hidden_matrix_by_its_singular_vectors_at_the_size_of_adamw() -> None:
    """The first update is U V^T of the gradient, by the iteration's accuracy, times 0.2 sqrt(max(rows, columns))."""
    torch.manual_seed(0)
    spec = train_spec(optimizer="muon", learning_rate=0.1, weight_decay=0.0)
    module = torch.nn.Sequential(torch.nn.Linear(24, 40), torch.nn.Linear(40, 3))
    start = module[0].weight.detach().clone()
    for parameter in module.parameters():
        parameter.grad = torch.randn_like(parameter)
    u, _, v = torch.linalg.svd(module[0].weight.grad, full_matrices=False)
    build_optimizer(module, spec).step()
    moved = (start - module[0].weight.detach()) / (0.1 * 0.2 * math.sqrt(40))
    singular = torch.linalg.svdvals(moved)
    assert singular.min() > 0.5
    assert singular.max() < 1.3
    torch.testing.assert_close(u.T @ moved @ v.T, torch.diag(torch.diagonal(u.T @ moved @ v.T)), atol=0.06, rtol=0)


@pytest.mark.parametrize(("tied", "positions"), [(True, "rotary"), (False, "learned")])
def test_muon_takes_the_hidden_matrices_and_adamw_the_rest(tied: bool, positions: str) -> None:
    model = gpt.build(gpt.config_for(5e3, tied=tied, positions=positions, bias=True, **CONFIG), "eager")
    optimizer = build_optimizer(model, train_spec(optimizer="muon"))
    muon, adamw = optimizer.parts
    assert isinstance(muon, Muon)
    assert isinstance(adamw, AdamW)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    owned = [{names[id(p)] for group in part.param_groups for p in group["params"]} for part in (muon, adamw)]
    assert owned[0] | owned[1] == set(names.values())
    assert not owned[0] & owned[1]
    parts = ("attention.qkv.weight", "attention.out.weight", "up.weight", "down.weight")
    assert owned[0] == {f"blocks.{i}.{part}" for i in range(len(model.blocks)) for part in parts}
    decays = {names[id(p)]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name for name, decay in decays.items() if decay} == {n for n, p in model.named_parameters() if p.ndim == 2}


# Parameters of two and more dimensions that AdamW updates, of every family with hidden matrices.
OUTER = {
    "gpt": {"tokens.weight"},
    "moe": {"tokens.weight"},
    "bert": {"tokens.weight", "positions.weight", "segments.weight", "follows.weight"},
    "transformer": {"tokens.weight"},
    "rnn": {"tokens.weight"},
    "attention": {"embedding.weight", "readout.weight"},
    "vit": {"class_token", "positions", "patches.weight", "head.weight"},
    "cnn": {"convolution1.weight", "dense3.weight"},
    "resnet": {"stem.0.weight", "head.weight"},
    "mlp": {"5.weight"},
}


@pytest.mark.parametrize("name", OUTER)
def test_muon_takes_matrices_by_their_role_in_every_family(name: str) -> None:
    family = FAMILIES[name]
    text = CONFIG if name in ("gpt", "moe", "bert", "transformer") else {"vocab_size": 61} if name == "rnn" else {}
    model = family.build(family.config_for(6e4, **text), "eager")
    hidden = hidden_matrices(model)
    outer = {key for key, parameter in model.named_parameters() if parameter.ndim >= 2 and id(parameter) not in hidden}
    assert {key for key in outer if "biases" not in key} == OUTER[name]
    assert not {key for key, p in model.named_parameters() if id(p) in hidden and ("bias" in key or p.ndim < 2)}


def test_every_family_with_hidden_matrices_has_outer_layers() -> None:
    assert set(OUTER) | {"linear"} == set(FAMILIES)


def test_muon_asks_for_the_outer_layers_of_an_unknown_model() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 3))

    model: Any = Model()
    with pytest.raises(InputError, match="first and last layers of Model: name them in OUTER"):
        hidden_matrices(model)
    model.OUTER = ("layers.0", "absent")
    with pytest.raises(InputError, match=r"OUTER of Model: .*absent"):
        hidden_matrices(model)


@pytest.mark.parametrize("shape", [(6, 10), (10, 6), (8, 8)])
def test_muon_on_a_matrix_is_torchs(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(shape)) for _ in range(2))
    optimizers = (
        Muon([ours], lr=0.1, momentum=0.9),
        torch.optim.Muon([theirs], lr=0.1, momentum=0.9, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    )
    for _ in range(3):
        ours.grad = torch.randn(shape)
        theirs.grad = ours.grad.clone()
        for optimizer in optimizers:
            optimizer.step()
    # Products of bfloat16 are rounded in another order.
    torch.testing.assert_close(ours, theirs, atol=3 * 0.1 * 0.2 * 2**-6, rtol=0)


def test_muon_orthogonalises_each_matrix_of_a_stack_and_a_kernel_as_one_matrix() -> None:
    torch.manual_seed(0)
    stack, kernel = torch.nn.Parameter(torch.zeros(3, 4, 6)), torch.nn.Parameter(torch.zeros(5, 2, 3, 3))
    stack.grad, kernel.grad = torch.randn(3, 4, 6), torch.randn(5, 2, 3, 3)
    stack.grad[1] *= 1000  # of one expert: the others must not feel it
    Muon([stack, kernel], lr=1.0, momentum=0.0, weight_decay=0.0).step()
    for moved, grad in zip(stack.detach(), stack.grad, strict=True):
        torch.testing.assert_close(moved, -0.2 * 6**0.5 * orthogonalised(grad[None])[0].float(), atol=1e-2, rtol=0)
    expected = -0.2 * 18**0.5 * orthogonalised(kernel.grad.flatten(1)[None]).float().view_as(kernel)
    torch.testing.assert_close(kernel.detach(), expected, atol=1e-2, rtol=0)
    with pytest.raises(ValueError, match=r"shape \(3,\); Muon takes matrices"):
        Muon([torch.nn.Parameter(torch.zeros(3))], lr=1.0)


def test_muon_shows_the_state_and_the_rates_of_both_its_parts() -> None:
    model = mlp.build(mlp.config_for(1e3), "eager")
    spec = train_spec(optimizer="muon", steps=10, schedule="linear")
    optimizer = build_optimizer(model, spec)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    set_learning_rate(optimizer, spec, 5)
    assert {group["lr"] for part in optimizer.parts for group in part.param_groups} == {spec.learning_rate / 2}
    optimizer.step()
    assert set(optimizer.state) == set(model.parameters())
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in model.parameters())


def test_muon_is_refused_where_there_is_no_hidden_matrix() -> None:
    model = linear.build(linear.config_for(100), "eager")
    assert not hidden_matrices(model)
    with pytest.raises(ValueError, match="hidden matrices"):
        build_optimizer(model, train_spec(optimizer="muon"))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_vectors_do_not_decay_and_matrices_do(name: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    groups = build_optimizer(module, train_spec(optimizer=name)).param_groups
    decay = {id(parameter): group["weight_decay"] for group in groups for parameter in group["params"]}
    assert decay == {id(p): 0.1 if p.ndim == 2 else 0.0 for p in module.parameters()}


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 1]),
        ("linear", [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 0.75, 0.5, 0.25]),
        ("cosine", [1 / 5, 2 / 5, 3 / 5, 4 / 5, *(0.5 * (1 + math.cos(math.pi * k / 4)) for k in range(4))]),
        ("wsd", [1 / 5, 2 / 5, 3 / 5, 4 / 5, 1, 1, 1, 0.5]),
    ],
)
def test_schedules_warm_up_and_fall_as_drawn(schedule: str, expected: list[float]) -> None:
    s = train_spec(steps=8, schedule=schedule, warmup_steps=4, decay_fraction=0.25)
    np.testing.assert_allclose([schedule_factor(s, step) for step in range(8)], expected, rtol=1e-6)


def test_the_rate_set_is_the_factor_times_the_peak_in_every_group() -> None:
    module, spec = torch.nn.Linear(3, 3), train_spec(steps=8, schedule="cosine", learning_rate=0.5)
    optimizer = build_optimizer(module, spec)
    set_learning_rate(optimizer, spec, 6)
    expected = 0.5 * 0.5 * (1 + math.cos(math.pi * 6 / 8))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([expected] * 2)
