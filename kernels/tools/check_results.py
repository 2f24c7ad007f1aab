"""Compare results of kernels: by the acceptance rule of ``scalekernels.accuracy``, and bit by bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from scalekernels.accuracy import FURTHEST, Terms, judge_results
from torch import Tensor


def judged(
    ours: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    terms: Terms = 0.0,
    furthest: float = FURTHEST,
) -> dict[str, Any]:
    """Return the errors of every tensor, and under ``problem`` why the rule rejects the results (None if it does not).

    ``eager`` is PyTorch's result in the same precision, ``oracle`` the float64 result.
    """
    judgement = judge_results(ours, eager, oracle, terms=terms, furthest=furthest)
    return {
        "tensors": {name: dataclasses.asdict(row) for name, row in judgement.tensors.items()},
        "problem": judgement.problem or None,
    }


def same_bits(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Return whether two results are bitwise equal."""
    return all(torch.equal(first[name], second[name]) for name in first)
