"""What counts as right: errors against a reference, held against those of the eager path."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scalekernels.accuracy import Errors, errors_of

from scalebench.comparison.judge import IN_PARTS, Judge, accuracy_columns

EXPECTED = {"out": torch.tensor([1.0, -4.0, 2.0], dtype=torch.float64)}


def off_by(error: float) -> Errors:
    return errors_of({"out": (EXPECTED["out"] + error).double()}, EXPECTED)


@pytest.mark.parametrize(("own", "accepted"), [(1e-3, True), (1.9e-3, True), (2.1e-3, False), (0.0, True)])
def test_twice_the_eager_error_is_accepted_and_no_more(own: float, accepted: bool) -> None:
    columns = accuracy_columns(off_by(own), off_by(1e-3))
    assert columns["accepted"] is accepted
    assert columns["error_ratio"] == pytest.approx(own / 1e-3)
    assert columns["max_abs_error"] == pytest.approx(own)
    assert (columns["error_note"] is None) is accepted


def test_a_few_units_in_the_last_place_are_accepted_where_eager_is_exact() -> None:
    ulp = torch.finfo(torch.float32).eps * 4.0
    assert accuracy_columns(off_by(7 * ulp), off_by(0.0))["accepted"] is True
    assert accuracy_columns(off_by(9 * ulp), off_by(0.0))["accepted"] is False
    assert accuracy_columns(off_by(0.0), off_by(0.0))["error_ratio"] is None


def test_an_eager_path_that_is_far_from_the_truth_is_wrong_itself() -> None:
    assert accuracy_columns(off_by(0.5), off_by(0.5))["accepted"] is False


def test_a_small_result_may_drown_in_the_precision_of_a_large_one() -> None:
    expected = {"small": torch.tensor([1e-3], dtype=torch.float64), "large": torch.tensor([4.0], dtype=torch.float64)}
    eager = errors_of({name: tensor + 1e-3 for name, tensor in expected.items()}, expected)
    assert accuracy_columns(eager, eager)["accepted"] is True


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_a_number_is_wrong_also_where_eager_has_it(value: float) -> None:
    broken = errors_of({"out": torch.tensor([1.0, value, 2.0])}, EXPECTED)
    for eager in (off_by(1e-3), broken):
        columns = accuracy_columns(broken, eager)
        assert columns["accepted"] is False
        assert columns["max_abs_error"] is None


def test_an_infinity_of_the_reference_is_matched_exactly() -> None:
    expected = {"lse": torch.tensor([-float("inf"), 1.0], dtype=torch.float64)}
    exact = errors_of({"lse": torch.tensor([-float("inf"), 1.0])}, expected)
    assert accuracy_columns(exact, exact)["accepted"] is True
    assert errors_of({"lse": torch.tensor([0.0, 1.0])}, expected).by_name["lse"] == float("inf")


def test_other_names_and_shapes_are_wrong() -> None:
    for outputs, message in (({"y": EXPECTED["out"]}, "returned y; expected out"),
                        ({"out": EXPECTED["out"][:2]}, "other shapes: out: (2,), expected (3,)")):  # fmt: skip
        columns = accuracy_columns(errors_of(outputs, EXPECTED), off_by(1e-3))
        assert columns["accepted"] is False
        assert message in columns["error_note"]


def test_without_an_eager_error_only_the_last_places_are_sure() -> None:
    assert accuracy_columns(off_by(0.0), None, "eager is out of memory")["accepted"] is True
    columns = accuracy_columns(off_by(1e-3), None, "eager is out of memory")
    assert columns["accepted"] is None
    assert "out of memory" in columns["error_note"]


def test_without_an_eager_error_what_no_eager_error_excuses_is_wrong() -> None:
    columns = accuracy_columns(off_by(0.41), None, "eager is out of memory")
    assert columns["accepted"] is False
    assert "error 0.41 exceeds 0.4," in columns["error_note"]
    assert "out of memory" in columns["error_note"]
    assert accuracy_columns(off_by(0.39), None)["accepted"] is None


def test_a_plain_path_that_does_not_fit_into_the_memory_of_a_cpu_is_measured_in_parts() -> None:
    """torch reports memory that runs out as a plain RuntimeError there."""

    def full(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes")

    eager = SimpleNamespace(prepare=lambda *_: full)
    exact = {"out": torch.ones(2, dtype=torch.float64)}
    module = SimpleNamespace(providers=lambda: {"eager": eager}, eager_in_parts=lambda *_: {"out": torch.ones(2)})
    measured = Judge._with_eager(module, None, {}, False, None, lambda _: None, exact)
    assert measured.eager is not None
    assert measured.note == IN_PARTS


def raising(*_: object) -> None:
    raise ValueError("no such oracle")


def too_large(*_: object) -> None:
    raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize(
    ("results", "message"),
    [(raising, "ValueError: no such oracle"), (lambda *_: None, "expected a dict of tensors by name, not NoneType")],
)
def test_an_oracle_that_raises_is_a_failure_of_every_row(results, message: str) -> None:
    judge = Judge.of(SimpleNamespace(results=results), None, {}, False, None, lambda _: None)
    for columns in (judge.broken, judge.columns({}), judge.columns_again({})):
        assert columns["status"] == "failed"
        assert message in columns["error_message"]


def test_an_oracle_that_does_not_fit_into_memory_leaves_rows_unchecked() -> None:
    judge = Judge.of(SimpleNamespace(results=too_large), None, {}, False, None, lambda _: None)
    assert judge.broken == {}
    assert judge.columns({})["accepted"] is None
