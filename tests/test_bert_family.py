"""BERT: published sizes, torch's encoder layer as oracle, both losses and their metrics."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from support import saved_for_backward, train_spec
from task_support import STDLIB, T, masked_pairs
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data.text import Text
from scalebench.errors import InputError
from scalebench.families import bert, configure
from scalebench.families.modules.bert import EncoderBlock
from scalebench.families.outline import outline
from scalebench.study import DataSpec
from scalebench.tasks.masked import IGNORED

SHAPE = {"vocab_size": 259, "context": 64}


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "body", "whole"),
    [("bert-base", 109_482_240, 110_106_428), ("bert-large", 335_141_888, 336_226_108)],
)
def test_published_sizes_are_counted_exactly_and_built_so(size: str, body: int, whole: int) -> None:
    counts = bert.count(bert.SIZES[size])
    assert counts.total == whole
    assert counts.total - sum(counts.by_group[name] for name in bert.HEADS) == body
    module = outline(bert, bert.SIZES[size], "sdpa")
    assert built_groups(module) == counts.by_group


def built_groups(module: torch.nn.Module) -> dict[str, int]:
    """Count a built BERT's parameters by the names of the modules that hold them."""
    first = {
        "tokens": "token_embedding", "positions": "position_embedding", "segments": "segment_embedding",
        "norm": "norm", "pooler": "pooler", "transform": "mlm_head", "transform_norm": "mlm_head",
        "output_bias": "output_bias", "follows": "nsp_head",
    }  # fmt: skip
    inside = {"attention": "attention", "norm1": "norm", "norm2": "norm", "up": "mlp", "down": "mlp"}
    groups = dict.fromkeys([*first.values(), *inside.values()], 0)
    for name, parameter in module.named_parameters():
        part = name.split(".")
        groups[inside[part[2]] if part[0] == "blocks" else first[part[0]]] += parameter.numel()
    return groups


@pytest.mark.parametrize("config", [bert.config_for(2e4, **SHAPE), bert.explicit(3, 24, heads=3, hidden=17, **SHAPE)])
def test_counts_equal_the_built_module_group_by_group(config: bert.Config) -> None:
    counts = bert.count(config)
    assert built_groups(bert.build(config, "eager")) == counts.by_group
    tables = ("token_embedding", "position_embedding", "segment_embedding", "output_bias")
    assert counts.non_embedding == counts.total - sum(counts.by_group[name] for name in tables)


@pytest.mark.parametrize("fixed", [{}, {"depth": 3}, {"width": 64}])
def test_the_dial_lands_within_five_percent_and_a_tenth_more_is_larger(fixed: dict[str, int]) -> None:
    low, high = (1e5, 1e9) if fixed else (1e4, 1e11)
    for request in np.geomspace(low, high, 120):
        sizes = [bert.count(bert.config_for(n, **fixed, **SHAPE)).non_embedding for n in (request, 1.1 * request)]
        assert abs(sizes[0] / request - 1) <= 0.05
        assert sizes[1] > sizes[0]


def test_flops_are_the_counters_on_the_eager_path() -> None:
    config, tokens = bert.config_for(3e4, **SHAPE), torch.zeros(2, 48, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        bert.build(config, "eager")(tokens, tokens)
    assert counter.get_total_flops() == 2 * bert.count(config, 48).forward_flops


@pytest.mark.parametrize("params", [1e4, 5e5])
def test_activations_are_estimated_within_a_factor_of_two(params: float) -> None:
    config, task = bert.config_for(params, **SHAPE), masked_pairs(batch_size=4)
    model, batch = bert.build(config, "eager"), task.batch(0)
    saved = saved_for_backward(model, lambda: task.losses(model, batch).mean())
    assert 0.5 < saved / (4 * bert.count(config, T).activation_bytes) < 2


# --- the function ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_a_block_is_torchs_encoder_layer(implementation: str) -> None:
    torch.manual_seed(0)
    config = bert.explicit(1, 24, heads=3, hidden=31, **SHAPE)
    block = EncoderBlock(config, implementation).double()
    for parameter in block.parameters():
        parameter.data.normal_(std=0.3)
    layer = torch.nn.TransformerEncoderLayer(
        24, 3, 31, dropout=0.0, activation="gelu", layer_norm_eps=1e-12, batch_first=True, dtype=torch.float64
    )
    mine, other = block.attention, layer.self_attn
    other.in_proj_weight.data = torch.cat([mine.query.weight, mine.key_value.weight]).data
    other.in_proj_bias.data = torch.cat([mine.query.bias, mine.key_value.bias]).data
    for left, right in (
        (mine.out, other.out_proj), (block.up, layer.linear1), (block.down, layer.linear2),
        (block.norm1, layer.norm1), (block.norm2, layer.norm2),
    ):  # fmt: skip
        right.load_state_dict(left.state_dict())
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    results = [[y, torch.autograd.grad(y.square().sum(), x)[0]] for y in (block(x), layer(x))]
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_every_token_sees_every_other() -> None:
    torch.manual_seed(0)
    model, (inputs, segments, *_) = (
        bert.build(bert.config_for(3e4, **SHAPE), "sdpa"),
        masked_pairs(batch_size=1).batch(0),
    )
    before = model.encode(inputs, segments)
    for place in (0, 17, T - 1):
        changed = inputs.clone()
        changed[0, place] = (changed[0, place] + 1) % 256
        moved = (model.encode(changed, segments) - before).abs().amax(2)[0]
        assert moved.min() > 1e-6, f"a change at {place} leaves token {int(moved.argmin())} as it was"


def test_segments_and_positions_count() -> None:
    torch.manual_seed(0)
    model, (inputs, segments, *_) = (
        bert.build(bert.config_for(3e4, **SHAPE), "sdpa"),
        masked_pairs(batch_size=2).batch(0),
    )
    before = model.encode(inputs, segments)
    assert (model.encode(inputs, 1 - segments) - before).abs().max() > 1e-2
    swapped = inputs[:, [0, *range(20, 0, -1), *range(21, T)]]
    assert (model.encode(swapped, segments)[:, 0] - before[:, 0]).abs().max() > 1e-3


def test_eager_and_sdpa_compute_the_same_function_and_gradients() -> None:
    task = masked_pairs(batch_size=4)
    results = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = bert.build(bert.config_for(3e4, **SHAPE), implementation).double()
        symbols, verdicts = model(*task.batch(0)[:2])
        (symbols.square().mean() + verdicts.square().mean()).backward()
        results.append([symbols, verdicts, *(parameter.grad for parameter in model.parameters())])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-8, atol=1e-9)


