"""Launch shapes of the optimizer that a GPU session times: all compute the same, and a wrong one is reported."""

from __future__ import annotations

import pytest
import tuning
import tuning_optimizer
from scalekernels.optimizer import kernels

SHAPES = ((3, 5), (700,))


@pytest.fixture
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A graph is the step itself; times are made up. The interpreter takes no limit of registers."""
    monkeypatch.setattr(tuning, "captured", lambda run, candidate: run(candidate) or candidate)
    monkeypatch.setattr(tuning, "timed", lambda graphs: {place: [1.0 + place, 9.0, 0.5] for place in graphs})
    shapes = {"shipped": {}, "256": {"TAIL": 256}, "impossible": {"TAIL": 999}}
    monkeypatch.setattr(tuning_optimizer, "SHAPES", shapes)


@pytest.mark.usefixtures("without_a_gpu")
def test_every_shape_is_timed_and_one_that_fails_is_a_row_with_the_reason() -> None:
    written: list[int] = []
    shipped = kernels.update_kernel
    rows = tuning_optimizer.measure(SHAPES, "cpu", lambda rows: written.append(len(rows)))
    assert kernels.update_kernel is shipped
    times = {row["candidate"]: row.get("time_median_s") for row in rows}
    assert times == {"float32 state": 1.0, "shipped": 2.0, "256": 3.0, "impossible": None}
    assert [bool(row["problem"]) for row in rows] == [False, False, False, True]
    assert written == [1, 2, 3, 4, 4]


def test_a_shape_that_computes_something_else_is_seen() -> None:
    assert "parameters differ" in str(tuning_optimizer.difference(SHAPES[:1], "cpu", {"ROUNDS": False}))
    assert tuning_optimizer.difference(SHAPES[:1], "cpu", {}) is None
