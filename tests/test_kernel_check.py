"""The checker of kernel cases, under the interpreter: what is right passes, what is wrong fails, a crash is a row."""

from __future__ import annotations

import check_case
import pytest
import torch
import toy_operation
from check_results import judged
from scalekernels import OPERATIONS


def problems(fault: str) -> dict[str, str]:
    """What the checker finds wrong with the toy of a fault, in this process."""
    (case,) = [case for case in toy_operation.CASES if case.fault == fault][:1]
    checks = check_case.check_case(toy_operation, case, "cpu")
    assert checks["triton-absent forward"]["unavailable"] == "is never there"
    return {name: check["problem"] for name, check in checks.items() if check["problem"]}


def test_a_sound_kernel_passes_forward_and_backward() -> None:
    assert problems("") == {}


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("wrong", "y: error"),
        ("forgets", "y: NaN or infinity"),
        ("unsteady", "a repeat and a run after SDPA gave other bits"),
    ],
)
def test_a_kernel_that_is_wrong_or_unsteady_or_leaves_memory_unwritten_fails(fault: str, message: str) -> None:
    messages = problems(fault)
    assert message in messages["triton forward"]
    assert set(messages) == {"triton forward", "triton backward"}


def test_the_rule_allows_twice_torchs_own_error_and_no_more() -> None:
    exact, eager = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.001, 2.0])
    verdicts = [
        judged({"y": torch.tensor([1 + error, 2.0])}, {"y": eager}, {"y": exact})["problem"]
        for error in (0.0, 0.0019, 0.0021, torch.nan)
    ]
    assert [bool(verdict) for verdict in verdicts] == [False, False, True, True]
    assert "expected" in judged({"z": exact}, {}, {"y": exact})["problem"]
    assert "shape" in judged({"y": exact[:1]}, {}, {"y": exact})["problem"]


def test_every_case_is_listed_once_in_every_dtype_and_larger_ones_for_a_gpu() -> None:
    labels = [case.label for case in check_case.cases(toy_operation, ["float16", "float32"], larger=False)]
    assert len(labels) == len(set(labels)) == 2 * len(toy_operation.CASES)
    larger = list(check_case.cases(toy_operation, ["float16"], larger=True))
    assert [case.length for case in larger][-1] == 1_000


@pytest.mark.parametrize(
    "operation", [pytest.param(name, marks=pytest.mark.slow) if name == "attention" else name for name in OPERATIONS]
)
def test_the_first_case_of_every_shipped_operation_passes(operation: str) -> None:
    module = check_case.load(f"scalekernels.{operation}")
    case = next(iter(check_case.cases(module, ["float16"], larger=False)))
    checks = check_case.check_case(module, case, "cpu")
    assert not {name: check["problem"] for name, check in checks.items() if check["problem"]}
    assert any("tensors" in check for check in checks.values())


def test_the_witness_is_exact() -> None:
    (check,) = check_case.check_canary(0, "cpu").values()
    assert check["problem"] is None
