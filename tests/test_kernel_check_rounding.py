"""The check of stochastic rounding, under the interpreter: it accepts the kernels, and refuses every other rounding."""

from __future__ import annotations

import check_rounding
import pytest
import torch
from scalekernels.optimizer.alternatives import OURS


@pytest.mark.parametrize("algorithm", OURS)
def test_a_step_of_every_algorithm_is_rounded_without_bias(algorithm: str) -> None:
    result = check_rounding.check_rounding(algorithm, "cpu")
    assert len(result) == len(check_rounding.STATES)
    assert not {name: check["problem"] for name, check in result.items() if check["problem"]}


@pytest.mark.parametrize("algorithm", OURS)
def test_rounding_to_nearest_is_refused(algorithm: str) -> None:
    result = check_rounding.check_rounding(algorithm, "cpu", stochastic=False)
    assert all(check["problem"] for check in result.values())


def rounded(exact: torch.Tensor, way: str) -> torch.Tensor:
    """Round to bfloat16 in one of several ways; "stochastic" is right."""
    bits = exact.float().view(torch.int32)
    noise = torch.randint(1 << 16, exact.shape, generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    added = {"stochastic": noise, "cut off": noise * 0, "a bit lost": noise | 1 << 14, "too far": noise + (1 << 16)}[
        way
    ]
    return (bits + added & ~0xFFFF).view(torch.float32).bfloat16()


@pytest.mark.parametrize("way", ["stochastic", "cut off", "a bit lost", "too far"])
def test_only_unbiased_choices_between_the_neighbours_pass(way: str) -> None:
    exact = torch.randn(50_000, generator=torch.Generator().manual_seed(0)).double()
    problem = check_rounding.wrong_rounding(rounded(exact, way), exact, 0.0)
    assert bool(problem) == (way != "stochastic"), problem
    assert "no neighbours" in check_rounding.wrong_rounding(torch.full_like(exact, torch.nan), exact, 0.0)


def test_numbers_that_bfloat16_has_are_their_own_neighbours() -> None:
    exact = torch.tensor([0.0, 1.0, -2.5, 1 + 2**-8]).double()
    below, above = check_rounding.neighbours(exact, torch.zeros_like(exact))
    assert below.tolist() == [0.0, 1.0, -2.5, 1.0]
    assert above.tolist() == [0.0, 1.0, -2.5, 1 + 2**-7]