# --- losses and metrics ----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_loss_is_the_sum_of_both_and_they_are_reported_apart() -> None:
    from sklearn.metrics import f1_score

    torch.manual_seed(0)
    task, model = masked_pairs(batch_size=16), bert.build(bert.config_for(2e4, **SHAPE), "sdpa")
    inputs, segments, labels, follows = batch = task.batch(0)
    with torch.no_grad():
        symbols, verdicts = model(inputs, segments)
        judged = {name: values.double().numpy() for name, values in task.judge(model, batch).items()}
        losses = task.losses(model, batch).double().numpy()
    masked = labels != IGNORED
    filled = F.cross_entropy(symbols[masked], labels[masked])
    next_sentence = F.cross_entropy(verdicts, follows)
    metrics = task.metrics(judged)
    np.testing.assert_allclose(judged["loss_nats"], losses, rtol=1e-6)
    assert losses.mean() == pytest.approx(float(filled + next_sentence), rel=1e-5)
    assert metrics["mlm_loss_nats"] == pytest.approx(float(filled), rel=1e-5)
    assert metrics["nsp_loss_nats"] == pytest.approx(float(next_sentence), rel=1e-5)
    assert metrics["mlm_accuracy"] == pytest.approx(float((symbols.argmax(2) == labels)[masked].double().mean()))
    predicted = verdicts.argmax(1)
    assert metrics["nsp_accuracy"] == pytest.approx(float((predicted == follows).double().mean()))
    assert metrics["nsp_f1"] == f1_score(follows, predicted, zero_division=0.0)


def test_a_model_that_knows_nothing_has_the_loss_of_guessing() -> None:
    task = masked_pairs(batch_size=16)

    class Guess(torch.nn.Module):
        def forward(self, tokens: torch.Tensor, segments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.zeros(*tokens.shape, 259), torch.zeros(len(segments), 2)

    torch.testing.assert_close(task.losses(Guess(), task.batch(0)), torch.full((16,), math.log(259) + math.log(2)))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"depth": 2, "width": 30, "heads": 4}, "width: 30 is not a multiple of heads = 4"),
        ({"params": 300}, "nearest bert"),
        ({"size": "bert-bass"}, "did you mean 'bert-base'"),
    ],
)
def test_requests_that_make_no_model_name_the_field(request_: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(bert, request_, STDLIB, 64)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"context": 32}, "sequence_length = 43 is longer than the context of 32"),
        ({"vocab_size": 256}, "vocab_size: 256 is less than the data's 259"),
    ],
)
def test_tasks_that_do_not_fit_the_model_are_refused(change: dict[str, int], word: str) -> None:
    side = DataSpec(source="stdlib", validation_fraction=0.2, validation_samples=8, noise_std=None, sha256="")
    with pytest.raises(InputError, match=word):
        bert.task(replace(bert.config_for(2e4, **SHAPE), **change), STDLIB, side, train_spec(sequence_length=T))


def test_texts_and_lengths_without_pairs_are_refused() -> None:
    masked_pairs().check()
    with pytest.raises(ValueError, match="sequence_length = 7"):
        masked_pairs(sequence_length=7).check()
    with pytest.raises(ValueError, match="fewer than two training documents"):
        masked_pairs(sequence_length=3_000_000).check()
    with pytest.raises(ValueError, match="fewer than two"):
        masked_pairs(Text(tuple(b"no line ends here %d" % i for i in range(50)))).check()
