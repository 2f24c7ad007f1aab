"""What tensors the fused optimizers take, in what order and layout, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from optimizer_support import accepted, copies, give_gradients, largest, parameters
from scalekernels import optimizer as ours
from scalekernels.optimizer import kernels as optimizer_kernels
from torch import Tensor, nn


def test_gradients_are_only_read_and_scratch_is_written_before_it_is_read():
    params = parameters((1025, 9001))
    same, exact = copies(params, torch.float32), copies(params, torch.float64)
    optimizer = ours.AdamW(params, max_grad_norm=1.0)
    others = [torch.optim.AdamW(group) for group in (same, exact)]
    for step in range(2):
        give_gradients(step, params, same, exact)
        before = [param.grad.clone() for param in params]
        if step:  # everything between steps is poisoned
            optimizer._tables.scalars.fill_(float("nan"))
            optimizer._tables.partials.fill_(float("nan"))
            optimizer.grad_norm.fill_(float("nan"))
        for group in (same, exact):
            torch.nn.utils.clip_grad_norm_(group, 1.0)
        for each in (optimizer, *others):
            each.step()
        assert all(torch.equal(param.grad, grad) for param, grad in zip(params, before, strict=True))
    assert accepted(params, same, exact)


def test_groups_dtypes_schedules_and_a_learning_rate_as_tensor():
    params = parameters((1025, 63)) + parameters((257,), torch.float16)
    exact = copies(params, torch.float64)
    same = copies(params, torch.float32)

    def groups(values):
        return [
            {"params": values[:1], "lr": torch.tensor(0.01)},
            {"params": values[1:2], "weight_decay": 0.5, "betas": (0.5, 0.6)},
            {"params": values[2:], "lr": 0.02},
        ]

    optimizers = [ours.AdamW(groups(params)), torch.optim.AdamW(groups(same)), torch.optim.AdamW(groups(exact))]
    schedules = [torch.optim.lr_scheduler.LambdaLR(each, lambda step: 1 / (step + 1)) for each in optimizers]
    launched = []
    for step in range(3):
        give_gradients(step, params, same, exact)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        launched.append(len(optimizers[0]._tables.chunks))
    assert launched == [2, 2, 2]  # one launch per dtype
    assert accepted(params[:2], same[:2], exact[:2])
    assert largest(params[2:], exact[2:]) <= 4 * torch.finfo(torch.float16).eps * float(exact[2].detach().abs().max())


def test_only_what_moved_travels_to_the_device():
    params = parameters((63, 1025))
    optimizer = ours.AdamW(params)
    give_gradients(0, params)
    optimizer.step()
    uploads = optimizer._tables.uploads
    first = {"chunks", "param", "grad", "step", "first", "second", "numel", "group", "options"}
    assert dict(uploads) == dict.fromkeys(first, 1)
    optimizer.step()  # nothing moved
    assert dict(uploads) == dict.fromkeys(first, 1)
    kept = [param.grad for param in params]
    optimizer.zero_grad(set_to_none=True)
    give_gradients(1, params)
    optimizer.step()
    assert dict(uploads) == dict.fromkeys(first, 1) | {"grad": 2}
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    assert dict(uploads) == dict.fromkeys(first, 1) | {"grad": 2, "options": 2}
    params[0].grad = None
    optimizer.step()
    assert dict(uploads) == dict.fromkeys(first, 1) | {"grad": 3, "options": 2}
    assert len(kept) == 2


def test_a_missing_gradient_leaves_parameter_and_step():
    params = parameters((63, 1025, 5))
    exact = copies(params, torch.float64)
    optimizer, other = ours.AdamW(params, max_grad_norm=1.0), torch.optim.AdamW(exact)
    for step in range(4):
        give_gradients(step, params, exact)
        for group in (params, exact):
            group[2].grad = None  # never a gradient
            if step == 1:
                group[0].grad = None
        torch.nn.utils.clip_grad_norm_(exact, 1.0)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6
    assert [float(optimizer.state[param]["step"]) for param in params[:2]] == [3, 4]
    assert params[2] not in optimizer.state


def test_permuted_dense_parameters_keep_their_layout():
    base = [torch.randn(5, 7, 3, 2).to(memory_format=torch.channels_last), torch.randn(9, 4).t()]
    params = [nn.Parameter(value.clone(memory_format=torch.preserve_format)) for value in base]
    exact = [nn.Parameter(value.double()) for value in base]
    assert params[1].stride() == (1, 4)
    optimizer, other = ours.AdamW(params, state_dtype=torch.float32), torch.optim.AdamW(exact)
    for _ in range(2):
        for param, twin in zip(params, exact, strict=True):
            param.grad = torch.empty_like(param).normal_()
            twin.grad = param.grad.double()
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6
    assert optimizer.state[params[0]]["exp_avg"].stride() == params[0].stride()
    other.load_state_dict(optimizer.state_dict())
    params[1].grad = torch.randn(4, 9)
    params[1].grad = None
    params[0].grad = torch.randn(5, 7, 3, 2)
    with pytest.raises(ValueError, match=r"gradient of parameter 0 of group 0 has strides \(42, 6, 2, 1\)"):
        optimizer.step()


def test_tensors_that_start_anywhere_in_memory():
    flat, grads = torch.randn(20_000), torch.randn(20_000)
    pieces = ((1, 9001), (9003, 16), (9020, 8192))
    params = [nn.Parameter(flat[start : start + size]) for start, size in pieces]
    exact = copies(params, torch.float64)
    untouched = torch.ones(20_000, dtype=torch.bool)
    for (start, size), param, twin in zip(pieces, params, exact, strict=True):
        param.grad = grads[start : start + size]
        twin.grad = param.grad.double()
        untouched[start : start + size] = False
    before = flat[untouched].clone()
    optimizer, other = ours.AdamW(params), torch.optim.AdamW(exact)
    optimizer.step()
    other.step()
    assert largest(params, exact) < 1e-6
    assert torch.equal(flat[untouched], before)


def test_a_tied_weight_is_updated_once():
    (param,) = parameters((63,))
    (exact,) = copies([param], torch.float64)
    with pytest.warns(UserWarning, match="names a parameter more than once"):
        optimizer = ours.SGD([param, param], lr=0.1)
    other = torch.optim.SGD([exact], lr=0.1)
    give_gradients(0, [param], [exact])
    optimizer.step()
    other.step()
    assert largest([param], [exact]) < 1e-6


def test_more_than_two_to_the_31_elements():
    """Only the last chunk is launched; the pages of the rest are never touched."""
    length = 2**31 + 5000
    try:
        param, grad = (torch.empty(length, dtype=torch.float16) for _ in range(2))
    except RuntimeError as error:
        pytest.skip(f"no address space for {length} elements: {error}")
    param[-9000:], grad[-9000:] = 1.0, 0.5
    optimizer = ours.SGD([nn.Parameter(param)], lr=1.0)
    optimizer.param_groups[0]["params"][0].grad = grad
    tables = optimizer._tables
    steps = torch.zeros(())
    tables.bind([param], [grad], [0], [[steps], [], [], [], [], []])
    chunks = tables.chunks[torch.float16]
    assert chunks[-1].tolist() == [0, 2**31 // optimizer_kernels.CHUNK]
    tables.chunks[torch.float16] = chunks[-1:]
    optimizer.step()
    assert torch.equal(param[2**31 :], torch.full((5000,), 0.5, dtype=torch.float16))
    assert torch.equal(param[-9000:-5000], torch.ones(4000, dtype=torch.float16))


def test_closure_and_version_counters():
    (param,) = parameters((63,))
    optimizer = ours.AdamW([param])

    def closure():
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    version = param._version
    assert float(optimizer.step(closure).detach()) > 0
    assert param._version > version
    output = (param * param).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.backward()


class Wrapped(Tensor):
    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise NotImplementedError


def test_what_the_kernels_cannot_do_is_refused_by_name():
    def refused(error, match, *given, make=ours.AdamW, **options):
        with pytest.raises(error, match=match):
            make(*given, **options)

    plain = parameters((8, 8))
    refused(TypeError, "parameter 0 of group 0 is complex64; allowed: float32", [torch.zeros(3, dtype=torch.complex64)])
    refused(ValueError, r"parameter 1 of group 0 .* strides \(2,\)", [plain[0], torch.zeros(8)[::2]])
    refused(ValueError, "share memory", [plain[0], nn.Parameter(plain[0].detach()[2:])])
    refused(TypeError, "Wrapped", [torch.zeros(3).as_subclass(Wrapped)])
    refused(ValueError, r"AdamW\(amsgrad=True\)", plain, amsgrad=True)
    refused(ValueError, r"SGD\(foreach=True\)", plain, make=ours.SGD, foreach=True)
    refused(ValueError, r"Adagrad\(fused=True\)", plain, make=ours.Adagrad, fused=True)
    refused(ValueError, r"RMSprop\(differentiable=True\)", plain, make=ours.RMSprop, differentiable=True)
    refused(TypeError, "betas", plain, betas=(torch.tensor(0.9), torch.tensor(0.99)))
    refused(TypeError, "state_dtype is torch.float16", plain, state_dtype=torch.float16)
    refused(ValueError, "max_grad_norm is 0", plain, max_grad_norm=0)
    refused(ValueError, "centered=True", plain, make=ours.RMSprop, centered=True, state_dtype=torch.int8)
    refused(ValueError, "betas are", plain, make=ours.Lion, betas=(0.9, 1.0))
    refused(ValueError, "parameter 0 of group 0 is on meta", [torch.zeros(3, device="meta")])
    optimizer = ours.AdamW(plain)
    plain[0].grad = torch.zeros(8).to_sparse()
    with pytest.raises(RuntimeError, match="gradient of parameter 0 of group 0 is sparse"):
        optimizer.step()
    with pytest.raises(ValueError, match=r"AdamW\(amsgrad=True\)"):
        optimizer.load_state_dict(torch.optim.AdamW(plain, amsgrad=True).state_dict())


def test_momentum_switched_on_later_starts_from_the_gradient():
    params = parameters((63,))
    exact = copies(params, torch.float64)
    optimizer, other = ours.SGD(params, lr=0.1, dampening=0.5), torch.optim.SGD(exact, lr=0.1, dampening=0.5)
    for step in range(4):
        give_gradients(step, params, exact)
        if step == 2:
            for each in (optimizer, other):
                each.param_groups[0]["momentum"] = 0.9
        optimizer.step()
        other.step()
    assert largest(params, exact) < 1e-6


def test_a_group_added_later_is_updated():
    params = parameters((63, 1025))
    exact = copies(params, torch.float64)
    optimizer, other = ours.AdamW(params[:1]), torch.optim.AdamW(exact[:1])
    for step in range(3):
        if step == 1:
            optimizer.add_param_group({"params": params[1:], "lr": 0.1})
            other.add_param_group({"params": exact[1:], "lr": 0.1})
        give_gradients(step, params, exact)
        optimizer.step()
        other.step()
    assert largest(params, exact) < 2e-6
