"""The acceptance rule of kernels: errors against a float64 oracle, compared with PyTorch's in the same precision.

A result is accepted when, for every tensor t of it,

    max |t − oracle|  ≤  max(2 · min(max |eager − oracle|, 0.05 · S), 8 · 2⁻²³ · s)

where ``eager`` is the result of plain PyTorch in the same precision, s the largest magnitude in t's oracle and S that
in all tensors. The floor of 8 float32 units in the last place allows another order of summation where the eager path
happens to be exact. If results can be small differences of large terms, the operation provides their magnitude
(``terms``): s is then the largest sum of magnitudes, max Σ|terms|, to which the error of a sum in any order is
proportional. The cap keeps a wrong eager path from excusing large errors. If the eager result is not finite (AdamW in
float16, whose second moment underflows), the rounding of t's dtype, ε/2 · s, replaces its error. NaN, or an infinity
that the oracle does not have, is an infinite error; names and shapes must be those of the oracle.

Tests, ``scalebench compare`` and the GPU checks all use this module.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from sys import float_info
from typing import Any

import torch
from torch import Tensor

FACTOR = 2.0  # accepted multiple of the eager error: another order of the same roundings
ULPS = 8.0  # float32 units in the last place of the oracle's magnitude, accepted whatever the eager error
FURTHEST = 0.1  # cap on FACTOR times the eager error, as a share of the largest magnitude in all tensors
Terms = float | Mapping[str, float]


@dataclass(frozen=True)
class Errors:
    """Largest absolute error of each named tensor and largest magnitude of its oracle; or the ``problem``.

    ``roundings`` are the errors of rounding that magnitude to each tensor's dtype.
    """

    by_name: Mapping[str, float]
    scales: Mapping[str, float]
    problem: str = ""
    roundings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TensorError:
    """Largest absolute errors of one tensor: ours, the eager path's (None if not measured), and the allowed one."""

    error: float
    eager_error: float | None
    allowed: float

    @property
    def accepted(self) -> bool:
        """Whether the error is at most the allowed one."""
        return self.error <= self.allowed


@dataclass(frozen=True)
class Judgement:
    """The errors by tensor, and why the result is rejected ("" if it is accepted)."""

    tensors: Mapping[str, TensorError] = field(default_factory=dict)
    problem: str = ""

    @property
    def accepted(self) -> bool:
        """Whether every tensor is accepted."""
        return not self.problem

    @property
    def worst(self) -> str:
        """The tensor whose error is the largest multiple of the allowed one; "" if none was compared."""
        return max(self.tensors, key=lambda name: _multiple(self.tensors[name]), default="")


def errors_of(results: Mapping[str, Tensor], oracle: Mapping[str, Tensor]) -> Errors:
    """Compare named tensors with their float64 oracle, on the oracle's device."""
    scales = {name: _largest(exact[exact.isfinite()]) for name, exact in oracle.items()}
    if results.keys() != oracle.keys():
        return Errors({}, scales, f"returned {', '.join(sorted(results))}; expected {', '.join(sorted(oracle))}")
    wrong = [name for name in oracle if results[name].shape != oracle[name].shape]
    if wrong:
        shapes = "; ".join(f"{n}: {tuple(results[n].shape)}, expected {tuple(oracle[n].shape)}" for n in wrong)
        return Errors({}, scales, f"returned other shapes: {shapes}")
    errors = {name: _error(results[name].detach(), exact) for name, exact in oracle.items()}
    roundings = {name: _half_ulp(results[name].dtype) * scale for name, scale in scales.items()}
    return Errors(errors, scales, roundings=roundings)


def judge(
    own: Errors,
    eager: Errors | None,
    *,
    ulps: float = ULPS,
    terms: Terms = 0.0,
    furthest: float = FURTHEST,
) -> Judgement:
    """Apply the rule to errors; a tensor that ``eager`` lacks is compared with the floor alone.

    ``terms`` is the magnitude of the summed terms, by tensor or one number for all; floors are ``ulps`` of it where it
    exceeds the oracle's magnitude. ``furthest`` is the cap, as a share of the largest magnitude; infinity if only equal
    quality of both paths matters, as after many optimizer steps in bfloat16.
    """
    if own.problem:
        return Judgement(problem=own.problem)
    theirs = {} if eager is None else eager.by_name
    limit = furthest * max((*own.scales.values(), terms if isinstance(terms, float) else 0.0), default=0.0)
    tensors = {}
    for name, error in own.by_name.items():
        summed = terms if isinstance(terms, float) else terms.get(name, 0.0)
        floor = ulps * torch.finfo(torch.float32).eps * max(own.scales[name], summed)
        eager_error = theirs.get(name)
        finite = eager_error if eager_error is None or isfinite(eager_error) else own.roundings.get(name, 0.0)
        tensors[name] = TensorError(error, eager_error, max(min(FACTOR * (finite or 0.0), limit), floor))
    rejected = [_complaint(name, row) for name, row in tensors.items() if not row.accepted]
    return Judgement(tensors, "; ".join(rejected))


def largest_allowed(own: Errors, terms: Terms = 0.0) -> dict[str, float]:
    """Return, by tensor, the error that the rule allows at most, whatever the eager error."""
    worst_eager = Errors(dict.fromkeys(own.by_name, float_info.max), own.scales)
    return {name: row.allowed for name, row in judge(own, worst_eager, terms=terms).tensors.items()}


def judge_results(
    ours: Mapping[str, Tensor],
    eager: Mapping[str, Tensor],
    oracle: Mapping[str, Tensor],
    *,
    ulps: float = ULPS,
    terms: Terms = 0.0,
    furthest: float = FURTHEST,
) -> Judgement:
    """Apply the rule to named tensors; tensors that ``eager`` lacks are compared with the floor alone."""
    known = {name: exact for name, exact in oracle.items() if name in eager}
    theirs = errors_of({name: eager[name] for name in known}, known)
    return judge(errors_of(ours, oracle), theirs, ulps=ulps, terms=terms, furthest=furthest)


def terms_of(module: Any, case: Any, inputs: Mapping[str, Tensor], backward: bool) -> Terms:
    """Return the magnitudes of the terms of an operation's results from its module's ``terms``, 0 if it has none."""
    terms = getattr(module, "terms", None)
    return 0.0 if terms is None else dict(terms(case, inputs, backward))


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _error(result: Tensor, exact: Tensor) -> float:
    result = result.to(exact.device, torch.float64)
    difference = torch.where(result == exact, torch.zeros_like(exact), (result - exact).abs())
    return _largest(torch.nan_to_num(difference, nan=inf, posinf=inf))


def _half_ulp(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0


def _multiple(row: TensorError) -> tuple[float, float]:
    return row.error / max(row.allowed, 1e-300), row.error


def _complaint(name: str, row: TensorError) -> str:
    eager = "" if row.eager_error is None else f" (PyTorch's own: {row.eager_error:.3g})"
    if not isfinite(row.error):
        return f"{name}: NaN or infinity where the oracle has none{eager}"
    return f"{name}: error {row.error:.3g} exceeds {row.allowed:.3g}{eager}"
