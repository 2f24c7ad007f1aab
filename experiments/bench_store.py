"""How long a user waits for results: 10,000 and 100,000 made-up trials, read with and without an index; commands.

`pytest experiments/bench_store.py --benchmark-enable`. The study of the last one is real and its records are made up.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from many_trials import many_trials, record_of, write_trial
from support import child_environment

from scalebench import store
from scalebench.running.planning import load_study, plan

FINISHED = """
schema = 1
name = "large"
[model]
family = "gpt"
params = { geom = [2e3, 1e9], points = 100 }
[train]
seed = %s
"""


def command(folder: Path, *arguments: str | Path) -> str:
    """Run a command line in a process of its own and return what it printed."""
    line = [sys.executable, "-m", "scalebench.cli.app", *map(str, arguments)]
    done = subprocess.run(line, cwd=folder, env=child_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=[10_000, 100_000])
def results(request, tmp_path_factory) -> Path:
    """A results folder of this many trials, written long enough ago to be indexed."""
    folder = tmp_path_factory.mktemp(f"results-{request.param}")
    many_trials(folder, request.param)
    time.sleep(2.5)
    return folder


def test_first_reading(benchmark, results: Path) -> None:
    index = results / "many" / "index"
    benchmark.pedantic(store.load_results, (results,), setup=lambda: shutil.rmtree(index, ignore_errors=True), rounds=2)


def test_reading_with_an_index(benchmark, results: Path) -> None:
    frame = benchmark.pedantic(store.load_results, (results,), rounds=5, warmup_rounds=1)
    assert len(frame) in (10_000, 100_000)


def test_status(benchmark, results: Path, tmp_path: Path) -> None:
    benchmark.pedantic(lambda: command(tmp_path, "status", results), rounds=3, warmup_rounds=1)


def test_run_of_a_finished_study_of_ten_thousand_trials(benchmark, tmp_path: Path) -> None:
    (tmp_path / "large.toml").write_text(FINISHED % list(range(100)))
    for number, trial in enumerate(plan(load_study(tmp_path / "large.toml"), tmp_path / "results")):
        write_trial(tmp_path / "results" / "large", record_of(number, trial.trial_id) | {"study": "large"})
    out = benchmark.pedantic(lambda: command(tmp_path, "run", "large.toml"), rounds=3, warmup_rounds=1)
    assert "10000 trials, 0 to run" in out
