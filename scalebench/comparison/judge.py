"""Check the results of providers: their error against float64, compared with eager's in the same precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from typing import Any

import torch
from scalekernels.accuracy import Errors, Terms, errors_of, judge, largest_allowed, terms_of
from torch import Tensor

from scalebench.comparison.failure import failure
from scalebench.running.limits import allocation_failed

Tensors = Mapping[str, Tensor]
IN_PARTS = "PyTorch's own error was measured in parts: the plain path does not fit into memory as a whole"


@dataclass
class Judge:
    """The float64 results of one case, or why there are none, and the errors of the provider called eager.

    ``broken`` are the columns of every row of a case whose ``results`` raise; {} where the results only do not fit into
    memory, which leaves the rows unchecked.
    """

    expected: Tensors | None
    eager: Errors | None
    reason: str = ""
    note: str = ""
    terms: Terms = 0.0
    broken: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, module: Any, case: Any, inputs: Tensors, backward: bool, crash: str | None, enter: Callable[[str], None]
    ) -> Judge:
        """Compute the float64 results and the eager errors, or record why that is not possible.

        ``crash`` is how the eager provider ended this process before, if it did; ``enter`` is called with the name of
        the provider that runs next.
        """
        enter("")
        try:
            expected = _by_name(module.results(case, inputs, backward))
            terms = terms_of(module, case, inputs, backward)
        except Exception as error:  # noqa: BLE001 - every row then reports it
            reason, columns = f"the float64 oracle failed: {_first(error)}", failure(error)
            broken = columns | {"error_message": reason} if columns["status"] == "failed" else {}
            return cls(None, None, reason, broken=broken)
        with_eager = cls._with_eager(module, case, inputs, backward, crash, enter, expected)
        return replace(with_eager, terms=terms)

    @classmethod
    def _with_eager(
        cls, module: Any, case: Any, inputs: Tensors, backward: bool, crash: str | None, enter: Callable[[str], None],
        expected: Tensors,
    ) -> Judge:  # fmt: skip
        """Measure the eager errors against ``expected``, or record why that is not possible."""
        eager = module.providers().get("eager")
        if eager is None:
            return cls(expected, None, "the operation has no provider called eager")
        if crash is not None:
            return cls(expected, None, crash)
        enter("eager")
        try:
            return cls(expected, errors_of(eager.prepare(case, inputs, backward)(), expected))
        except Exception as error:  # noqa: BLE001 - as above
            reason, full = _first(error), allocation_failed(error)
        parts = getattr(module, "eager_in_parts", None)
        if not full or parts is None:
            return cls(expected, None, reason)
        return cls._in_parts(expected, lambda: parts(case, inputs, backward), reason)

    @classmethod
    def _in_parts(cls, expected: Tensors, parts: Callable[[], Tensors], reason: str) -> Judge:
        """Measure the eager errors on parts of the work, after the whole did not fit into memory."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        try:
            return cls(expected, errors_of(parts(), expected), note=IN_PARTS)
        except Exception as error:  # noqa: BLE001 - as above
            return cls(expected, None, f"{reason}; in parts: {_first(error)}")

    def columns(self, results: Tensors) -> dict[str, Any]:
        """Return the accuracy columns of one provider's results."""
        if self.broken:
            return dict(self.broken)
        if self.expected is None:
            return {"accepted": None, "error_note": f"not checked: {self.reason}"}
        columns = accuracy_columns(errors_of(_by_name(results), self.expected), self.eager, self.reason, self.terms)
        notes = [note for note in (columns.get("error_note"), self.note) if note]
        return columns | {"error_note": "; ".join(notes) or None}

    def columns_again(self, results: Tensors) -> dict[str, Any]:
        """Return the columns that replace the first ones if results after timing are wrong; otherwise none.

        If they could not be checked, the note has the reason.
        """
        columns = self.columns(results)
        if self.broken:
            return columns
        if self.expected is None:
            return {"error_note": f"after timing {columns['error_note']}"}
        if columns["accepted"] is not False:
            return {}
        return columns | {"error_note": f"wrong after timing: {columns['error_note']}"}


def _by_name(results: Any) -> Tensors:
    """Return results that are tensors by name, or raise ``TypeError``."""
    if not (isinstance(results, Mapping) and all(isinstance(tensor, Tensor) for tensor in results.values())):
        raise TypeError(f"expected a dict of tensors by name, not {type(results).__name__}")
    return results


def _first(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:300]


def accuracy_columns(own: Errors, eager: Errors | None, eager_reason: str = "", terms: Terms = 0.0) -> dict[str, Any]:
    """Return a row's accuracy columns, by the rule of ``scalekernels.accuracy``, for the tensor with the worst error.

    Without an eager error to compare with, ``accepted`` is None between the rule's floor and its cap.
    ``error_ratio`` is own over eager error.
    """
    judged = judge(own, None if eager is None or eager.problem else eager, terms=terms)
    if not judged.tensors:
        return {"accepted": not judged.problem, "error_note": judged.problem or None}
    row = judged.tensors[judged.worst]
    columns = {"max_abs_error": _finite(row.error), "error_result": judged.worst}
    if eager is None or eager.problem:
        note = f"no eager error to compare with: {eager_reason or (eager.problem if eager else 'not measured')}"
        limit = largest_allowed(own, terms)[judged.worst]
        if row.error > limit:
            note = f"{judged.worst}: error {row.error:.3g} exceeds {limit:.3g}, the most for any eager error; {note}"
            return {**columns, "accepted": False, "error_note": note}
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
