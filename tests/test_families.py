"""Families: counts against published figures and built modules, the dial, FLOPs, and that implementations agree."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data import open_source
from scalebench.errors import InputError
from scalebench.families import FAMILIES, configure, gpt, linear, mlp
from scalebench.families.modules.decoder import Rotary
from scalebench.families.outline import outline

TEXT = {"vocab_size": 256, "context": 64}
PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt3-175b": 174_604_259_328,
}


def built_groups(module: torch.nn.Module) -> dict[str, int]:
    """Count a built GPT's parameters by the names of the modules that hold them; tied ones once."""
    groups = {"token_embedding": 0, "position_embedding": 0, "attention": 0, "mlp": 0, "norm": 0, "head": 0}
    places = {"tokens": "token_embedding", "positions": "position_embedding", "head": "head"}
    for name, parameter in module.named_parameters():
        part = name.split(".")
        if part[0] in places:
            groups[places[part[0]]] += parameter.numel()
        elif "norm" in name:
            groups["norm"] += parameter.numel()
        else:
            groups["attention" if "attention" in part else "mlp"] += parameter.numel()
    return groups


@pytest.mark.parametrize("size", list(PUBLISHED))
def test_published_gpt_sizes_are_counted_exactly_and_built_so(size: str) -> None:
    config = gpt.SIZES[size]
    counts = gpt.count(config)
    assert counts.total == PUBLISHED[size]
    module = outline(gpt, config, "sdpa")
    assert built_groups(module) == counts.by_group
    assert sum(parameter.numel() for parameter in module.parameters()) == PUBLISHED[size]


@pytest.mark.parametrize(
    "config",
    [
        gpt.config_for(1.5e3, **TEXT),
        gpt.config_for(2e5, tied=False, **TEXT),
        gpt.config_for(1e5, bias=True, norm="layer", positions="learned", **TEXT),
        gpt.explicit(3, 40, heads=5, head_dim=16, hidden=33, **TEXT),
        mlp.config_for(5e3, depth=3),
        mlp.explicit(7, depth=1, inputs=3, outputs=4),
        linear.config_for(1e4, outputs=3),
        linear.explicit(1),
    ],
)
def test_counts_equal_the_built_module(config: object) -> None:
    family = next(family for family in FAMILIES.values() if family.Config is type(config))
    module = outline(family, config)
    counts = family.count(config)
    assert counts.total == sum(parameter.numel() for parameter in module.parameters())
    if family is gpt:
        assert built_groups(module) == counts.by_group
        outside = ("token_embedding", "position_embedding", "head")
        assert counts.non_embedding == counts.total - sum(counts.by_group[name] for name in outside)
    else:
        assert list(counts.by_group.values()) == [
            sum(p.numel() for p in layer.parameters()) if family is mlp else layer.numel()
            for layer in ([m for m in module if list(m.parameters())] if family is mlp else module.parameters())
        ]


@pytest.mark.parametrize(
    ("family", "low", "high", "fixed"),
    [(gpt, 1.5e3, 1e12, TEXT), (gpt, 1e4, 1e9, TEXT | {"depth": 4}), (mlp, 1e3, 1e12, {}), (linear, 10, 1e12, {})],
)
def test_the_dial_lands_within_five_percent_and_a_tenth_more_is_larger(family, low, high, fixed) -> None:
    requests = np.geomspace(low, high, 300)
    sizes = [family.count(family.config_for(request, **fixed)).non_embedding for request in requests]
    assert max(abs(n / request - 1) for n, request in zip(sizes, requests, strict=True)) <= 0.05
    for request, n in zip(requests, sizes, strict=True):
        assert family.count(family.config_for(request * 1.1, **fixed)).non_embedding > n


@settings(deadline=None, max_examples=200)
@given(st.floats(4, 13))
def test_from_ten_thousand_up_head_dimensions_are_the_kernels(exponent: float) -> None:
    config = gpt.config_for(10**exponent, vocab_size=50257, context=1024)
    assert config.head_dim in (16, 32, 64, 128)
    assert 0.5 < config.inner / config.width < 2
    assert 2 < config.hidden / config.width < 6.5


def test_the_aspect_ratio_rule_passes_through_the_published_shapes() -> None:
    small = gpt.config_for(8.5e7, vocab_size=50257, context=1024)
    assert (small.depth, small.width) == (12, 768)
    large = gpt.config_for(1.74e11, vocab_size=50257, context=2048)
    assert 85 <= large.depth <= 105
    assert 11_500 <= large.width <= 13_000


@pytest.mark.parametrize("field", ["depth", "width"])
def test_depth_or_width_can_be_held(field: str) -> None:
    values = {"depth": 6, "width": 96}
    config = gpt.config_for(4e5, **{field: values[field]}, **TEXT)
    assert getattr(config, field) == values[field]
    assert gpt.count(config).non_embedding == pytest.approx(4e5, rel=0.05)


