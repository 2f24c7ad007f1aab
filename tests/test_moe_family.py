"""Mixture of experts: routing against a dense mixture written out, the balance loss, total and active parameters."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import saved_for_backward, train_spec
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data import open_source
from scalebench.errors import InputError
from scalebench.families import configure, gpt, moe
from scalebench.families.modules import moe as moe_module
from scalebench.families.outline import outline
from scalebench.study import DataSpec

TEXT = {"vocab_size": 256, "context": 64}
ROUTINGS = [(4, 1), (5, 2), (3, 3)]


def groups_of(module: torch.nn.Module) -> dict[str, int]:
    """Count a built model's parameters by the names of the modules that hold them; tied ones once."""
    places = {"tokens": "token_embedding", "positions": "position_embedding", "head": "head", "norm": "norm"}
    groups = dict.fromkeys(
        ["token_embedding", "position_embedding", "attention", "norm", "head", "router", "experts"], 0
    )
    for name, parameter in module.named_parameters():
        part = name.split(".")
        group = places.get(part[0]) or ("norm" if part[2].startswith("norm") else part[2])
        groups[group] += parameter.numel()
    return groups


@pytest.mark.parametrize(
    "config",
    [
        moe.config_for(1e4, **TEXT),
        moe.config_for(
            1e5, experts=3, experts_per_token=1, bias=True, norm="layer", positions="learned", tied=False, **TEXT
        ),
        moe.explicit(3, 40, experts=5, experts_per_token=5, hidden=33, **TEXT),
    ],
)
def test_total_and_active_parameters_are_the_built_modules(config: moe.Config) -> None:
    module = outline(moe, config)
    counts = moe.count(config)
    assert groups_of(module) == counts.by_group
    idle = sum(p[config.experts_per_token :].numel() for b in module.blocks for p in b.experts.parameters())
    assert counts.active == counts.total - idle
    tables = sum(counts.by_group[name] for name in ("token_embedding", "position_embedding", "head"))
    assert counts.non_embedding == counts.total - tables
    assert counts.active_non_embedding == counts.active - tables


def test_all_experts_at_once_are_a_gpt_with_as_many_hidden_units_and_a_router() -> None:
    config = moe.explicit(2, 32, experts=4, experts_per_token=4, hidden=10, **TEXT)
    dense = gpt.explicit(2, 32, hidden=40, **TEXT)
    router = 2 * 32 * 4
    assert moe.count(config).active == moe.count(config).total == gpt.count(dense).total + router
    assert moe.count(config).forward_flops == gpt.count(dense).forward_flops + 2 * 64 * router


@pytest.mark.parametrize(
    "fixed", [{}, {"depth": 4}, {"experts": 4, "experts_per_token": 1}, {"experts": 64, "experts_per_token": 4}]
)
def test_the_dial_counts_active_parameters_and_a_tenth_more_is_larger(fixed: dict[str, int]) -> None:
    low = 4e4 if fixed.get("experts") == 64 else 1e4
    for request in np.geomspace(low, 1e12, 150):
        sizes = [moe.count(moe.config_for(n, **fixed, **TEXT)).active_non_embedding for n in (request, 1.1 * request)]
        assert abs(sizes[0] / request - 1) <= 0.05
        assert sizes[1] > sizes[0]


@pytest.mark.parametrize(("experts", "experts_per_token"), ROUTINGS)
@pytest.mark.parametrize("fixed", [{}, {"norm": "layer", "positions": "learned", "bias": True}])
def test_flops_are_the_counters_on_the_eager_path(
    experts: int, experts_per_token: int, fixed: dict[str, object]
) -> None:
    config, length = moe.config_for(4e4, experts=experts, experts_per_token=experts_per_token, **fixed, **TEXT), 48
    counts = moe.count(config, length)
    with FlopCounterMode(display=False) as counter:
        moe.build(config, "eager")(torch.randint(256, (1, length)))
    # Only the products of experts that were chosen are made. Written-out attention computes the future as well.
    assert counter.get_total_flops() == counts.forward_flops + counts.attention_flops


def dense_mixture(
    experts: moe_module.Experts, x: torch.Tensor, logits: torch.Tensor, experts_per_token: int
) -> torch.Tensor:
    """Every expert on every row, weighted by a gate that is zero for those not among the k largest."""
    probabilities = (logits - logits.logsumexp(1, keepdim=True)).exp()
    chosen = probabilities * (
        probabilities >= probabilities.sort(1, descending=True).values[:, experts_per_token - 1 : experts_per_token]
    )
    gates = chosen if experts_per_token == 1 else chosen / chosen.sum(1, keepdim=True)
    outputs = []
    for e in range(experts.up.size(0)):
        hidden = F.gelu(x @ experts.up[e].T + experts.biases[0][e], approximate="tanh")
        outputs.append(hidden @ experts.down[e].T + experts.biases[1][e])
    return (gates.unsqueeze(2) * torch.stack(outputs, 1)).sum(1)


@pytest.mark.parametrize(("experts", "experts_per_token"), ROUTINGS)
def test_sorted_rows_compute_the_dense_mixture_and_its_gradients(experts: int, experts_per_token: int) -> None:
    torch.manual_seed(0)
    config = moe.explicit(1, 12, experts=experts, experts_per_token=experts_per_token, hidden=7, bias=True, **TEXT)
    module = moe_module.Experts(config).double()
    for parameter in module.parameters():
        parameter.data.normal_()
    x, logits = torch.randn(37, 12, dtype=torch.float64), torch.randn(37, experts, dtype=torch.float64)
    results = []
    for written_out in (False, True):
        x_, logits_ = x.clone().requires_grad_(), logits.clone().requires_grad_()
        if written_out:
            mixed = dense_mixture(module, x_, logits_, experts_per_token)
        else:
            gates, chosen, _ = moe_module.route(logits_, experts_per_token)
            mixed = module(x_, gates, chosen)
        results.append([mixed, *torch.autograd.grad(mixed.square().sum(), [x_, logits_, *module.parameters()])])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-10, atol=1e-10)


