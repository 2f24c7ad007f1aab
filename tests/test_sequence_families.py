"""What the sequence families have in common: studies refused with file and key, records, shared rules of the dial."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from scalebench.data import open_source
from scalebench.errors import StudyError
from scalebench.families import FAMILIES, moe
from scalebench.families.dial import HEADED_WIDTH_STEPS, heads_of, rounded
from scalebench.families.modules.multihead import MultiHead
from scalebench.families.multihead import attention_flops
from scalebench.running.planning import load_study, plan
from scalebench.tasks import NextToken
from scalebench.workloads.training_columns import size_columns

NAMES = ("rnn", "moe", "attention", "transformer", "bert")


def study(family: str, model: str, rest: str = "") -> str:
    return f'schema = 1\nname = "s"\n[model]\nfamily = "{family}"\n{model}\n{rest}'


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (study("rnn", 'params = 1e5\ncell = "gur"'), "model.cell: unknown 'gur'; did you mean 'gru'?"),
        (study("rnn", "params = 1e5\nvocab_size = 100"), "model.vocab_size: 100 is less than the data's 256 symbols"),
        (study("moe", "params = 1e5\nexperts_per_token = 9"), "model.experts_per_token: must be at most experts = 8"),
        (study("moe", "params = 1e5\nhead_dim = 15"), "model.head_dim: rotary positions need an even head_dim"),
        (study("gpt", "params = 1e5\nhead_dim = 15"), "model.head_dim: rotary positions need an even head_dim"),
        (study("gpt", "params = 1e5\nvocab_size = 255"), "model.vocab_size: 255 is less than the data's 256 symbols"),
        (study("moe", "params = 1e5\ncontext = 64"), "sequence_length = 128 is longer than the context of 64"),
        (study("bert", "depth = 2\nwidth = 30\nheads = 4"), "model.width: 30 is not a multiple of heads = 4"),
        (study("bert", 'size = "bert-base"', "[train]\nsequence_length = 513"), "longer than the context of 512"),
        (study("bert", 'size = "bert-base"\nvocab_size = 258'), "model.vocab_size: 258 is less than the data's 259"),
        (study("bert", "params = 1e5", "[train]\nsequence_length = 9e6"), "sequence_length"),
        (study("transformer", "params = 1e5\nheads = 7"), "is not a multiple of heads = 7"),
        (
            study("transformer", "params = 1e5", '[data]\nsource = "transduction:adition"'),
            "data.source: unknown 'adition'; did you mean 'addition'?",
        ),
        (
            study(
                "transformer", "params = 1e5", '[train]\nsequence_length = 8\n[data]\nsource = "transduction:addition"'
            ),
            "addition takes two numbers",
        ),
        (study("transformer", "params = 1e5", '[data]\nsource = "stdlib"'), "cannot learn from 'stdlib'"),
        (study("attention", "params = 1e5\ninputs = 4"), "model.inputs: 4 features; an element of the data has 12"),
        (study("attention", "params = 1e5", "[train]\nsequence_length = 1"), "give at least 2"),
        (study("attention", "params = 1e5\nheads = 7"), "is not a multiple of heads = 7"),
    ],
)
def test_each_mistake_names_file_and_key(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "study.toml"
    path.write_text(text)
    with pytest.raises(StudyError) as caught:
        plan(load_study(path))
    (line,) = caught.value.lines
    assert "study.toml: " in line
    assert expected in line


def test_a_refused_size_ends_the_command_with_2_before_any_trial(command, tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study("moe", "params = 1e5\nexperts = 2\nexperts_per_token = 3"))
    code, _, err = command("run", path)
    assert code == 2
    assert "model.experts_per_token: must be at most experts = 2 (given 3)" in " ".join(err.split())
    assert not list(tmp_path.rglob("trial.json"))


@pytest.mark.parametrize("name", NAMES)
def test_every_family_has_a_study_for_two_cores_and_one_for_a_gpu(name: str) -> None:
    small, large = plan(load_study(name)), plan(load_study(f"{name}-gpu"))
    assert {trial.trial.family for trial in small + large} == {name}
    assert 4 <= len({trial.requested["params"] for trial in small}) <= 6
    assert sum(trial.flops for trial in small) < 2e12  # a minute or two on two cores
    assert {trial.trial.device_kind for trial in large} == {"cuda"}
    assert max(trial.memory_bytes for trial in large) < 130e9
    assert max(trial.counts.active for trial in large) > 9e7


@pytest.mark.parametrize("name", NAMES)
def test_what_a_size_has_is_in_its_record(name: str) -> None:
    (planned, *_) = plan(load_study(name))
    trial, family = planned.trial, FAMILIES[name]
    config = family.Config(**trial.model)
    task = family.task(config, open_source(trial.data.source), trial.data, trial.spec)
    columns = size_columns(planned.counts, task, trial.spec)
    assert columns["params"] == sum(parameter.numel() for parameter in family.build(config, "eager").parameters())
    assert columns["params_active"] == planned.counts.active
    assert (columns["params_active"] < columns["params"]) == (name == "moe")
    samples = trial.spec.steps * trial.spec.batch_size
    assert columns["tokens_seen"] == samples * trial.spec.sequence_length
    assert columns["floor_nats"] == task.floor_nats


def test_a_budget_per_parameter_of_experts_means_the_active_ones(tmp_path: Path) -> None:
    path = tmp_path / "study.toml"
    path.write_text(study("moe", "params = 1e5", "[train]\ntokens_per_param = 20"))
    (planned,) = plan(load_study(path))
    active = moe.count(moe.Config(**planned.trial.model)).active_non_embedding
    assert planned.trial.spec.steps == round(20 * active / (16 * 128))


def test_next_token_of_experts_is_the_plain_task_with_a_weight() -> None:
    (planned, *_) = plan(load_study("moe"))
    trial = planned.trial
    task = moe.task(moe.Config(**trial.model), open_source("stdlib"), trial.data, trial.spec)
    assert isinstance(task, NextToken)
    assert task.balance_weight == 0.01
    assert task.batch(3)[0].shape == (trial.spec.batch_size, trial.spec.sequence_length)


@pytest.mark.parametrize("width", [16, 48, 112, 128, 480, 512, 1984, 2048, 12288])
def test_heads_share_a_width_of_the_dial_in_dimensions_that_kernels_take(width: int) -> None:
    assert rounded(width, HEADED_WIDTH_STEPS) == width
    assert width % heads_of(width) == 0
    assert width // heads_of(width) in (16, 32, 64, 128)


@pytest.mark.parametrize("causal", [False, True])
def test_multi_head_attention_is_torchs(causal: bool) -> None:
    torch.manual_seed(0)
    x, memory = torch.randn(2, 6, 12, dtype=torch.float64), torch.randn(2, 9, 12, dtype=torch.float64)
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    theirs.in_proj_bias.data.normal_()
    for implementation in ("eager", "sdpa"):
        mine = MultiHead(12, 3, implementation).double()
        mine.query.weight.data, rest = theirs.in_proj_weight.data.split([12, 24])
        mine.key_value.weight.data = rest
        mine.query.bias.data, mine.key_value.bias.data = theirs.in_proj_bias.data.split([12, 24])
        mine.out.load_state_dict(theirs.out_proj.state_dict())
        seen = x if causal else memory
        future = torch.ones(6, 6, dtype=torch.bool).triu(1) if causal else None
        expected = theirs(x, seen, seen, attn_mask=future, need_weights=False)[0]
        torch.testing.assert_close(mine(x, seen, causal=causal), expected, rtol=1e-10, atol=1e-10)


def test_scores_cost_what_their_products_do() -> None:
    assert attention_flops(12, 6, 9) == 2 * 2 * 6 * 9 * 12
    assert attention_flops(12, 6, 6, causal=True) == 2 * 6 * 6 * 12
