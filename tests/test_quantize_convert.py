"""Weights in fewer bits: rounding, conversion by torchao, bytes against the closed form, tied and skipped layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from quantize_support import DEPTH, HIDDEN, HIDDEN_WEIGHTS, VOCABULARY, WIDTH, model, spec
from torch import nn

from scalebench.measure.memory import weight_bytes
from scalebench.workloads import quantize_convert
from scalebench.workloads.quantize_convert import convert, layers, rounded

# --- rounding --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("group_size", [None, 8])
@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_simulated_bits_are_torchaos(bits: int, group_size: int | None) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(bits)
    layer = nn.Linear(24, 40, bias=False)
    layer.weight.data[3] = 0
    ours = rounded(layer.weight, bits, group_size)
    granularity = quantization.PerAxis(0) if group_size is None else quantization.PerGroup(group_size)
    dtype = getattr(torch, f"int{bits}")
    quantization.quantize_(layer, quantization.IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity))
    assert torch.equal(ours, layer.weight.dequantize())
    per_group = ours.unflatten(1, (-1, group_size or 24))
    assert max(len(group.unique()) for row in per_group for group in row) <= 2**bits


def test_one_bit_has_two_levels_and_the_least_squared_error() -> None:
    torch.manual_seed(0)
    weight = torch.randn(1, 33).double()
    levels = rounded(weight, 1, None)
    low, high = levels.unique().tolist()
    assert high == -low == pytest.approx(weight.abs().mean().item())
    error = (levels - weight).square().sum()
    for scale in (0.9, 0.99, 1.01, 1.1):
        assert (levels * scale - weight).square().sum() > error
    assert (levels.sign() == weight.sign()).all()


# --- conversion and bytes --------------------------------------------------------------------------------------------

ROWS = DEPTH * (3 * WIDTH + WIDTH + HIDDEN + WIDTH)  # of the hidden matrices, those of width 64 last
EMBEDDING, NORMS = VOCABULARY * WIDTH, (2 * DEPTH + 1) * WIDTH


@pytest.mark.parametrize(
    ("scheme", "changes", "expected"),
    [
        ("float32", {}, 4 * (HIDDEN_WEIGHTS + EMBEDDING + NORMS)),
        ("bfloat16", {}, 2 * (HIDDEN_WEIGHTS + EMBEDDING + NORMS)),
        ("int8-weight-only", {}, HIDDEN_WEIGHTS + 5 * ROWS + 4 * (EMBEDDING + NORMS)),
        ("int8-weight-only", {"group_size": 16}, HIDDEN_WEIGHTS * (1 + 5 / 16) + 4 * (EMBEDDING + NORMS)),
        ("int8-weight-only", {"precision": "bfloat16"}, HIDDEN_WEIGHTS + 5 * ROWS + 2 * (EMBEDDING + NORMS)),
        ("int8-dynamic", {}, HIDDEN_WEIGHTS + 5 * ROWS + 4 * (EMBEDDING + NORMS)),
        ("int4-weight-only", {}, HIDDEN_WEIGHTS * (1 / 2 + 4 / 32) + 2 * (EMBEDDING + NORMS)),
        # A tied head becomes a copy: the embedding stays.
        ("int8-weight-only", {"outer_layers": True},
         HIDDEN_WEIGHTS + EMBEDDING + 5 * (ROWS + VOCABULARY) + 4 * (EMBEDDING + NORMS)),
    ],
)  # fmt: skip
def test_real_bytes_are_the_closed_form(scheme: str, changes: dict[str, Any], expected: float) -> None:
    if scheme.startswith("int"):
        pytest.importorskip("torchao")
    changed, conversion = convert(model(), spec(scheme, **changes))
    assert weight_bytes(changed) == conversion.closed_form_bytes == expected
    assert conversion.invalid_reason is None


@pytest.mark.parametrize("scheme", ["float32", "bfloat16", "int8-weight-only"])
def test_a_batch_norms_count_of_batches_keeps_its_eight_bytes(scheme: str) -> None:
    if scheme.startswith("int"):
        pytest.importorskip("torchao")
    net = nn.Sequential(nn.Linear(16, 32, bias=False), nn.BatchNorm1d(32), nn.Linear(32, 16, bias=False))
    floats, matrices = 4 * 32, 2 * 16 * 32
    changed, conversion = convert(net, spec(scheme))
    each = {"float32": 4, "bfloat16": 2}.get(scheme)
    stored = each * matrices if each else matrices + 5 * (32 + 16)
    assert weight_bytes(changed) == conversion.closed_form_bytes == stored + (each or 4) * floats + 8
    assert conversion.converted_params == {"float32": 0, "bfloat16": matrices + floats}.get(scheme, matrices)


@pytest.mark.parametrize(("bits", "bytes_each"), [(1, 4 + 8), (3, 12 + 24), (8, 32 + 64)])
def test_simulated_bytes_are_those_of_packed_rows(bits: int, bytes_each: int) -> None:
    _, conversion = convert(model(), spec("simulated", bits=bits))
    narrow, wide = DEPTH * (4 * WIDTH + HIDDEN), DEPTH * WIDTH  # rows of width 32 and of width 64
    assert bytes_each == (WIDTH * bits + HIDDEN * bits) // 8
    expected = narrow * WIDTH * bits // 8 + wide * HIDDEN * bits // 8 + 4 * ROWS + 4 * (EMBEDDING + NORMS)
    assert conversion.closed_form_bytes == expected


@pytest.mark.parametrize("scheme", ["simulated", "int8-weight-only"])
def test_a_tied_head_stays_tied_or_becomes_a_counted_copy(scheme: str) -> None:
    if scheme != "simulated":
        pytest.importorskip("torchao")
    whole = model()
    changed, conversion = convert(whole, spec(scheme))
    assert changed.head.weight is changed.tokens.weight
    assert (len(conversion.converted), conversion.copied) == (8, ())
    assert conversion.converted_params == HIDDEN_WEIGHTS
    tokens = (whole := model()).tokens.weight.detach().clone()
    changed, conversion = convert(whole, spec(scheme, outer_layers=True))
    assert changed.head.weight is not changed.tokens.weight
    assert torch.equal(changed.tokens.weight, tokens)
    assert not torch.equal(changed.head.weight.dequantize() if scheme != "simulated" else changed.head.weight, tokens)
    assert (len(conversion.converted), conversion.copied) == (9, ("head",))
    assert conversion.converted_params == HIDDEN_WEIGHTS + EMBEDDING


def test_an_untied_head_is_an_outer_layer() -> None:
    whole = model(tied=False)
    assert "head" not in layers(whole, outer=False)
    _, conversion = convert(whole, spec("simulated", outer_layers=True))
    assert ("head" in conversion.converted, conversion.copied) == (True, ())


def test_a_width_that_groups_do_not_divide_is_skipped_by_name() -> None:
    before = (whole := model(hidden=40)).state_dict()
    before = {name: value.clone() for name, value in before.items()}
    changed, conversion = convert(whole, spec("simulated", group_size=32))
    assert list(conversion.skipped) == ["blocks.0.down", "blocks.1.down"]
    expected = "not converted: blocks.0.down, blocks.1.down: width 40 is not divisible by the group size 32"
    assert conversion.invalid_reason == expected
    same = {name for name, value in changed.state_dict().items() if torch.equal(value, before[name])}
    assert {"blocks.0.down.weight", "blocks.1.down.weight"} < same
    assert "blocks.0.up.weight" not in same


def test_a_layer_that_torchao_leaves_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize_convert, "by_torchao", lambda *_: None)
    _, conversion = convert(model(), spec("int8-weight-only"))
    assert "blocks.1.down: skipped by torchao" in str(conversion.invalid_reason)
    assert conversion.converted == ()