@pytest.mark.parametrize(
    ("family", "params", "fixed", "word"),
    [
        (gpt, 100, TEXT, "1,500"),
        (gpt, 1e9, TEXT | {"depth": 1, "width": 8, "hidden": 4}, "nearest gpt"),
        (mlp, 2, {}, "nearest mlp"),
        (mlp, 1e4, {"width": 3}, "width: .* give depth"),
        (linear, 1.5, {"outputs": 4}, "nearest linear"),
    ],
)
def test_sizes_out_of_reach_are_refused_with_what_can_be_had(family, params, fixed, word) -> None:
    with pytest.raises(InputError, match=word):
        family.config_for(params, **fixed)


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"size": "gpt5"}, "known: gpt2"),
        ({"params": 1e5, "depht": 3}, "did you mean 'depth'"),
        ({"params": 1e5, "depth": 0}, "positive whole number"),
        ({"params": 1e5, "depth": 2.0}, "positive whole number"),
        ({"params": 1e5, "tied": 1}, "true or false"),
        ({"params": 1e5, "norm": "batch"}, "known: rms, layer"),
        ({"depth": 2}, "width missing"),
        ({}, "depth and width missing"),
    ],
)
def test_requests_that_make_no_model_name_the_field(request_: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(gpt, request_, open_source("stdlib"), 64)


def test_a_published_size_keeps_its_fields_but_those_replaced() -> None:
    config = configure(gpt, {"size": "gpt2", "depth": 3}, open_source("stdlib"), 64)
    assert asdict(config) == asdict(gpt.SIZES["gpt2"]) | {"depth": 3}


@pytest.mark.parametrize("fixed", [{}, {"tied": False, "bias": True, "norm": "layer", "positions": "learned"}])
def test_gpt_flops_are_the_counters_on_the_eager_path(fixed: dict[str, object]) -> None:
    config, length = gpt.config_for(5e4, **fixed, **TEXT), 48
    counts = gpt.count(config, length)
    with FlopCounterMode(display=False) as counter:
        gpt.build(config, "eager")(torch.zeros(1, length, dtype=torch.int64))
    # Written-out attention computes the future as well; the count leaves out that half.
    assert counter.get_total_flops() == counts.forward_flops + counts.attention_flops


@pytest.mark.parametrize("config", [mlp.config_for(5e3, depth=3, outputs=2), linear.config_for(1e3)])
def test_regression_flops_are_the_counters(config) -> None:
    family = next(family for family in FAMILIES.values() if family.Config is type(config))
    with FlopCounterMode(display=False) as counter:
        family.build(config, "eager")(torch.zeros(7, config.inputs))
    assert counter.get_total_flops() == 7 * family.count(config).forward_flops


def test_training_costs_three_forward_passes() -> None:
    config = mlp.config_for(5e3, inputs=16)
    module, x = mlp.build(config, "eager"), torch.zeros(4, 16)
    with FlopCounterMode(display=False) as counter:
        module(x).sum().backward()
    # The first layer's inputs need no gradient: that product is the only one short of three.
    first = 2 * 4 * 16 * config.width
    assert counter.get_total_flops() == 3 * 4 * mlp.count(config).forward_flops - first


@pytest.mark.parametrize("fixed", [{}, {"norm": "layer", "positions": "learned", "bias": True}])
def test_eager_and_sdpa_compute_the_same_function_and_gradients(fixed: dict[str, object]) -> None:
    config = gpt.config_for(3e4, **fixed, **TEXT)
    tokens = torch.randint(256, (3, 37), generator=torch.Generator().manual_seed(0))
    outputs = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        module = gpt.build(config, implementation).double()
        logits = module(tokens)
        logits.square().mean().backward()
        outputs.append((logits, [p.grad for p in module.parameters()]))
    (a, grads_a), (b, grads_b) = outputs
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    for left, right in zip(grads_a, grads_b, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_no_token_sees_its_future(implementation: str) -> None:
    config = gpt.config_for(3e4, **TEXT)
    module = gpt.build(config, implementation)
    tokens = torch.randint(256, (2, 20), generator=torch.Generator().manual_seed(1))
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 256
    before, after = module(tokens), module(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11], rtol=1e-5, atol=1e-6)
    assert (before[:, 11:] - after[:, 11:]).abs().max() > 1e-3


def test_rotary_scores_depend_on_distance_alone() -> None:
    rotary = Rotary(16, 32).double()
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    turned_q, turned_k = (rotary(x.expand(1, 1, 32, 16))[0, 0] for x in (q, k))
    scores = turned_q @ turned_k.T
    for distance in (0, 3, 9):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-5, atol=1e-5)
    assert not math.isclose(float(scores[5, 5]), float(scores[9, 5]), rel_tol=1e-3)


def test_an_untrained_gpt_knows_nothing_more_than_the_alphabet() -> None:
    torch.manual_seed(0)
    module = gpt.build(gpt.config_for(1e5, **TEXT), "sdpa")
    tokens = torch.randint(256, (8, 64))
    loss = torch.nn.functional.cross_entropy(module(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert math.log(256) - 0.1 < loss.item() < math.log(256) + 1.0


@pytest.mark.parametrize("name", list(FAMILIES))
def test_learning_rates_fall_with_size(name: str) -> None:
    family = FAMILIES[name]
    fixed = {
        field: value
        for field, value in TEXT.items()
        if family.SEQUENCES and field in {field.name for field in fields(family.Config)}
    }
    rates = [family.learning_rate(family.config_for(params, **fixed)) for params in (1e4, 1e6, 1e8)]
    assert rates[0] > rates[1] > rates[2] > 0
