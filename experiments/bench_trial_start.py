"""What the engine adds to a trial: a worker forked from the fork server against a fresh ``python`` for each trial.

Both run the same trivial trial on a CPU in turns, in random order within each round; the server is started and the
node's peak is measured before. A time is that from the request to the end of the process, less what the trial itself
took from its first step to its last (its steps take some 30 ms). ``extra_info`` holds the medians and their ratio.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support import SMALL, SOURCE_PATH

from scalebench import store
from scalebench.running import processes
from scalebench.running.attempts import Attempts
from scalebench.running.engines.base import worker_command, worker_environment, write_placement
from scalebench.running.engines.local import start_worker
from scalebench.running.planning import load_study
from scalebench.running.sweep import survey

ROUNDS = 5


def fresh(attempt: Path, environment: dict[str, str]) -> processes.Process:
    return processes.start(worker_command(attempt), environment)


def test_start_of_a_trial(benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", SOURCE_PATH)
    path = tmp_path / "small.toml"
    path.write_text(SMALL)
    study = load_study(path, ["model.params=200", "train.seed=0"])
    sweep = survey(study, tmp_path / "results")
    starts: dict[str, Callable[..., processes.Process]] = {"forked": start_worker, "fresh": fresh}
    times: dict[str, list[float]] = {name: [] for name in starts}

    def run(name: str) -> None:
        attempts = Attempts(sweep.study_dir, study, sweep.planned)
        attempt = attempts.make(attempts.add(sweep.missing[0], 1))
        write_placement(attempt, "local", cpus=[0], exclusive=True)
        begun = time.perf_counter()
        process = starts[name](attempt, worker_environment())
        assert process.wait() == 0
        seconds = time.perf_counter() - begun
        times[name].append(seconds - store.read_steps(attempt)["step_time_s"].sum())
        processes.stop(process)

    run("forked")
    times["forked"].clear()
    benchmark.pedantic(lambda: [run(name) for name in random.sample(list(starts), 2)], rounds=ROUNDS)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["fresh"] / medians["forked"]
    benchmark.extra_info |= {"median_s": medians, "ratio": ratio}
    ranges = {name: f"{min(values):.2f}-{max(values):.2f}" for name, values in times.items()}
    print(f"\nfresh {medians['fresh']:.2f} s, forked {medians['forked']:.2f} s: {ratio:.1f} times; ranges {ranges}")
    assert medians["forked"] <= 0.5
    assert ratio >= 4
