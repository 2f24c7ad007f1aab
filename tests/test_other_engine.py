"""An engine beside the local one is one file and one entry; a job that it loses is still a row."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest
import toy_engine
from support import run_here

from scalebench import store
from scalebench.errors import InputError
from scalebench.running.engines import ENGINES
from scalebench.running.planning import load_study
from scalebench.running.sweep import execute, run, survey


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an engine that this package does not know: one file, and one entry in ``ENGINES``."""
    monkeypatch.setitem(ENGINES, "toy", toy_engine)
    return "toy"


@pytest.mark.slow
def test_another_engine_is_one_file_and_one_entry(toy: str, small_study: Path, tmp_path: Path) -> None:
    study = load_study(small_study, ["model.params=[200, 400]", "train.seed=0"])
    sweep = run(study, tmp_path / "r", engine=toy)
    assert sweep.statuses() == {"ok": 2}
    frame = store.load_results(tmp_path / "r").sort_values("started_at")
    begun = [plan.trial_id for plan in sweep.planned]
    assert frame["trial_id"].tolist() == begun  # one after another, in the order given
    # It assigned no cores: each worker used one, as the trial needs, and cannot say that nothing else ran there.
    assert set(frame["threads"]) == {1}
    assert not frame["timing_exclusive"].any()
    assert frame["mfu"].between(0, 1).all()
    here = run_here(study, tmp_path / "here")
    losses = {name: row["validation_loss_nats"] for name, row in here.items()}
    assert losses == {row["trial_id"]: row["validation_loss_nats"] for row in sweep.rows.values()}


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
