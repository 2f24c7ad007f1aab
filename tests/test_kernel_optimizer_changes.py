"""What a step of the fused optimizers looks at again, and changes after construction, under the interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optimizer_support import copies, give_gradients, largest, parameters
from scalekernels import optimizer as ours
from scalekernels.optimizer import base, launch, tables
from torch import Tensor, nn

SIZES = (63, 1025, 5)


def forbid(monkeypatch: pytest.MonkeyPatch, owner: Any, *names: str) -> None:
    """Make a call of these functions fail the test."""

    def called(*_: Any, **__: Any) -> None:
        pytest.fail("this step made again what had not changed")

    for name in names:
        monkeypatch.setattr(owner, name, called)


def pair(**options: Any) -> tuple[list[nn.Parameter], list[nn.Parameter], ours.AdamW, torch.optim.AdamW]:
    """Parameters and an optimizer of ours after one step, and torch's in float64."""
    params = parameters(SIZES)
    exact = copies(params, torch.float64)
    optimizer, other = ours.AdamW(params, **options), torch.optim.AdamW(exact, **options)
    give_gradients(0, params, exact)
    optimizer.step()
    other.step()
    return params, exact, optimizer, other


def refill(step: int, params: list[nn.Parameter], exact: list[nn.Parameter]) -> None:
    """Other gradients in the same tensors."""
    generator = torch.Generator().manual_seed(step)
    for param, twin in zip(params, exact, strict=True):
        param.grad.normal_(generator=generator)
        twin.grad.copy_(param.grad)


def test_kept_gradients_cost_no_lists_and_no_copies(monkeypatch):
    params, exact, optimizer, other = pair()
    forbid(monkeypatch, optimizer, "_members", "_check_memory", "_kept")
    forbid(monkeypatch, optimizer._tables, "bind", "bind_grads")
    for module in (base, tables):
        forbid(monkeypatch, module, "to_device")
    for step in range(3):
        refill(step, params, exact)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6


def test_other_gradients_send_their_addresses_alone(monkeypatch):
    params, exact, optimizer, other = pair()
    forbid(monkeypatch, optimizer, "_members", "_check_memory", "_kept")
    forbid(monkeypatch, optimizer._tables, "bind")
    for step in range(3):
        optimizer.zero_grad(set_to_none=True)
        give_gradients(step, params, exact)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6
    assert optimizer._tables.uploads["grad"] <= 4
    assert optimizer._tables.uploads["param"] == 1


def test_gradients_that_come_go_and_move_under_the_same_object():
    params, exact, optimizer, other = pair()
    held = torch.randn(4, 63)
    for step in range(4):
        refill(step, params, exact)
        params[0].grad.data = held[step]  # the same object at another address
        exact[0].grad.copy_(held[step])
        if step == 1:
            params[1].grad = exact[1].grad = None
        if step == 2:
            params[1].grad = torch.ones(1025)
            exact[1].grad = torch.ones(1025).double()
        optimizer.step()
        other.step()
        if step == 1:
            params[1].grad, exact[1].grad = torch.zeros(1025), torch.zeros(1025).double()
    assert largest(params, exact) < 1e-6


def test_a_parameter_moved_replaced_or_no_longer_trained():
    params, exact, optimizer, other = pair()
    params[0].data = params[0].data.clone()  # another address
    refill(1, params, exact)
    optimizer.step()
    other.step()
    optimizer.state[params[1]]["exp_avg"] = optimizer.state[params[1]]["exp_avg"].clone()
    refill(2, params, exact)
    optimizer.step()
    other.step()
    params[2].requires_grad_(False)
    params[2].grad = exact[2].grad = None
    frozen = params[2].detach().clone()
    for param, twin in zip(params[:2], exact[:2], strict=True):
        param.grad.fill_(0.5)
        twin.grad.fill_(0.5)
    optimizer.step()
    other.step()
    assert torch.equal(params[2], frozen)
    assert largest(params, exact) < 1e-6
    (fresh,) = parameters((63,), seed=9)
    (twin,) = copies([fresh], torch.float64)
    optimizer.param_groups[0]["params"][0], other.param_groups[0]["params"][0] = fresh, twin
    before = params[0].detach().clone()
    give_gradients(7, [fresh], [twin])
    optimizer.step()
    other.step()
    assert torch.equal(params[0], before)
    assert largest([fresh], [twin]) < 1e-6


