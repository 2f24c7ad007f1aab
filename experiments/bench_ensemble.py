"""Loss points per hour: eight trials trained together (``[run] ensemble = 8``) against the same trials one by one.

Eight seeds of one size for 60 steps each, on one thread, with validation, in the process of the benchmark. Both ways
take turns in random order; what is compared is CPU time, as other processes do not change it. Left out are what a
worker costs besides (0.4 s for each start, and the steps that measure memory by category), which an ensemble of eight
pays once: for whole studies the gain is larger than here. ``extra_info`` holds the medians and their ratio.

Measured on one core of a shared AMD EPYC with torch 2.13, medians of three rounds, loss points per CPU hour:

                  one by one   together   ratio (rounds)
    mlp   1,027       21,891     81,762   3.73 (3.62 to 4.67)
    mlp  10,071       23,762     84,088   3.54 (3.47 to 3.60)
    mlp 100,143       18,794     19,738   1.05 (0.98 to 1.14)
    cnn   1,520        7,621     11,658   1.53 (1.38 to 1.85)
    cnn  10,083        6,619     10,152   1.53 (1.51 to 1.64)
    cnn 100,295        5,311      5,667   1.07 (1.03 to 1.09)
    gpt   3,624        4,693      6,344   1.35 (1.29 to 1.36)
    gpt  15,140        3,838      4,383   1.14 (1.10 to 1.16)
    gpt 117,056        1,325      1,193   0.90 (0.88 to 0.94)

At 30,000 parameters linear gained 1.15 times, attention 1.10 and vit 0.94, at 90,000 0.87, 0.99 and 0.93 (12 steps, one
round). ``workloads.ensemble.MOST_PARAMS`` is therefore 30,000: above, some families lose more than a worker's start.
"""

from __future__ import annotations

import random
import statistics
import time
from pathlib import Path

import pytest
import torch
from support import PLACEMENT

from scalebench import store
from scalebench.families import FAMILIES
from scalebench.running.planning import PlannedTrial, load_study, plan, trial_header
from scalebench.study import Study, Trial
from scalebench.workloads.ensemble_run import train_together
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.training_run import run as train_alone

ROUNDS = 3
MEMBERS = 8
STUDY = """
schema = 1
name = "ensemble"
[model]
family = "{family}"
params = {params}
[train]
steps = 60
{length}
seed = {seeds}
[run]
memory = "allocator"
"""


def prepared(trials: list[PlannedTrial], study: Study, results: Path) -> list[tuple[Trial, Recorder]]:
    """Return the trials with recorders of new attempts."""
    pairs = []
    for planned in trials:
        attempt, header = store.new_attempt(results, planned.trial_id), trial_header(study, planned, "a benchmark")
        store.write_header(attempt, header)
        pairs.append((planned.trial, Recorder(attempt, header, PLACEMENT)))
    return pairs


def one_by_one(pairs: list[tuple[Trial, Recorder]]) -> None:
    for trial, recorder in pairs:
        train_alone(trial, recorder)


def together(pairs: list[tuple[Trial, Recorder]]) -> None:
    errors: list[Exception | None] = []
    train_together(pairs, lambda _, error: errors.append(error))
    assert errors == [None] * MEMBERS


@pytest.mark.parametrize("params", [1e3, 1e4, 1e5])
@pytest.mark.parametrize("family", ["mlp", "cnn", "gpt"])
def test_loss_points_per_hour(benchmark, family: str, params: float, tmp_path: Path) -> None:
    length = "sequence_length = 64" if FAMILIES[family].SEQUENCES else ""
    path = tmp_path / "ensemble.toml"
    smallest = {"gpt": 1.6e3, "cnn": 1.5e3}.get(family, 0)
    path.write_text(
        STUDY.format(family=family, params=max(params, smallest), length=length, seeds=list(range(MEMBERS)))
    )
    study = load_study(path)
    trials = plan(study, tmp_path)
    ways = {"together": together, "one by one": one_by_one}
    times: dict[str, list[float]] = {name: [] for name in ways}

    def run(name: str) -> None:
        pairs = prepared(trials, study, tmp_path / "results")
        begun = time.process_time()
        ways[name](pairs)
        times[name].append(time.process_time() - begun)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name in ways:  # opens the data, imports what is imported late
        run(name)
        times[name].clear()
    benchmark.pedantic(lambda: [run(name) for name in random.sample(list(ways), 2)], rounds=ROUNDS)
    torch.set_num_threads(threads)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratio = medians["one by one"] / medians["together"]
    per_hour = {name: 3600 * MEMBERS / median for name, median in medians.items()}
    total = trials[0].counts.total
    benchmark.extra_info |= {"params": total, "median_cpu_s": medians, "trials_per_cpu_hour": per_hour, "ratio": ratio}
    ratios = [alone / all_of_them for alone, all_of_them in zip(times["one by one"], times["together"], strict=True)]
    print(
        f"\n{family} of {total:,} parameters: {per_hour['one by one']:,.0f} loss points per CPU hour one by one, "
        f"{per_hour['together']:,.0f} together: {ratio:.2f} times (rounds {min(ratios):.2f} to {max(ratios):.2f})"
    )
