"""Encoder-decoder transformer: torch's own as oracle, reversal solved, greedy decoding."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from support import saved_for_backward, train_spec
from task_support import transduced
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data.transduction import BEGIN, KINDS, Transduction
from scalebench.errors import InputError
from scalebench.families import configure, transformer
from scalebench.families.modules.transformer import Transformer, sinusoids
from scalebench.families.multihead import attention_flops
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.tasks import Transduce
from scalebench.workloads.loop import train, validate

SHAPE = {"vocab_size": 12, "context": 9}


@torch.no_grad()
def greedy_answers(model, source, begin: int, length: int) -> torch.Tensor:
    """Decode greedily, one whole forward pass a token: the answers (B, length) to sources (B, T)."""
    prefix = source.new_full((len(source), 1), begin)
    for _ in range(length):
        prefix = torch.cat([prefix, model(source, prefix)[:, -1:].argmax(2)], dim=1)
    return prefix[:, 1:]


# --- size ------------------------------------------------------------------------------------------------------------


def test_the_base_size_has_the_body_of_torchs_default() -> None:
    config = transformer.SIZES["transformer-base"]
    with torch.device("meta"):
        body = torch.nn.Transformer(batch_first=True)  # says nothing of sparsity then
        ours = transformer.build(config, "sdpa")
    assert transformer.count(config).non_embedding == sum(p.numel() for p in body.parameters()) == 44_140_544
    assert transformer.count(config).total == sum(p.numel() for p in ours.parameters())


@pytest.mark.parametrize(
    "config",
    [transformer.config_for(2e4, **SHAPE), transformer.explicit(3, 24, heads=3, hidden=17, norm_first=False, **SHAPE)],
)
def test_counts_equal_the_built_module_group_by_group(config: transformer.Config) -> None:
    groups = {"token_embedding": 0, "attention": 0, "mlp": 0, "norm": 0}
    for name, parameter in transformer.build(config, "eager").named_parameters():
        kinds = {"tokens": "token_embedding", "norm": "norm", "attention": "attention", "cross": "attention"}
        group = next((group for word, group in kinds.items() if word in name), "mlp")
        groups[group] += parameter.numel()
    assert groups == transformer.count(config).by_group


@pytest.mark.parametrize("fixed", [{}, {"depth": 3}, {"width": 64}])
def test_the_dial_lands_within_five_percent_and_a_tenth_more_is_larger(fixed: dict[str, int]) -> None:
    low, high = (2e5, 1e9) if fixed else (1e4, 1e11)
    for request in np.geomspace(low, high, 120):
        sizes = [
            transformer.count(transformer.config_for(n, **fixed, **SHAPE)).non_embedding
            for n in (request, 1.1 * request)
        ]
        assert abs(sizes[0] / request - 1) <= 0.05
        assert sizes[1] > sizes[0]


@pytest.mark.parametrize("kind", list(KINDS))
def test_flops_are_the_counters_on_the_eager_path(kind: str) -> None:
    config = configure(transformer, {"params": 3e4}, Transduction(kind), 9)
    counts, (source, shifted, _) = transformer.count(config, 9), transduced(kind, batch_size=1).batch(0)
    with FlopCounterMode(display=False) as counter:
        transformer.build(config, "eager")(source, shifted)
    # Written-out attention of the decoder to itself computes the future as well; the count leaves out that half.
    future = config.depth * attention_flops(config.width, shifted.size(1), shifted.size(1), causal=True)
    assert counter.get_total_flops() == counts.forward_flops + future


@pytest.mark.parametrize("params", [1e4, 3e5])
def test_activations_are_estimated_within_a_factor_of_two(params: float) -> None:
    config = transformer.config_for(params, vocab_size=12, context=32)
    model, tokens = transformer.build(config, "eager"), torch.randint(12, (4, 32))
    loss = lambda: F.cross_entropy(model(tokens, tokens).flatten(0, 1), tokens.flatten())  # noqa: E731
    assert 0.5 < saved_for_backward(model, loss) / (4 * transformer.count(config, 32).activation_bytes) < 2


# --- the function ----------------------------------------------------------------------------------------------------


def copied(ours: Transformer, theirs: torch.nn.Transformer) -> None:
    """Give torch's module the weights of ours."""

    def attention(mine: torch.nn.Module, other: torch.nn.MultiheadAttention) -> None:
        other.in_proj_weight.data = torch.cat([mine.query.weight, mine.key_value.weight]).data
        other.in_proj_bias.data = torch.cat([mine.query.bias, mine.key_value.bias]).data
        other.out_proj.load_state_dict(mine.out.state_dict())

    sides = ((ours.encoder, theirs.encoder.layers), (ours.decoder, theirs.decoder.layers))
    for mine, other in ((a, b) for left, right in sides for a, b in zip(left, right, strict=True)):
        attention(mine.attention, other.self_attn)
        if mine.cross is not None:
            attention(mine.cross, other.multihead_attn)
        other.linear1.load_state_dict(mine.up.state_dict())
        other.linear2.load_state_dict(mine.down.state_dict())
        for index, residual in enumerate(mine.residuals, start=1):
            getattr(other, f"norm{index}").load_state_dict(residual.norm.state_dict())
    theirs.encoder.norm.load_state_dict(ours.encoder_norm.state_dict())
    theirs.decoder.norm.load_state_dict(ours.decoder_norm.state_dict())


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
def test_the_body_is_torchs(norm_first: bool, implementation: str) -> None:
    torch.manual_seed(0)
    config = transformer.explicit(2, 24, heads=3, hidden=31, norm_first=norm_first, **SHAPE)
    ours = transformer.build(config, implementation).double()
    for parameter in ours.parameters():
        parameter.data.normal_(std=0.3)  # biases and norms too
    theirs = torch.nn.Transformer(
        24, 3, 2, 2, 31, dropout=0.0, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    copied(ours, theirs)
    source, target = (torch.randn(3, length, 24, dtype=torch.float64, requires_grad=True) for length in (9, 7))
    future = torch.ones(7, 7, dtype=torch.bool).triu(1)
    outputs = (ours.body(source, target), theirs(source, target, tgt_mask=future, tgt_is_causal=True))
    results = [[output, *torch.autograd.grad(output.square().sum(), [source, target])] for output in outputs]
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_eager_and_sdpa_compute_the_same_function_and_gradients() -> None:
    config, (source, shifted, _) = transformer.config_for(3e4, **SHAPE), transduced().batch(0)
    results = []
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = transformer.build(config, implementation).double()
        logits = model(source, shifted)
        logits.square().mean().backward()
        results.append([logits, *(parameter.grad for parameter in model.parameters())])
    for left, right in zip(*results, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-9, atol=1e-9)


def test_an_answer_depends_on_all_of_its_source_and_on_no_later_token() -> None:
    torch.manual_seed(0)
    model = transformer.build(transformer.config_for(3e4, **SHAPE), "sdpa")
    source, shifted, _ = transduced(batch_size=2).batch(0)
    later, other = shifted.clone(), source.clone()
    later[:, 5:] = (later[:, 5:] + 1) % 10
    other[:, -1] = (other[:, -1] + 1) % 10
    before = model(source, shifted)
    torch.testing.assert_close(before[:, :5], model(source, later)[:, :5], rtol=1e-5, atol=1e-5)
    assert (before[:, 5:] - model(source, later)[:, 5:]).abs().max() > 1e-3
    assert (before[:, 0] - model(other, shifted)[:, 0]).abs().max() > 1e-4


def test_positions_are_the_papers_sinusoids() -> None:
    table = sinusoids(7, 6)
    for position, i in itertools.product(range(7), range(3)):
        angle = position / 10_000 ** (2 * i / 6)
        assert table[position, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
        assert table[position, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)
    assert sinusoids(4, 5).shape == (4, 5)


# --- learning --------------------------------------------------------------------------------------------------------


def trained(kind: str, length: int, params: float, **changes: object) -> tuple[Transformer, Transduce]:
    data, spec = Transduction(kind), train_spec(sequence_length=length, implementation="sdpa", **changes)
    config = configure(transformer, {"params": params}, data, length)
    side = DataSpec(source="", validation_fraction=0.2, validation_samples=256, noise_std=None, sha256="")
    task = transformer.task(config, data, side, spec)
    torch.manual_seed(0)
    model = transformer.build(config, "sdpa")
    train(
        model, build_optimizer(model, spec), task, spec, StepClock(torch.device("cpu")), torch.zeros(spec.steps), len_
    )
    return model, task


def len_(_done: int) -> None:
    """Nothing is to be checked."""


@pytest.mark.slow
def test_reversal_of_short_sequences_is_solved_and_greedy_decoding_agrees_with_teacher_forcing() -> None:
    spec = {"steps": 200, "batch_size": 64, "learning_rate": 0.02, "schedule": "linear", "warmup_steps": 20}
    model, task = trained("reversal", 5, 2e4, gradient_clip=1.0, weight_decay=0.0, **spec)
    validation = validate(model, task, train_spec(), torch.device("cpu"))
    assert validation.metrics["token_accuracy"] > 0.99
    assert validation.loss_nats < 0.15
    ((source, _, target), _), *_ = task.validation()
    with torch.no_grad():
        greedy = greedy_answers(model, source, BEGIN, 5)
    judged = task.judge(model, (source, _given(target), target))
    assert torch.equal((greedy == target).all(1), judged["correct"].all(1))


def _given(target: torch.Tensor) -> torch.Tensor:
    return torch.cat([target.new_full((len(target), 1), BEGIN), target[:, :-1]], dim=1)


@pytest.mark.slow
def test_greedy_and_teacher_forcing_agree_on_exact_match_of_a_model_that_errs() -> None:
    model, task = trained("reversal", 4, 1e4, steps=60, batch_size=64, learning_rate=0.01, warmup_steps=10)
    source, _, target = next(iter(task.validation()))[0]
    right = task.judge(model, (source, _given(target), target))["correct"]
    with torch.no_grad():
        greedy = greedy_answers(model, source, BEGIN, 4)
    assert torch.equal((greedy == target).all(1), right.all(1))
    assert not right.all()
    metrics = task.metrics({"correct": right.double().numpy()})
    assert metrics["token_accuracy"] == pytest.approx(float((right.double()).mean()))
    assert metrics["exact_match"] == pytest.approx(float(right.all(1).double().mean()))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"depth": 2, "width": 30, "heads": 4}, "width: 30 is not a multiple of heads = 4"),
        ({"params": 3e4, "norm_first": 1}, "norm_first: expected true or false"),
        ({"params": 300}, "nearest transformer"),
        ({"size": "transformer-bass"}, "did you mean 'transformer-base'"),
    ],
)
def test_requests_that_make_no_model_name_the_field(request_: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(transformer, request_, Transduction("reversal"), 9)


@pytest.mark.parametrize(
    ("kind", "length", "change", "word"),
    [
        ("reversal", 10, {}, "sequence_length = 10 is longer than the context of 9"),
        ("reversal", 9, {"vocab_size": 10}, "vocab_size: 10 is less than the data's 12"),
        ("addition", 9, {}, "answer: sources of 9 tokens have answers of 5"),
    ],
)
def test_tasks_that_do_not_fit_the_model_are_refused(kind: str, length: int, change: dict[str, int], word: str) -> None:
    config = transformer.config_for(2e4, **(SHAPE | change))
    side = DataSpec(source="", validation_fraction=0.2, validation_samples=8, noise_std=None, sha256="")
    with pytest.raises(InputError, match=word):
        transformer.task(config, Transduction(kind), side, train_spec(sequence_length=length))
