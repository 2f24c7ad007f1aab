"""Training on a real GPU: `pytest -m gpu`. Every implementation's losses, and steps that wait for nothing."""

from __future__ import annotations

import pytest
import torch
from scalekernels import unavailable_reason

from scalebench.workloads.agreement import WAYS, compare_losses, unwaiting_steps

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(torch.cuda.is_available() and unavailable_reason() is not None, reason="no kernels here"),
]


@pytest.mark.parametrize("form", ["rotary", "learned"])
def test_every_implementation_trains_alike_over_200_steps(form: str) -> None:
    results = compare_losses(steps=200, form=form)
    assert {name: result["agrees"] for name, result in results.items()} == dict.fromkeys(results, True), results


@pytest.mark.parametrize("way", WAYS)
def test_no_step_waits_for_the_device(way: tuple[str, str]) -> None:
    assert unwaiting_steps(*way) == 10
