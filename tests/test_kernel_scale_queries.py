"""The pass that writes dQ from its sums, run by the interpreter."""

from __future__ import annotations

import pytest
import torch
from scalekernels.attention import hopper_gradients


@pytest.mark.parametrize("dimension", [64, 128])
def test_sums_are_scaled_and_rounded_into_any_layout(dimension: int) -> None:
    q = torch.empty(2, 150, 3, dimension, dtype=torch.float16).transpose(1, 2)
    sums, counters = hopper_gradients.sums_of(q)
    assert sums.shape == (2, 3, 256, dimension)
    assert counters.shape == (2, 3, 4)
    assert not sums.any()
    assert not counters.any()
    sums.copy_(torch.randn(sums.shape, generator=torch.Generator().manual_seed(0)))
    dq = torch.full_like(q, torch.nan)
    hopper_gradients.scale_queries(sums, dq, 0.3)
    assert torch.equal(dq, (sums[:, :, :150] * 0.3).half())
