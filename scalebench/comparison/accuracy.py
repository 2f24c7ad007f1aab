"""Is it right? Errors against a float64 reference, held against those of the plain low-precision path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor

FACTOR = 2.0  # twice the plain path's error is accepted: another order of the same roundings
FEW_ULPS = 8  # float32 units in the last place of the result's scale, accepted whatever the plain path's luck


@dataclass(frozen=True)
class Errors:
    """Largest absolute error of each named result, and the largest magnitude of its reference."""

    by_name: Mapping[str, float]
    scales: Mapping[str, float]
    problem: str = ""


def errors_of(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Errors:
    """Compare named tensors with their float64 reference. A NaN, or an infinity of its own, is an infinite error."""
    scales = {name: _largest(reference[reference.isfinite()]) for name, reference in expected.items()}
    if set(found) != set(expected):
        return Errors({}, scales, f"returned {', '.join(sorted(found))}; expected {', '.join(sorted(expected))}")
    wrong = [name for name in expected if found[name].shape != expected[name].shape]
    if wrong:
        shapes = "; ".join(f"{n}: {tuple(found[n].shape)}, expected {tuple(expected[n].shape)}" for n in wrong)
        return Errors({}, scales, f"returned other shapes: {shapes}")
    return Errors({name: _error(found[name].detach().double(), expected[name]) for name in expected}, scales)


def _largest(values: Tensor) -> float:
    return float(values.abs().max()) if values.numel() else 0.0


def _error(found: Tensor, expected: Tensor) -> float:
    difference = torch.where(found == expected, torch.zeros_like(expected), (found - expected).abs())
    return _largest(torch.nan_to_num(difference, nan=float("inf"), posinf=float("inf")))


def accuracy_columns(own: Errors, eager: Errors | None, eager_reason: str = "") -> dict[str, Any]:
    """Return the row's accuracy columns: of the result that comes nearest to, or lies furthest beyond, what is allowed.

    ``accepted`` is True where every result's error is at most twice the eager path's, or a few units in the last
    place; None where there is no eager error to hold it against. ``error_ratio`` is own over eager error.
    """
    if own.problem:
        return {"accepted": False, "error_note": own.problem}
    allowed = {name: FEW_ULPS * torch.finfo(torch.float32).eps * scale for name, scale in own.scales.items()}
    if eager is None or eager.problem:
        name = max(own.by_name, key=lambda name: own.by_name[name] / max(allowed[name], 1e-300))
        fine = all(own.by_name[name] <= allowed[name] for name in own.by_name)
        note = f"no eager error to hold it against: {eager_reason or (eager.problem if eager else 'not measured')}"
        return {"max_abs_error": _finite(own.by_name[name]), "error_result": name,
                "accepted": True if fine else None, "error_note": note}  # fmt: skip
    theirs = {name: error if isfinite(error) else 0.0 for name, error in eager.by_name.items()}
    # Relative to itself the eager path is always right: it has to be near the truth as such, of all results together,
    # for a single small one may drown in the precision of the large.
    near = 0.1 * max(own.scales.values(), default=0.0)
    room = {name: max(min(FACTOR * theirs[name], near), allowed[name], 1e-300) for name in own.by_name}
    name = max(own.by_name, key=lambda name: (own.by_name[name] / room[name], own.by_name[name]))
    good = own.by_name[name] <= room[name]
    return {
        "max_abs_error": _finite(own.by_name[name]),
        "eager_max_abs_error": _finite(eager.by_name[name]),
        "error_ratio": _finite(own.by_name[name] / eager.by_name[name]) if eager.by_name[name] else None,
        "error_result": name,
        "accepted": good,
        "error_note": None if good else _complaint(name, own, eager),
    }


def _complaint(name: str, own: Errors, eager: Errors) -> str:
    return (
        f"{name}: error {own.by_name[name]:.3g} where the eager path's is {eager.by_name[name]:.3g} "
        f"and the result reaches {own.scales[name]:.3g}"
    )


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
