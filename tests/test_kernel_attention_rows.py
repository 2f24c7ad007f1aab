"""The passes over rows around the Gluon kernels of attention's backward pass, under Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from scalekernels.attention import hopper_gradients


@pytest.mark.parametrize("dimension", [64, 128])
@pytest.mark.parametrize("length", [1, 77, 128])
def test_statistics_are_padded_with_zeros(dimension: int, length: int) -> None:
    out = torch.randn(2, 3, length, dimension).half()
    grad_out = torch.randn(2, length, 3, dimension).half().transpose(1, 2)
    lse = torch.randn(2, 3, length)
    statistics = hopper_gradients.row_statistics(out, grad_out, lse)
    assert (statistics[0, :, :, :length] == lse).all()
    assert torch.allclose(statistics[1, :, :, :length], (out.float() * grad_out.float()).sum(-1), atol=1e-4)
    assert not statistics[:, :, :, length:].any()
