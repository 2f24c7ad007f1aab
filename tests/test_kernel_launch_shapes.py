"""What a GPU session times to choose from, with a clock of made-up times: tiles, and launch shapes of the optimizer."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import tuning
import tuning_loss
import tuning_optimizer
from scalekernels.cross_entropy import memory
from scalekernels.cross_entropy.cases import Case
from scalekernels.optimizer import kernels
from torch import Tensor

from scalebench.comparison.draining import Work
from scalebench.comparison.pool import Pool
from scalebench.comparison.timing import Timer

SHAPES = ((3, 5), (700,))


class Candidate(NamedTuple):
    """A tile, and the number that its launch writes."""

    result: float


class Counting:
    """A clock by which every piece of work takes a second more than the one before."""

    shortest_s = long_s = cold_bytes = 0.0

    def __init__(self) -> None:
        self.timers = 0

    def timer(self, work: Work, calls: int, refusal: str = "", pool: Pool | None = None) -> Timer:
        """See ``Clock``; the work is done once."""
        assert not refusal
        assert pool is None
        work()
        self.timers += 1
        return Timer(calls, "", partial(float, self.timers), lambda _: {})


def test_every_shape_is_timed_and_one_that_fails_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"shipped": {}, "256": {"TAIL": 256}, "impossible": {"TAIL": 999}}
    monkeypatch.setattr(tuning_optimizer, "SHAPES", shapes)  # the interpreter takes no limit of registers
    written: list[int] = []
    shipped = kernels.update_kernel
    rows = tuning_optimizer.measure(SHAPES, "cpu", Counting(), lambda rows: written.append(len(rows)))
    assert kernels.update_kernel is shipped
    times = {row["candidate"]: row.get("time_median_s") for row in rows}
    assert times == {"float32 state": 1.0, "shipped": 2.0, "256": 3.0, "impossible": None}
    assert [bool(row["problem"]) for row in rows] == [False, False, False, True]
    assert written == [1, 2, 3, 4, 4]


def test_the_loss_is_timed_by_workspaces_that_are_planned_with(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped, planned = memory.WORKSPACE_BYTES, []
    monkeypatch.setattr(tuning_loss, "WORKSPACES", (shipped, 2 * 64 * 2))
    monkeypatch.setattr(memory, "FEWEST_TOKENS", 2)
    monkeypatch.setattr(memory, "TOKEN_MULTIPLE", 2)
    written: list[int] = []
    case = Case(6, 4, 5, torch.float16)
    tuning_loss.measure_all(
        [case], "cpu", Counting(), lambda rows: planned.extend(rows[len(planned) :]) or written.append(1)
    )
    assert shipped == memory.WORKSPACE_BYTES
    assert [row["chunks"] for row in planned] == [1, 3]
    assert [row["time_median_s"] for row in planned] == [1.0, 2.0]
    assert written == [1]
    assert len([line for line in capsys.readouterr().out.splitlines() if " ms, " in line]) == 2


def test_the_candidates_of_a_kernel_are_timed_and_the_fastest_right_one_wins(tmp_path: Path) -> None:
    def run(candidate: Candidate) -> list[Tensor]:
        return [torch.full((3,), float(candidate.result))]

    candidates = [Candidate(1.0), Candidate(2.0), Candidate(1.0)]
    tunable = tuning.Tunable("keys", 64, 1024, True, candidates, lambda: run, flops=1e12)
    tuning.measure_all(iter([tunable]), Counting(), tmp_path / "rows.json", {})
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["winner"] for row in rows] == [True, False, False]
    assert [row["tflops"] for row in rows] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert "differs by 1" in rows[1]["problem"]
    assert all(len(row["samples_s"]) == tuning.ROUNDS for row in rows)


@pytest.mark.parametrize("name", [name for name, changes in tuning_optimizer.SHAPES.items() if changes])
def test_every_shape_computes_the_same_bits(name: str) -> None:
    """As far as the interpreter knows them: it has neither registers, warps nor copies ahead."""
    changes = {key: value for key, value in tuning_optimizer.SHAPES[name].items() if key.isupper()}
    assert tuning_optimizer.difference([(2 * kernels.CHUNK + 700,)], "cpu", changes) is None


def test_a_shape_that_computes_something_else_is_seen() -> None:
    assert "parameters differ" in str(tuning_optimizer.difference(SHAPES[:1], "cpu", {"ROUNDS": False}))
    assert tuning_optimizer.difference(SHAPES[:1], "cpu", {}) is None
