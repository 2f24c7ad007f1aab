"""An engine beside the local one is one file and one entry; a job that it loses is still a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import toy_engine
from light_worker import light_command
from support import run_here

from scalebench.errors import InputError
from scalebench.running.engines import ENGINES
from scalebench.running.planning import load_study
from scalebench.running.sweep import execute, run, survey


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an engine that this package does not know: one file, and one entry in ``ENGINES``."""
    monkeypatch.setitem(ENGINES, "toy", toy_engine)
    return "toy"


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let its workers be those of ``light_worker.py``."""
    monkeypatch.setattr(toy_engine, "worker_command", light_command)


@pytest.mark.slow
def test_another_engine_is_one_file_and_one_entry(toy: str, small_study: Path, tmp_path: Path) -> None:
    study = load_study(small_study, ["model.params=200", "train.seed=0"])
    sweep = run(study, tmp_path / "r", engine=toy)
    assert sweep.statuses() == {"ok": 1}
    # It assigned no cores: the worker used one, as the trial needs, and cannot say that nothing else ran there.
    (row,) = sweep.rows.values()
    assert (row["threads"], row["timing_exclusive"]) == (1, False)
    assert 0 < row["mfu"] < 1
    (here,) = run_here(study, tmp_path / "here").values()
    assert (row["trial_id"], row["validation_loss_nats"]) == (here["trial_id"], here["validation_loss_nats"])


@pytest.mark.slow
def test_another_engine_runs_trials_one_after_another(toy: str, light: None, small_study: Path, tmp_path: Path) -> None:
    sweep = run(load_study(small_study), tmp_path / "r", engine=toy)
    assert sweep.statuses() == {"ok": 4}
    begun = [plan.trial_id for plan in sweep.planned]
    ended = sorted(tmp_path.glob("r/small/trials/*/*/record.json"), key=lambda record: record.stat().st_mtime_ns)
    assert [record.parents[1].name for record in ended] == begun


@pytest.mark.slow
def test_a_job_that_another_engine_loses_is_a_row(toy: str, small_study: Path, tmp_path: Path) -> None:
    study = load_study(small_study, ["model.params=200", "train.steps=1e7"])

    def kill_first(running: Sequence[Path]) -> None:
        for attempt in running:
            workers = [p for p in psutil.process_iter(["cmdline"]) if str(attempt) in (p.info["cmdline"] or [])]
            for worker in workers if (attempt / "heartbeat.json").exists() else []:
                worker.kill()

    rows = execute(survey(study, tmp_path / "r"), study, engine=toy, tick=kill_first)
    row = next(rows)
    assert (row["status"], row["error_class"], row["error_message"]) == ("killed", "JobLost", "exit code -9")
    rows.close()
    assert len(survey(study, tmp_path / "r").missing) == 1  # cancelled with the iterator, so it has no record
    folder = str(tmp_path / "r")
    left = [p for p in psutil.process_iter(["cmdline"]) if any(folder in word for word in p.info["cmdline"] or [])]
    assert not [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_an_unknown_engine_and_no_workers_are_refused_before_anything_is_made(
    small_study: Path, tmp_path: Path, command
) -> None:
    with pytest.raises(InputError, match=r"unknown 'lcal'; did you mean 'local'\? \(known: local, ray, slurm\)"):
        run(load_study(small_study), tmp_path / "r", engine="lcal")
    with pytest.raises(InputError, match=r"jobs: .*\(given 0\)"):
        run(load_study(small_study), tmp_path / "r", jobs=0)
    code, _, err = command("run", small_study, "--engine", "lcal")
    assert code == 2
    assert "did you mean 'local'" in err
    assert not (tmp_path / "r").exists()
    assert not (tmp_path / "results").exists()