def test_an_expert_that_nobody_chose_is_no_trouble() -> None:
    config = moe.explicit(1, 8, experts=6, experts_per_token=1, hidden=4, **TEXT)
    module, x = moe_module.Experts(config), torch.randn(5, 8)
    torch.nn.init.normal_(module.up)
    torch.nn.init.normal_(module.down)
    chosen = torch.full((5, 1), 4)
    torch.testing.assert_close(module(x, torch.ones(5, 1), chosen), module.expert(4, x))


@pytest.mark.parametrize("experts_per_token", [1, 2, 3])
def test_the_balance_loss_is_the_formula_token_by_token(experts_per_token: int) -> None:
    logits = torch.randn(23, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    _, chosen, balance = moe_module.route(logits, experts_per_token)
    p = np.exp(logits.numpy())
    p /= p.sum(1, keepdims=True)
    choices = np.argsort(-p, axis=1)[:, :experts_per_token]
    assert [set(row) for row in choices] == [set(row) for row in chosen.tolist()]
    expected = sum(5 * (choices == e).sum() / (23 * experts_per_token) * p[:, e].mean() for e in range(5))
    assert float(balance) == pytest.approx(expected, rel=1e-12)


def test_even_routing_costs_one_and_collapse_costs_as_much_as_there_are_experts() -> None:
    even = torch.eye(4).repeat(3, 1) * 50
    assert float(moe_module.route(even, 1)[2]) == pytest.approx(1.0)
    collapsed = torch.tensor([[50.0, 0, 0, 0]]).repeat(7, 1)
    assert float(moe_module.route(collapsed, 1)[2]) == pytest.approx(4.0)


@pytest.mark.parametrize("experts_per_token", [1, 2])
@pytest.mark.parametrize("weight", [0.0, 0.5])
def test_gradients_reach_the_router_and_the_balance_loss_is_in_training_alone(
    experts_per_token: int, weight: float
) -> None:
    data, spec = open_source("stdlib"), train_spec(sequence_length=32, batch_size=4)
    torch.manual_seed(0)
    config = configure(moe, {"params": 2e4, "experts_per_token": experts_per_token, "balance_weight": weight}, data, 32)
    held_out = DataSpec(
        source="stdlib", validation_fraction=0.2, validation_samples=8, noise_std=None, sha256=data.sha256
    )
    task, model = moe.task(config, data, held_out, spec), moe.build(config, "eager")
    batch = task.batch(0)
    trained = task.losses(model, batch)
    trained.mean().backward()
    assert all(float(block.router.weight.grad.abs().max()) > 1e-7 for block in model.blocks)
    _, balance = model(batch[0])
    model.eval()
    judged = task.judge(model, batch)["loss_nats"]
    torch.testing.assert_close(trained, judged + weight * balance)
    assert float(balance.detach()) >= 0.99


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_no_token_sees_its_future(implementation: str) -> None:
    torch.manual_seed(0)
    model = moe.build(moe.config_for(3e4, **TEXT), implementation).eval()
    tokens = torch.randint(256, (2, 20))
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11], rtol=1e-5, atol=1e-6)
    assert (before[:, 11:] - after[:, 11:]).abs().max() > 1e-3


def test_eager_and_sdpa_compute_the_same_function_and_gradients() -> None:
    config, tokens = moe.config_for(3e4, **TEXT), torch.randint(256, (3, 37))
    results = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = moe.build(config, implementation).double()
        logits, balance = model(tokens)
        (logits.square().mean() + balance).backward()
        results.append([logits, *(p.grad for p in model.parameters())])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


def test_the_router_stays_in_float32_under_autocast() -> None:
    torch.manual_seed(0)
    model = moe.build(moe.config_for(2e4, **TEXT), "eager").eval()
    seen = []
    original = moe_module.route
    try:
        moe_module.route = lambda logits, experts_per_token: (
            seen.append(logits.dtype) or original(logits, experts_per_token)
        )
        with torch.autocast("cpu", torch.bfloat16):
            model(torch.randint(256, (2, 9)))
    finally:
        moe_module.route = original
    assert set(seen) == {torch.float32}


@pytest.mark.parametrize("params", [1e4, 1e6])
def test_activations_are_estimated_within_a_factor_of_two(params: float) -> None:
    config = moe.config_for(params, **TEXT)
    model, tokens = moe.build(config, "eager"), torch.randint(256, (2, 64))
    loss = lambda: F.cross_entropy(model(tokens)[0].flatten(0, 1), tokens.flatten())  # noqa: E731
    assert 0.5 < saved_for_backward(model, loss) / (2 * moe.count(config, 64).activation_bytes) < 2


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"params": 1e5, "experts_per_token": 9}, "experts_per_token: must be at most experts = 8"),
        ({"params": 1e5, "balance_weight": -0.1}, "balance_weight: expected a number of at least 0"),
        ({"params": 1e5, "balance_weight": "0.1"}, "balance_weight: expected a number of at least 0"),
        ({"params": 1e5, "head_dim": 15}, "head_dim: rotary positions"),
        ({"params": 1e5, "expert": 4}, "did you mean 'experts'"),
        ({"params": 300}, "nearest moe"),
    ],
)
def test_requests_that_make_no_model_name_the_field(request_: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(moe, request_, open_source("stdlib"), 64)
