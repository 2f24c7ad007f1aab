"""Recurrent language models: counts against known figures and torch's layers, FLOPs of written-out cells, causality."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support import saved_for_backward
from torch.utils.flop_counter import FlopCounterMode

from scalebench.data import open_source
from scalebench.errors import InputError
from scalebench.families import configure, rnn
from scalebench.families.modules.rnn import RNN
from scalebench.families.outline import outline

TEXT = {"vocab_size": 256}
CELLS = list(rnn.GATES)


@pytest.mark.parametrize(("cell", "recurrent"), [("vanilla", 230_400), ("lstm", 921_600), ("gru", 691_200)])
def test_two_layers_of_256_on_128_have_the_known_size(cell: str, recurrent: int) -> None:
    config = rnn.explicit(2, 256, embedding=128, cell=cell, **TEXT)
    counts = rnn.count(config)
    assert counts.by_group["recurrent"] == counts.non_embedding == recurrent
    assert sum(p.numel() for p in rnn.build(config, "eager").layers.parameters()) == recurrent
    assert not config.tied


@pytest.mark.parametrize(("size", "millions"), [("zaremba-medium", 19.8), ("zaremba-large", 66.0)])
def test_published_sizes_have_the_parameters_the_paper_rounds_to(size: str, millions: float) -> None:
    assert round(rnn.count(rnn.SIZES[size]).total / 1e6, 1) == millions


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("fixed", [{}, {"embedding": 24}, {"tied": False, "depth": 3}])
def test_counts_equal_the_built_module_group_by_group(cell: str, fixed: dict[str, object]) -> None:
    config = rnn.config_for(3e4, cell=cell, **fixed, **TEXT)
    module = outline(rnn, config)
    groups = {"tokens": 0, "layers": 0, "head": 0}
    for name, parameter in module.named_parameters():
        groups[name.partition(".")[0]] += parameter.numel()
    assert list(groups.values()) == list(rnn.count(config).by_group.values())


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("fixed", [{}, {"embedding": 32}, {"depth": 4}])
def test_the_dial_lands_within_five_percent_and_a_tenth_more_is_larger(cell: str, fixed: dict[str, int]) -> None:
    for request in np.geomspace(3e4, 1e10, 200):
        size, larger = (
            rnn.count(rnn.config_for(n, cell=cell, **fixed, **TEXT)).non_embedding for n in (request, 1.1 * request)
        )
        assert abs(size / request - 1) <= 0.05
        assert larger > size


@pytest.mark.parametrize("cell", CELLS)
def test_without_held_fields_the_dial_reaches_down_to_ten_thousand(cell: str) -> None:
    for request in np.geomspace(1e4, 3e4, 50):
        assert rnn.count(rnn.config_for(request, cell=cell, **TEXT)).non_embedding == pytest.approx(request, rel=0.05)


def written_out(model: RNN, cell: str, tokens: torch.Tensor) -> torch.Tensor:
    """The same network cell by cell, every product visible to the counter (its CPU layers are one operation to it)."""
    x = model.tokens(tokens) * model.tokens.embedding_dim**0.5
    for layer in range(model.layers.num_layers):
        names = ("weight_ih_l", "weight_hh_l", "bias_ih_l", "bias_hh_l")
        w_x, w_h, b_x, b_h = (getattr(model.layers, f"{name}{layer}") for name in names)
        h = c = x.new_zeros(x.size(0), w_h.shape[1])
        steps = []
        for t in range(x.size(1)):
            a, b = torch.addmm(b_x, x[:, t], w_x.T), torch.addmm(b_h, h, w_h.T)
            if cell == "vanilla":
                h = torch.tanh(a + b)
            elif cell == "lstm":
                i, f, g, o = (a + b).chunk(4, dim=1)
                c = f.sigmoid() * c + i.sigmoid() * g.tanh()
                h = o.sigmoid() * c.tanh()
            else:
                (r_a, z_a, n_a), (r_b, z_b, n_b) = a.chunk(3, dim=1), b.chunk(3, dim=1)
                n, z = torch.tanh(n_a + (r_a + r_b).sigmoid() * n_b), (z_a + z_b).sigmoid()
                h = (1 - z) * n + z * h
            steps.append(h)
        x = torch.stack(steps, dim=1)
    return model.head(x)


@pytest.mark.parametrize("cell", CELLS)
def test_flops_are_the_counters_on_a_written_out_cell_that_computes_the_same(cell: str) -> None:
    config = rnn.explicit(2, 12, embedding=7, cell=cell, vocab_size=31)
    torch.manual_seed(0)
    model = rnn.build(config, "eager").double()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.5)  # biases too
    tokens = torch.randint(31, (3, 5))
    with FlopCounterMode(display=False) as counter:
        expected = written_out(model, cell, tokens)
    assert counter.get_total_flops() == 3 * rnn.count(config, 5).forward_flops
    torch.testing.assert_close(model(tokens), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cell", CELLS)
def test_no_token_sees_its_future(cell: str) -> None:
    torch.manual_seed(0)
    model = rnn.build(rnn.config_for(3e4, cell=cell, **TEXT), "eager")
    tokens = torch.randint(256, (2, 20))
    changed = tokens.clone()
    changed[:, 11:] = (changed[:, 11:] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :11], after[:, :11], rtol=1e-5, atol=1e-6)
    assert (before[:, 11:] - after[:, 11:]).abs().max() > 1e-3


def test_an_lstm_begins_with_its_forget_gate_open() -> None:
    model = rnn.build(rnn.explicit(2, 8, **TEXT), "eager")
    for layer in range(2):
        bias = getattr(model.layers, f"bias_ih_l{layer}") + getattr(model.layers, f"bias_hh_l{layer}")
        assert bias.tolist() == [0.0] * 8 + [1.0] * 8 + [0.0] * 16


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("params", [1e4, 1e6])
def test_activations_are_estimated_within_a_factor_of_two(cell: str, params: float) -> None:
    config = rnn.config_for(params, cell=cell, **TEXT)
    model, tokens = rnn.build(config, "eager"), torch.randint(256, (4, 32))
    loss = lambda: torch.nn.functional.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten())  # noqa: E731
    assert 0.5 < saved_for_backward(model, loss) / (4 * rnn.count(config, 32).activation_bytes) < 2


@pytest.mark.parametrize(
    ("request_", "word"),
    [
        ({"params": 1e5, "cell": "lsmt"}, "cell: unknown 'lsmt'; did you mean 'lstm'"),
        ({"params": 1e5, "width": 9}, "width: an rnn's dial"),
        ({"params": 300}, "nearest rnn"),
        ({"depth": 2}, "width missing"),
        ({"params": 1e5, "embedding": 24, "tied": True}, "tied: embedding = 24"),
    ],
)
def test_requests_that_make_no_model_name_the_field(request_: dict[str, object], word: str) -> None:
    with pytest.raises(InputError, match=word):
        configure(rnn, request_, open_source("stdlib"), 64)
