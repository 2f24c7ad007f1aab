"""Attention with keys and values loaded through tensor descriptors: the same bits as through pointers, or pointers."""

from __future__ import annotations

import pytest
import torch
from attention_support import (
    PROVIDERS,
    gradients,
    small_tiles,  # noqa: F401 - a fixture
)
from scalekernels.attention import (
    Case,
    attention,
    inputs,
)
from scalekernels.attention import descriptors as attention_descriptors
from scalekernels.attention import launch as attention_launch
from scalekernels.attention import tiles as attention_tiles
from scalekernels.attention.descriptors import undescribed
from scalekernels.providers import Unsupported
from triton.tools.tensor_descriptor import TensorDescriptor


@pytest.fixture
def loads(monkeypatch) -> list[bool]:
    """Whether each forward launch loaded keys and values through descriptors."""
    kernels, launch = [], attention_launch._launch

    def note(kernel, programs, tile, arguments, constants):
        if "DESCRIPTORS" in constants:
            assert isinstance(arguments["k"], TensorDescriptor) == constants["DESCRIPTORS"]
            kernels.append(constants["DESCRIPTORS"])
        launch(kernel, programs, tile, arguments, constants)

    monkeypatch.setattr(attention_launch, "_launch", note)
    return kernels


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.usefixtures("small_tiles")
def test_descriptors_of_views_read_the_same_bits_as_pointers(loads, causal):
    """Heads within rows, gaps between rows and heads, and NaN in the rows that lie beyond the end of a head."""
    generator = torch.Generator().manual_seed(6)
    q = torch.randn(2, 4, 37, 16, generator=generator)
    k = torch.randn(2, 45, 2, 16, generator=generator).transpose(1, 2)  # (B, T, H, D) in memory
    v = torch.full((2, 2, 64, 32), torch.nan)
    v[:, :, :45, :16] = torch.randn(2, 2, 45, 16, generator=generator)
    v = v[:, :, :45, :16]
    expected, lse = torch.ops.scalekernels.attention(q, k, v, causal, 0.25, True)
    output, output_lse = torch.ops.scalekernels.attention(q, k, v, causal, 0.25, True, True)
    assert loads == [False, True]
    assert expected.isfinite().all()
    torch.testing.assert_close((output, output_lse), (expected, lse), rtol=0, atol=0)


@pytest.mark.usefixtures("small_tiles")
def test_what_descriptors_cannot_describe_goes_through_pointers(loads):
    memory = torch.randn(2 * 2 * 20 * 20 + 1, generator=torch.Generator().manual_seed(7), dtype=torch.float32).half()
    dense = memory[:1280].view(2, 2, 20, 16)
    others = {
        "base": memory[1:1281].view(2, 2, 20, 16),
        "stride": memory[:1600].view(2, 2, 20, 20)[..., :16],
        "stride of 0": dense[:, :1].expand(2, 2, 20, 16),
    }
    case = Case(2, 2, 2, 20, 20, 16, False, torch.float16)
    for other in others.values():
        for name, k, v in (("k", other, dense), ("v", dense, other)):
            output = attention(dense, k, v, descriptors=True)
            torch.testing.assert_close(output, attention(dense, k, v), rtol=0, atol=0)
            with pytest.raises(Unsupported, match=f"of {name} is not a positive multiple of 16 bytes"):
                PROVIDERS["triton-descriptors"].prepare(case, {"q": dense, "k": k, "v": v}, False)
    assert not any(loads)


@pytest.mark.usefixtures("small_tiles")
def test_gradients_by_descriptors_are_the_same_bits(loads):
    operands = inputs(Case(1, 2, 1, 33, 40, 16, True, torch.float32))
    grad_out = operands.pop("grad_out")
    tensors = [operands[name].requires_grad_() for name in ("q", "k", "v")]
    grads = gradients(*tensors, grad_out, causal=True, descriptors=True)
    torch.testing.assert_close(grads, gradients(*tensors, grad_out, causal=True), rtol=0, atol=0)
    assert loads == [True, True, False, False]  # the forward pass and that for dQ, each way


def test_on_blackwell_a_tensor_with_gaps_is_not_described(monkeypatch):
    gaps = torch.zeros(2, 2, 20, 32)[..., :16]
    assert undescribed(k=gaps, v=gaps.contiguous()) is None
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: 100)
    assert undescribed(k=gaps.contiguous(), v=gaps) == "v has gaps in memory"
    assert undescribed(k=gaps.contiguous().transpose(0, 1), v=gaps.contiguous().transpose(1, 2)) is None


@pytest.mark.parametrize(
    ("arch", "dtype", "size"), [(80, torch.float16, 64), (90, torch.float32, 64), (90, torch.float16, 32)]
)
def test_descriptors_serve_what_was_compiled_without_spills(monkeypatch, arch, dtype, size):
    monkeypatch.setattr(attention_descriptors, "INTERPRETED", False)
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: arch)
    assert "descriptors need compute capability" in undescribed(k=torch.zeros(1, 1, 8, size, dtype=dtype))
    monkeypatch.setattr(attention_tiles, "architecture", lambda device: 90)
    assert undescribed(k=torch.zeros(1, 1, 8, 64, dtype=torch.float16)) is None
