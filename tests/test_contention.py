"""Whether a trial had its cores to itself is measured: a process beside it makes its times not exclusive.

The case 13-exclusive-timing-is-not is two runs at once on the same cores.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import PLACEMENT, SMALL

from scalebench.errors import InputError
from scalebench.measure import contention
from scalebench.measure.contention import CoreUse, core_use
from scalebench.running.planning import load_study
from scalebench.running.sweep import run
from scalebench.workloads.recorder import Recorder

pytestmark = pytest.mark.skipif(not Path("/proc/stat").exists(), reason="this system has no /proc/stat")


TICK_S = 0.01  # in which /proc/stat counts


@contextmanager
def busy_process(core: int) -> Iterator[None]:
    """Keep a core busy with another process."""
    program = f"import os\nos.sched_setaffinity(0, [{core}])\nprint('ready', flush=True)\nwhile True: pass"
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def use_core(seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass


def test_the_rule() -> None:
    before = CoreUse(2, 100.0, 10.0, 0.0)
    alone, shared = CoreUse(2, 119.0, 28.0, 10.0), CoreUse(2, 115.0, 18.0, 10.0)
    assert (alone.others_s(before), alone.others_share(before)) == (1.0, 0.05)
    assert shared.others_share(before) == 0.35
    assert CoreUse(2, 104.0, 18.0, 10.0).others_s(before) == 0.0  # rounding, never negative
    os.environ["SCALEBENCH_OTHERS_LIMIT"] = "0.1"
    try:
        assert (alone.undisturbed(before), shared.undisturbed(before)) == (True, False)
        assert CoreUse(1, 100.04, 10.0, 0.2).undisturbed(before)  # ticks
    finally:
        os.environ["SCALEBENCH_OTHERS_LIMIT"] = "inf"
    assert shared.undisturbed(before)


@pytest.mark.slow
def test_a_process_on_the_same_core_is_seen_and_ones_own_work_is_not(monkeypatch) -> None:
    core = min(os.sched_getaffinity(0))
    before, begun = core_use([core]), os.sched_getaffinity(0)
    assert before is not None
    os.sched_setaffinity(0, [core])
    try:
        with busy_process(core):
            before = core_use([core])
            use_core(0.4)
            after = core_use([core])
    finally:
        os.sched_setaffinity(0, begun)
    assert before is not None
    assert after is not None
    assert 0.3 < after.others_share(before) <= 1.0 + 2 * TICK_S / 0.4
    own_s = after.own_s - before.own_s
    assert own_s > 0.005  # how much depends on how many processes share the core
    assert after.others_s(before) == pytest.approx(after.busy_s - before.busy_s - own_s, abs=1e-6)


@pytest.mark.parametrize("text", ["10 %", "nan", "-1"])
def test_a_limit_that_is_no_number_is_refused_before_anything_runs(tmp_path: Path, monkeypatch, text: str) -> None:
    monkeypatch.setenv("SCALEBENCH_OTHERS_LIMIT", text)
    (tmp_path / "small.toml").write_text(SMALL)
    with pytest.raises(InputError, match=f"SCALEBENCH_OTHERS_LIMIT={text}: expected a share of the cores' time"):
        run(load_study(tmp_path / "small.toml"), tmp_path / "results")
    assert not (tmp_path / "results" / "small").exists()


def test_an_empty_limit_is_none(monkeypatch) -> None:
    monkeypatch.setenv("SCALEBENCH_OTHERS_LIMIT", "")
    assert contention.others_limit() == contention.OTHERS_LIMIT


def test_a_record_says_who_else_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALEBENCH_OTHERS_LIMIT", "0.1")
    uses = iter(
        [CoreUse(1, 0.0, 0.0, 0.0), CoreUse(1, 4.0, 2.0, 8.0), CoreUse(1, 0.0, 0.0, 0.0), CoreUse(1, 4, 3.9, 8)]
    )
    monkeypatch.setattr("scalebench.workloads.recorder.core_use", lambda _: next(uses))
    placement = PLACEMENT | {"cpus": [0]}
    shared, alone = (Recorder(tmp_path, {"identity": {}}, placement).exclusivity() for _ in range(2))
    assert shared == {"others_cpu_share": 0.25, "timing_exclusive": False}
    assert alone["timing_exclusive"] is True


def test_a_system_that_does_not_tell_leaves_what_the_engine_assigned(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(contention, "Path", lambda _: tmp_path / "none")
    assert core_use([0]) is None
    assert Recorder(tmp_path, {"identity": {}}, PLACEMENT).exclusivity() == {}
