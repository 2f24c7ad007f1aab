"""The quick kinds of faults of ``make faults``: whatever is injected, the final table is that of an undisturbed run."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import fault_kinds as kinds
import pytest
from drivers import Drivers
from fault_support import TOGETHER, judge
from faults import BATCHES, FOUR, TWO, Fault, longer

SIX = BATCHES.replace(str([*range(40)]), str([*range(6)])).replace("ensemble = 5", "ensemble = 3")
FAULTS = {
    "driver killed": Fault(kinds.driver_killed, FOUR, 3),
    "workers killed": Fault(kinds.workers_killed, longer(TWO, 200), 2),
    "disk full": Fault(partial(kinds.disk_full, sizes=(0, 1_000, 8_000)), TWO, 3),
    "files damaged": Fault(partial(kinds.files_damaged, ends=12), TWO, 150),
    "two drivers": Fault(partial(kinds.together, preparations=[""] * 2), FOUR, 2),
    "batches: worker killed": Fault(kinds.workers_killed, longer(SIX, 100), 1, TOGETHER),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", FAULTS)
def test_a_disturbed_study_ends_as_an_undisturbed_one(name: str, tmp_path: Path, drivers: Drivers) -> None:
    case = FAULTS[name].case(tmp_path, drivers)
    FAULTS[name].inject(case)
    assert not any(judge(case).values()), (judge(case), case.wrong, case.errors())