def test_loaded_state_is_used():
    params, exact, optimizer, other = pair()
    saved, theirs = optimizer.state_dict(), other.state_dict()
    optimizer.load_state_dict(saved)
    other.load_state_dict(theirs)
    for step in range(2):
        refill(step, params, exact)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6


def test_state_that_moves_under_the_same_object_is_used():
    params, exact, optimizer, other = pair()
    give_gradients(1, params, exact)
    optimizer.step()
    other.step()
    left = []  # what the state leaves is not freed, so that a step there would show in the parameters alone
    for param in params:
        state = optimizer.state[param]
        for name in ("step", "exp_avg", "exp_avg_sq"):
            left.append(state[name].data)
            state[name].data = state[name].data.clone()
            left[-1].fill_(7.0)
    give_gradients(2, params, exact)
    optimizer.step()
    other.step()
    assert largest(params, exact) < 1e-6
    assert all((tensor == 7.0).all() for tensor in left)


def test_a_parameter_that_became_a_strided_view_is_refused_and_its_neighbours_are_not_written():
    params, _, optimizer, _ = pair()
    memory, grads = torch.ones(126), torch.ones(126)
    params[0].data, params[0].grad = memory[::2], None
    params[0].grad = grads[::2]
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 of shape \(63,\) has strides \(2,\)"):
        optimizer.step()
    assert torch.equal(memory, torch.ones(126))


def test_other_changes_are_refused_by_name():
    params, _, optimizer, _ = pair()
    params[0].data = params[0].data[:9]  # the same address
    params[0].grad = torch.ones(9)
    with pytest.raises(ValueError, match=r"parameter 0 of group 0 has shape \(9,\) .* changed after its first step"):
        optimizer.step()
    params, _, optimizer, _ = pair()
    for param in params:  # as model.double() does
        param.data, param.grad = param.data.double(), param.grad.double()
    with pytest.raises(TypeError, match="parameter 0 of group 0 is float64; allowed: float32"):
        optimizer.step()
    params, _, optimizer, _ = pair()
    optimizer.param_groups[0]["amsgrad"] = True
    with pytest.raises(ValueError, match=r"AdamW\(amsgrad=True\) is not supported"):
        optimizer.step()
    matrix = nn.Parameter(torch.randn(4, 4))
    optimizer = ours.AdamW([matrix])
    matrix.grad = torch.randn(4, 4)
    optimizer.step()
    matrix.grad.t_()  # the same object and address, another layout
    with pytest.raises(ValueError, match=r"gradient of parameter 0 of group 0 has strides \(1, 4\)"):
        optimizer.step()
    shared = torch.randn(20)
    pieces = [nn.Parameter(torch.randn(10)) for _ in range(2)]
    optimizer = ours.AdamW(pieces)
    give_gradients(0, pieces)
    optimizer.step()
    pieces[0].data, pieces[1].data = shared[:10], shared[5:15]
    with pytest.raises(ValueError, match="share memory"):
        optimizer.step()


def test_every_launch_is_on_the_device_of_its_tensors(monkeypatch):
    from kernel_support import guarded_launches

    kernels = {
        launch.kernels.__name__: ("update_kernel",),
        launch.preparation.__name__: ("norm_kernel", "advance_kernel"),
    }
    launched = guarded_launches(monkeypatch, kernels)
    params = parameters((63,))
    optimizer = ours.AdamW(params, max_grad_norm=1.0)
    for step in range(2):
        give_gradients(step, params)
        optimizer.step()
    assert launched == ["norm_kernel", "advance_kernel", "update_kernel"] * 2


class Kept(Tensor):
    """A subclass without a dispatch of its own."""


def test_a_gradient_of_a_subclass_is_refused_also_in_a_settled_loop():
    params, _, optimizer, _ = pair()
    params[0].grad = torch.ones(63).as_subclass(Kept)
    with pytest.raises(TypeError, match="gradient of parameter 0 of group 0 is a Kept"):
        optimizer.step()
    params[0].grad = torch.zeros(63).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 0 of group 0 is sparse"):
        optimizer.step()
