"""Weights held in int8 and other types: their products, their bytes, and what refuses them."""

from __future__ import annotations

import sys

import pytest
import torch
from scalekernels import Unsupported

from scalebench.families import gpt
from scalebench.measure.memory import weight_bytes
from scalebench.workloads.quantization import with_weights

# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns", "bias"), [(33, 40, True), (1, 7, False), (64, 17, True)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_int8_products_are_those_of_the_rounded_weight(rows: int, columns: int, bias: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(columns, rows, bias=bias, dtype=dtype), torch.randn(3, 5, columns, dtype=dtype)
    weight = linear.weight.detach().double()
    product = with_weights(linear, "int8")(x).double()
    held = linear.weight.qdata.double() * linear.weight.scale.double()
    # Rounding moves each weight by half a step of its row at most: a step is a 127th of the row's largest, or a 128th.
    assert ((held - weight).abs() <= weight.abs().amax(1, keepdim=True) / 127 * 0.51).all()
    assert linear.weight.qdata.int().abs().amax() >= 127
    assert not torch.equal(held, weight)
    expected = x.double() @ held.T + (linear.bias.double() if bias else 0)
    tolerance = 8 * torch.finfo(dtype).eps
    torch.testing.assert_close(product, expected, rtol=tolerance, atol=tolerance * columns**0.5)


def test_a_row_of_zeros_stays_zero() -> None:
    linear = torch.nn.Linear(4, 2)
    torch.nn.init.zeros_(linear.weight)
    assert torch.equal(with_weights(linear, "int8")(torch.ones(1, 4)), linear.bias[None])


@pytest.mark.parametrize("tied", [True, False])
def test_weight_bytes_are_the_closed_form_by_type(tied: bool) -> None:
    config = gpt.config_for(2e4, vocab_size=61, context=32, tied=tied)
    counts, sizes = gpt.count(config), {}
    for dtype in ("float32", "bfloat16", "int8"):
        sizes[dtype] = weight_bytes(with_weights(gpt.build(config, "sdpa"), dtype))
    assert sizes["float32"] == 4 * counts.total
    assert sizes["bfloat16"] == 2 * counts.total
    head = config.vocab_size * config.width
    matrices = counts.by_group["attention"] + counts.by_group["mlp"] + head
    outputs = config.depth * (3 * config.inner + 2 * config.width + config.hidden) + config.vocab_size
    others = counts.by_group["token_embedding"] + counts.by_group["norm"]
    assert sizes["int8"] == matrices + (4 + 1) * outputs + 4 * others  # torchao: a scale and a zero point for each row


def test_a_model_with_int8_weights_predicts_nearly_the_same() -> None:
    config, tokens = gpt.config_for(2e4, vocab_size=61, context=32), torch.randint(61, (4, 32))
    torch.manual_seed(0)
    model = gpt.build(config, "sdpa").eval()
    with torch.no_grad():
        before = model(tokens).softmax(-1)
        after = with_weights(model, "int8")(tokens).softmax(-1)
    assert 0 < (before - after).abs().sum(-1).max() < 0.05


def test_int8_refuses_a_model_without_a_linear_layer() -> None:
    with pytest.raises(Unsupported, match="linear layers"):
        with_weights(torch.nn.Sequential(torch.nn.Conv2d(1, 1, 3)), "int8")


def test_int8_without_torchao_is_unsupported_and_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    with pytest.raises(Unsupported, match=r"torchao .*pip install torchao"):
        with_weights(torch.nn.Linear(3, 2), "int8")
