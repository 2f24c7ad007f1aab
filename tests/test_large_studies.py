"""Studies of thousands of trials: what a run reads before it starts, and what it makes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from many_trials import record_of, write_trial

from scalebench import store
from scalebench.running.engines import ENGINES
from scalebench.running.planning import load_study, plan
from scalebench.running.sweep import execute, survey
from scalebench.store import index

STUDY = """
schema = 1
name = "large"
[model]
family = "mlp"
params = { geom = [2e3, 1e6], points = 30 }
[train]
steps = 5
seed = %s
"""
TRIALS = 600


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished study of 600 trials, its index written, every 100th damaged or not ok."""
    folder = tmp_path_factory.mktemp("large")
    (folder / "large.toml").write_text(STUDY % list(range(TRIALS // 30)))
    for number, trial in enumerate(plan(load_study(folder / "large.toml"))):
        changes = {"study": "large", "status": "failed" if number % 100 == 7 else "ok", "seed": number}
        attempt = write_trial(folder / "results" / "large", record_of(number, trial.trial_id) | changes)
        long_ago = time.time() - 100
        for path in (attempt / "record.json", attempt, attempt.parent):
            os.utime(path, (long_ago, long_ago))
        if number % 100 == 9:
            (attempt / "record.json").write_bytes(b"{")
    time.sleep(2.1)  # records changed a moment ago are not indexed
    store.read_results(folder / "results")
    return folder


@pytest.mark.slow
def test_a_survey_by_index_is_one_by_records(large: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = load_study(large / "large.toml")

    def surveyed(*retry: str) -> Any:
        return survey(study, large / "results", retry)

    def outcome(sweep: Any) -> Any:
        chosen = ("trial_id", "status", "params", "attempt", "validation_loss_nats", "error_class")
        rows = {name: [row[column] for column in chosen] for name, row in sweep.rows.items()}
        return rows, sorted(sweep.damaged), [trial.trial_id for trial in sweep.missing], sweep.statuses()

    read: list[Path] = []
    latest = store.latest_record
    with monkeypatch.context() as patch:
        patch.setattr(store, "latest_record", lambda folder: read.append(folder) or latest(folder))
        by_index, again = outcome(surveyed()), outcome(surveyed("failed"))
    assert by_index[3] == {"ok": 588, "failed": 6, "missing": 6}
    assert again[3] == {"ok": 588, "missing": 12}
    assert len(read) == 6 + 12  # only those that are to run, after their claims
    monkeypatch.setattr(index, "SMALLEST", 10**9)
    assert by_index == outcome(surveyed())
    assert again == outcome(surveyed("failed"))


class OneAtATime:
    """An engine that begins one attempt after the other and ends each as failed."""

    def __init__(self) -> None:
        self.begun = 0

    def check(self, resources: Any) -> None:
        """Take every trial."""

    def place(
        self, attempts: list[Path], resources: Any, *, jobs: int | None = None, tick: Any = None,
        begin: Callable[[Path], bool] = bool,
    ) -> Iterator[Path]:  # fmt: skip
        """See ``Engine``."""
        assert not any(attempt.exists() for attempt in attempts)
        for attempt in attempts:
            assert begin(attempt)
            header = store.read_header(attempt)
            assert (header["attempt"], header["resources"]["cpus"]) == (attempt.name, 1)
            store.write_record(attempt, header["identity"] | {"status": "failed"})
            yield attempt


@pytest.mark.slow
def test_folders_are_made_when_a_trial_begins(large: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(ENGINES, "one", OneAtATime())
    study = load_study(large / "large.toml")
    for restart in range(1, 4):
        sweep = survey(study, tmp_path)
        rows = execute(sweep, study, engine="one")
        next(rows)
        rows.close()
        assert len(list(tmp_path.glob("large/trials/*/attempt-*"))) == restart
        assert len(list(tmp_path.glob("large/trials/*/claim-*"))) == restart
