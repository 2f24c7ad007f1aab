"""The quick kinds of faults of ``make faults``: whatever is injected, the final table is that of an undisturbed run."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import fault_kinds as kinds
import pytest
from drivers import Drivers
from fault_support import STUDY, Case, judge

TWO, FOUR = STUDY % [0, 1], STUDY % [*range(4)]
FAULTS: dict[str, tuple[Callable[[Case], None], str, int]] = {
    "driver killed": (partial(kinds.driver_killed, times=3), FOUR, 1),
    "workers killed": (partial(kinds.workers_killed, times=2), TWO.replace("steps = 40", "steps = 200"), 1),
    "disk full": (partial(kinds.disk_full, sizes=(0, 1_000, 8_000)), TWO, 3),
    "files cut": (partial(kinds.files_damaged, ends=12), TWO, 150),
    "two drivers": (partial(kinds.together, preparations=[""] * 2), FOUR, 2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_disturbed_study_ends_as_an_undisturbed_one(name: str, tmp_path: Path, drivers: Drivers) -> None:
    inject, study, least = FAULTS[name]
    case = Case(tmp_path, study, drivers)
    inject(case)
    assert not any(judge(case).values()), (judge(case), case.errors())
    assert case.notes == []
    assert case.injected >= least
