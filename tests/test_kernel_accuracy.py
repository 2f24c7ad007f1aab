"""The one acceptance rule of kernels: what it accepts, what it refuses, and that all three of its users agree."""

from __future__ import annotations

from math import inf

import pytest
import torch
from check_results import judged
from kernel_support import inaccuracy
from scalekernels.accuracy import Errors, errors_of, judge, judge_results

from scalebench.comparison.judge import accuracy_columns

EPS = torch.finfo(torch.float32).eps
ORACLE = {"dx": torch.tensor([1.0, -4.0], dtype=torch.float64), "dw": torch.tensor([64.0], dtype=torch.float64)}


def off_by(dx: float = 0.0, dw: float = 0.0) -> dict[str, torch.Tensor]:
    return {"dx": ORACLE["dx"] + dx, "dw": ORACLE["dw"] + dw}


@pytest.mark.parametrize(("factor", "accepted"), [(1.9, True), (2.1, False)])
def test_twice_the_eager_error_is_accepted_tensor_by_tensor(factor: float, accepted: bool) -> None:
    eager = off_by(dx=1e-3, dw=1e-2)
    assert judge_results(off_by(dx=factor * 1e-3), eager, ORACLE).accepted is accepted
    assert judge_results(off_by(dw=factor * 1e-2), eager, ORACLE).accepted is accepted
    refused = judge_results(off_by(dx=3e-3, dw=1e-3), eager, ORACLE)
    assert not refused.accepted  # the larger error that dw may have excuses nothing of dx
    assert refused.worst == "dx"
    assert refused.problem.startswith("dx: error 0.003 exceeds 0.002")
    assert refused.tensors["dw"].accepted


def test_the_floor_is_eight_ulps_of_the_tensor_itself_or_of_the_terms() -> None:
    assert judge_results(off_by(dx=7.5 * EPS * 4), off_by(), ORACLE).accepted
    assert not judge_results(off_by(dx=8.5 * EPS * 4), off_by(), ORACLE).accepted
    assert judge_results(off_by(dx=8.5 * EPS * 4), off_by(), ORACLE, terms=5.0).accepted
    assert judge_results(off_by(dx=8.5 * EPS * 4), {}, ORACLE, ulps=9).accepted


def test_the_terms_of_a_tensor_raise_its_floor_and_no_other() -> None:
    terms = {"dx": 40.0}
    assert judge_results(off_by(dx=7.5 * EPS * 40), off_by(), ORACLE, terms=terms).accepted
    assert not judge_results(off_by(dx=8.5 * EPS * 40), off_by(), ORACLE, terms=terms).accepted
    assert not judge_results(off_by(dw=8.5 * EPS * 64), off_by(), ORACLE, terms=terms).accepted
    assert not judge_results(off_by(dw=6.5), off_by(dw=6.5), ORACLE, terms={"dw": 1e6}).accepted  # the cap stays


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_fail_whatever_eager_returns(value: float) -> None:
    broken = off_by(dx=value)
    for eager in (off_by(1e-3), broken, {}):
        judged = judge_results(broken, eager, ORACLE)
        assert not judged.accepted
        assert "dx: NaN or infinity" in judged.problem
    assert not judge_results(off_by(dx=1e-3), broken, ORACLE).accepted  # a broken eager path excuses nothing


def test_an_eager_path_far_from_the_truth_excuses_nothing_beyond_a_tenth() -> None:
    assert judge_results(off_by(dw=6.0), off_by(dw=6.0), ORACLE).accepted
    assert not judge_results(off_by(dw=6.5), off_by(dw=6.5), ORACLE).accepted
    assert judge_results(off_by(dw=60.0), off_by(dw=60.0), ORACLE, furthest=inf).accepted
    assert not judge_results(off_by(dw=60.0), off_by(dw=29.0), ORACLE, furthest=inf).accepted


def test_the_rounding_of_the_dtype_stands_in_for_an_eager_path_that_is_not_finite() -> None:
    oracle = {"p": torch.tensor([1.0005], dtype=torch.float64)}
    broken, step = {"p": torch.tensor([torch.inf]).half()}, torch.finfo(torch.float16).eps
    nearest = oracle["p"].half()
    assert judge_results({"p": nearest}, broken, oracle).accepted
    assert not judge_results({"p": nearest + 2 * step}, broken, oracle).accepted


def test_names_and_shapes_have_to_agree() -> None:
    assert "returned dx; expected dw, dx" in judge_results({"dx": ORACLE["dx"]}, {}, ORACLE).problem
    transposed = ORACLE | {"dw": ORACLE["dw"][:0]}
    assert "dw: (0,), expected (1,)" in judge_results(transposed, ORACLE, ORACLE).problem
    assert errors_of(transposed, ORACLE).by_name == {}


def test_an_infinity_of_the_oracle_is_matched_exactly_and_empty_tensors_are_right() -> None:
    oracle = {"lse": torch.tensor([-float("inf"), 1.0]).double(), "none": torch.empty(0, 3).double()}
    exact = {"lse": torch.tensor([-float("inf"), 1.0]), "none": torch.empty(0, 3)}
    assert judge_results(exact, {}, oracle).accepted
    assert not judge_results(exact | {"lse": torch.tensor([0.0, 1.0])}, {}, oracle).accepted


@pytest.mark.parametrize("dx", [0.0, 1.9e-3, 2.1e-3, float("nan")])
def test_tests_comparison_and_check_give_the_same_verdict(dx: float) -> None:
    oracle, eager = {"dx": ORACLE["dx"]}, {"dx": ORACLE["dx"] + 1e-3}
    ours = {"dx": ORACLE["dx"] + dx}
    verdict = judge_results(ours, eager, oracle).accepted
    assert (judged(ours, eager, oracle)["problem"] is None) is verdict
    assert (inaccuracy(ours, eager, oracle) is None) is verdict
    columns = accuracy_columns(errors_of(ours, oracle), errors_of(eager, oracle))
    assert columns["accepted"] is verdict


@pytest.mark.parametrize(("dx", "verdict"), [(7.5 * EPS * 40, True), (8.5 * EPS * 40, False)])
def test_all_three_take_the_operations_terms_into_account(dx: float, verdict: bool) -> None:
    oracle, terms = {"dx": ORACLE["dx"]}, {"dx": 40.0}
    ours = {"dx": ORACLE["dx"] + dx}
    assert (judged(ours, oracle, oracle, terms)["problem"] is None) is verdict
    assert (inaccuracy(ours, oracle, oracle, terms=terms) is None) is verdict
    columns = accuracy_columns(errors_of(ours, oracle), errors_of(oracle, oracle), terms=terms)
    assert columns["accepted"] is verdict


def test_without_eager_errors_only_the_floor_is_allowed() -> None:
    own = Errors({"y": 1e-3}, {"y": 1.0})
    assert not judge(own, None).accepted
    assert judge(own, None).tensors["y"].eager_error is None
