"""Pruning a model: which weights are set to zero, what stays zero, what is stored, and which units are left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from family_support import SHAPE, config_of, model_of
from torch import Tensor, nn
from torch.nn.utils import prune

from scalebench.families import FAMILIES
from scalebench.families.modules.shrink import importance, largest, shrink
from scalebench.families.shrink import units_of, with_units
from scalebench.optim.optimizers import build_optimizer
from scalebench.workloads.prune_kernels import unavailable
from scalebench.workloads.prune_masks import GLOBAL, hold, packed, prunable, prune_weights, two_of_four, unpacked
from scalebench.workloads.prune_sizes import remaining, sizes
from scalebench.workloads.training_spec import TrainSection, TrainSpec

GPT = SHAPE | {"heads": 4, "head_dim": 2}


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {path: getattr(module, name) for path, (module, name) in prunable(model).items()}


# --- which weights ---------------------------------------------------------------------------------------------------


def test_a_tied_head_stays_tied_and_unpruned_where_global_pruning_of_all_linear_layers_unties_it() -> None:
    model = model_of("gpt", **GPT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prune_weights(model, "magnitude-global", 0.5, 0)
    assert model.head.weight is model.tokens.weight
    after = model.state_dict()
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"blocks.{i}.{name}.weight" for i in range(2) for name in
                       ("attention.qkv", "attention.out", "up", "down")}  # fmt: skip
    naive = model_of("gpt", **GPT)
    layers = [(module, "weight") for module in naive.modules() if isinstance(module, nn.Linear)]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=0.5)
    assert naive.head.weight is not naive.tokens.weight


def test_an_untied_head_is_not_pruned_either() -> None:
    assert prunable(model_of("gpt", **GPT, tied=False)).keys() == prunable(model_of("gpt", **GPT)).keys()


@pytest.mark.parametrize(
    ("family", "fields"),
    [
        ("gpt", GPT),
        ("moe", GPT | {"experts": 2}),
        ("bert", SHAPE | {"heads": 2}),
        ("rnn", {"width": 8, "depth": 2, "embedding": 6, "cell": "lstm"}),
        ("mlp", {"width": 12, "depth": 3}),
        ("cnn", {"params": 3000}),
    ],
)
@pytest.mark.parametrize("method", ["magnitude-global", "magnitude-layer", "random"])
def test_the_requested_share_of_the_hidden_matrices_remains(family: str, fields: dict[str, Any], method: str) -> None:
    model = model_of(family, **fields)
    before = {path: weight.detach().clone() for path, weight in weights_of(model).items()}
    untouched = {name: value.clone() for name, value in model.state_dict().items() if name not in before}
    parameters = sum(parameter.numel() for parameter in model.parameters())
    masks = prune_weights(model, method, 0.3, 0)
    after = weights_of(model)
    total = sum(mask.numel() for mask in masks.values())
    assert masks.keys() == before.keys() == after.keys()
    assert sum(int(mask.sum()) for mask in masks.values()) == pytest.approx(0.3 * total, abs=len(masks) / 2)
    for path, mask in masks.items():
        assert torch.equal(after[path], before[path] * mask)
        if method == "magnitude-layer":
            assert int(mask.sum()) == round(0.3 * mask.numel())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in untouched.items())
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert remaining(model, masks).total() == sum(int(mask.sum()) for mask in masks.values())


def test_magnitude_removes_the_smallest_and_random_does_not() -> None:
    sizes_of = {}
    for method in GLOBAL:
        model = model_of("gpt", **GPT)
        whole = {path: weight.detach().abs().clone() for path, weight in weights_of(model).items()}
        masks = prune_weights(model, method, 0.4, 0)
        parts = [torch.cat([whole[path][mask == value].flatten() for path, mask in masks.items()]) for value in (0, 1)]
        sizes_of[method] = [part.max().item() if i == 0 else part.min().item() for i, part in enumerate(parts)]
    assert sizes_of["magnitude-global"][0] <= sizes_of["magnitude-global"][1]
    assert sizes_of["random"][0] > sizes_of["random"][1]


def test_random_masks_depend_on_the_seed_alone() -> None:
    first, again, other = (prune_weights(model_of("gpt", **GPT), "random", 0.5, seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[path], again[path]) for path in first)
    assert not all(torch.equal(first[path], other[path]) for path in first)


def test_density_1_changes_nothing() -> None:
    model = model_of("gpt", **GPT)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for method in ("magnitude-global", "magnitude-layer", "random"):
        prune_weights(model, method, 1.0, 0)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())


def test_2_of_4_keeps_the_two_largest_of_each_four_in_a_row() -> None:
    weight = torch.tensor([[0.1, -3.0, 2.0, 0.5, 1.0, -1.5, 0.2, 0.1]])
    assert two_of_four(weight).tolist() == [[0, 1, 1, 0, 1, 1, 0, 0]]
    masks = prune_weights(model_of("gpt", **GPT), "2:4", 0.5, 0)
    for mask in masks.values():
        assert (mask.unflatten(-1, (-1, 4)).sum(-1) == 2).all()


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "lion"])
def test_what_was_pruned_stays_zero_while_the_model_is_trained(optimizer: str) -> None:
    model = model_of("gpt", **GPT)
    masks = prune_weights(model, "magnitude-layer", 0.5, 0)
    before = {path: weight.detach().clone() for path, weight in weights_of(model).items()}
    defaults = {name: values[0] for name, values in TrainSection().filled_fields().items() if name != "device"}
    spec = TrainSpec.model_construct(
        **defaults | {"optimizer": optimizer, "learning_rate": 0.01, "weight_decay": 0.1, "steps": 3}
    )
    trained = build_optimizer(model, spec)
    hold(model, masks, trained)
    for _ in range(3):
        model(torch.randint(256, (2, 16))).square().mean().backward()
        for path, weight in weights_of(model).items():
            assert not weight.grad[masks[path] == 0].any()
        trained.step()
        trained.zero_grad()
        for path, weight in weights_of(model).items():
            assert not weight[masks[path] == 0].any()
    assert not any(torch.equal(weight, before[path]) for path, weight in weights_of(model).items())


@pytest.mark.parametrize("shape", [(3, 7), (8, 8), (2, 3, 5)])
def test_a_packed_matrix_is_unpacked_as_it_was_and_takes_the_bytes_of_its_bits_and_values(
    shape: tuple[int, ...],
) -> None:
    weight = torch.randn(shape) * (torch.rand(shape) < 0.4)
    bits, values = packed(weight)
    assert torch.equal(unpacked(bits, values, weight.shape), weight)
    assert bits.nbytes + values.nbytes == -(-weight.numel() // 8) + 4 * int(weight.count_nonzero())


def test_2_4_kernels_are_for_16_bits_on_a_gpu() -> None:
    assert "need a GPU" in str(unavailable(torch.device("cpu"), "bfloat16"))


# --- which units -----------------------------------------------------------------------------------------------------

UNITS = [
    ("gpt", GPT, "heads", 2), ("gpt", GPT | {"bias": True, "tied": False}, "heads", 3), ("gpt", GPT, "hidden", 5),
    ("gpt", GPT, "layers", 1), ("moe", GPT | {"experts": 2}, "heads", 1), ("moe", GPT | {"experts": 2}, "layers", 1),
    ("bert", SHAPE | {"heads": 2}, "hidden", 5), ("bert", SHAPE | {"heads": 2}, "layers", 1),
    ("vit", GPT, "heads", 3), ("vit", GPT, "hidden", 7), ("vit", GPT, "layers", 1),
]  # fmt: skip


def inputs_of(family: str, config: Any) -> tuple[Tensor, ...]:
    if family == "vit":
        return (torch.randn(2, config.channels, config.image_size, config.image_size),)
    tokens = torch.randint(config.vocab_size, (2, 16))
    return (tokens, torch.randint(2, (2, 16))) if family == "bert" else (tokens,)


def shrunk(family: str, fields: dict[str, Any], kind: str, number: int) -> tuple[Any, nn.Module, nn.Module, Any, Any]:
    """Return config, model, the smaller model, the inputs and the indices chosen."""
    config, model = config_of(family, **fields), model_of(family, **fields).eval()
    with torch.no_grad():  # biases and gains that differ, so that a mixed-up unit shows
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    inputs, units = inputs_of(family, config), units_of(config, kind)
    small = FAMILIES[family].build(with_units(config, kind, number), "eager").eval()
    indices = largest(importance(model, kind, units, lambda: model(*inputs)), number)
    shrink(model, small, kind, units, indices)
    return config, model, small, inputs, indices


def outputs(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        result = model(*inputs)
    return result[0] if isinstance(result, tuple) else result


@pytest.mark.parametrize(("family", "fields", "kind", "number"), UNITS)
def test_a_smaller_model_computes_what_the_larger_does_with_those_units_zeroed(
    family: str, fields: dict[str, Any], kind: str, number: int
) -> None:
    config, model, small, inputs, chosen = shrunk(family, fields, kind, number)
    counts = FAMILIES[family].count(with_units(config, kind, number), 16)
    assert sum(parameter.numel() for parameter in small.parameters()) == counts.total
    if kind == "layers":
        model.blocks = nn.ModuleList(model.blocks[i] for i in chosen[0].tolist())
    else:
        units, writer = units_of(config, kind), {"heads": "out", "hidden": "down"}[kind]
        for block, remaining in zip(model.blocks, chosen, strict=True):
            (layer,) = (each for path, each in block.named_modules() if path.rpartition(".")[2] == writer)
            removed = [unit for unit in range(units) if unit not in remaining.tolist()]
            layer.weight.data.unflatten(1, (units, -1))[:, removed] = 0
    expected = outputs(model, inputs)
    torch.testing.assert_close(outputs(small, inputs), expected, rtol=1e-5, atol=1e-5)
    assert expected.abs().max() > 0.1


def test_the_importance_of_a_head_is_the_norm_of_what_it_adds() -> None:
    """Against the difference that zeroing one head makes to the output of attention."""
    model, tokens = model_of("gpt", **GPT).eval(), torch.randint(256, (2, 16))
    (first, _) = importance(model, "heads", 4, lambda: model(tokens))
    attention, added = model.blocks[0].attention, []
    x = model.blocks[0].norm1(model.embedded(tokens, None))
    with torch.no_grad():
        whole, weight = attention(x), attention.out.weight.clone()
        for head in range(4):
            attention.out.weight.copy_(weight)
            attention.out.weight[:, 2 * head : 2 * head + 2] = 0
            added.append((whole - attention(x)).norm().item())
    assert first.tolist() == pytest.approx(added, rel=1e-5)


def test_the_importance_of_a_layer_is_what_it_adds_relative_to_its_input() -> None:
    model, tokens = model_of("gpt", **GPT).eval(), torch.randint(256, (2, 16))
    (layers,) = importance(model, "layers", 2, lambda: model(tokens))
    with torch.no_grad():
        x = model.embedded(tokens, None)
        y = model.blocks[0](x)
        z = model.blocks[1](y)
    assert layers.tolist() == pytest.approx([((y - x).norm() / x.norm()).item(), ((z - y).norm() / y.norm()).item()])


def test_sizes_are_grouped_by_the_layers_name() -> None:
    assert sizes(model_of("gpt", **GPT)) == {"qkv": 2 * 192, "out": 2 * 64, "up": 2 * 96, "down": 2 * 96}
