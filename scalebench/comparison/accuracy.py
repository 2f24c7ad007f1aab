"""The accuracy columns of a comparison's rows, from the acceptance rule of ``scalekernels.accuracy``."""

from __future__ import annotations

from math import isfinite
from typing import Any

from scalekernels.accuracy import Errors, Terms, errors_of, judge, terms_of

__all__ = ["Errors", "Terms", "accuracy_columns", "errors_of", "terms_of"]


def accuracy_columns(own: Errors, eager: Errors | None, eager_reason: str = "", terms: Terms = 0.0) -> dict[str, Any]:
    """Return the row's accuracy columns: of the result that comes nearest to, or lies furthest beyond, what is allowed.

    ``accepted`` is None where the error is above the floor and there is no eager error to hold it against.
    ``error_ratio`` is own over eager error; ``terms`` is the operation's, as in ``scalekernels.accuracy``.
    """
    judged = judge(own, None if eager is None or eager.problem else eager, terms=terms)
    if not judged.tensors:
        return {"accepted": not judged.problem, "error_note": judged.problem or None}
    row = judged.tensors[judged.worst]
    columns = {"max_abs_error": _finite(row.error), "error_result": judged.worst}
    if eager is None or eager.problem:
        note = f"no eager error to hold it against: {eager_reason or (eager.problem if eager else 'not measured')}"
        return {**columns, "accepted": True if judged.accepted else None, "error_note": note}
    theirs = row.eager_error or 0.0
    return {
        **columns,
        "eager_max_abs_error": _finite(theirs),
        "error_ratio": _finite(row.error / theirs) if theirs else None,
        "accepted": judged.accepted,
        "error_note": judged.problem or None,
    }


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
