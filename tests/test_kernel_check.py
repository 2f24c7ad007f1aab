"""The checker of kernel cases, under the interpreter: what is right passes, what is wrong fails, a crash is a row."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import check_case
import pytest
import torch
import toy_operation
from scalekernels import OPERATIONS
from support import REPOSITORY

TOY = REPOSITORY / "tests" / "toy_operation.py"


def problems(fault: str) -> dict[str, str]:
    """What the checker finds wrong with the toy of a fault, in this process."""
    (case,) = [case for case in toy_operation.CASES if case.fault == fault][:1]
    checks = check_case.check_case(toy_operation, case, "cpu")
    assert checks["triton-absent forward"]["unavailable"] == "is never there"
    return {name: found["problem"] for name, found in checks.items() if found["problem"]}


def test_a_sound_kernel_passes_forward_and_backward() -> None:
    assert problems("") == {}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("wrong", "y: error"),
        ("forgets", "y: NaN or infinity"),
        ("unsteady", "a repeat and a run after SDPA gave other bits"),
    ],
)
def test_a_kernel_that_is_wrong_or_unsteady_or_leaves_memory_unwritten_fails(fault: str, said: str) -> None:
    found = problems(fault)
    assert said in found["triton forward"]
    assert set(found) == {"triton forward", "triton backward"}


def test_the_rule_allows_twice_torchs_own_error_and_no_more() -> None:
    exact, eager = torch.tensor([1.0, 2.0]).double(), torch.tensor([1.001, 2.0])
    verdicts = [
        check_case.measured({"y": torch.tensor([1 + error, 2.0])}, {"y": eager}, {"y": exact})["problem"]
        for error in (0.0, 0.0019, 0.0021, torch.nan)
    ]
    assert [bool(verdict) for verdict in verdicts] == [False, False, True, True]
    assert "expected" in check_case.measured({"z": exact}, {}, {"y": exact})["problem"]
    assert "shape" in check_case.measured({"y": exact[:1]}, {}, {"y": exact})["problem"]


def test_every_dtype_and_small_ladder_case_is_listed_once() -> None:
    labels = [case.label for case in check_case.cases(toy_operation, ["float16", "float32"], 1e3)]
    assert len(labels) == len(set(labels)) == 2 * len(toy_operation.CASES)
    with_ladder = list(check_case.cases(toy_operation, ["float16"], 1e5))
    assert [case.length for case in with_ladder][-1] == 10_000


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_first_case_of_every_shipped_operation_passes(operation: str) -> None:
    module = check_case.load(f"scalekernels.{operation}")
    case = next(iter(check_case.cases(module, ["float16"], 0.0)))
    checks = check_case.check_case(module, case, "cpu")
    assert not {name: found["problem"] for name, found in checks.items() if found["problem"]}
    assert any("tensors" in found for found in checks.values())


def test_the_witness_is_exact() -> None:
    (found,) = check_case.check_canary(0, "cpu").values()
    assert found["problem"] is None


def test_the_whole_check_stage_tells_failures_and_crashes_and_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "found"
    command = [sys.executable, str(REPOSITORY / "kernels" / "gpu.py"), "--dry", "--stages", "check", "--out", str(out)]
    command += ["--operations", str(TOY), "--cases", "3", "--jobs", "2"]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    rows = {row["name"].removeprefix(f"case {TOY} "): row for row in json.loads((out / "summary.json").read_text())}
    statuses = {"canary 0": "ok", "5 sound float16": "ok", "7 wrong float16": "failed", "coverage": "ok"}
    statuses |= {"3 crash float16": "crashed by SIGSEGV"}
    assert {name: row["status"] for name, row in rows.items()} == statuses
    assert "error" in rows["7 wrong float16"]["detail"]
    assert "3 crash float16" in rows["3 crash float16"]["detail"]
    found = [json.loads(path.read_text()) for path in (out / "check").glob("*.json")]
    assert all(one["versions"]["triton"] for one in found)
    with tarfile.open(tmp_path / "found.tar.gz") as packed:
        names = packed.getnames()
    assert "found/summary.md" in names
    assert sum(name.startswith("found/check/") for name in names) == len(found) == 3
