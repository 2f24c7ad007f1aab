"""The section about studies that vary the number of processes: its numbers against times that are known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, trial

from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.reporting import render
from scalebench.reporting.sections import scaling, section_for
from scalebench.running.planning import load_study, plan
from scalebench.store import Results

OVERHEAD = {"ddp": 0.1, "fsdp": 0.25}  # of the single process' time, for each step that is shared


def results(*, weak: bool = False) -> Results:
    """Three numbers of processes: a step takes its share of the time of one process, and the overhead."""
    rows = []
    for kind, overhead in OVERHEAD.items():
        for count in (1, 2, 4):
            if count == 1 and kind == "fsdp":
                continue  # one process is a trial of neither
            row, work = trial(10_240, 0, np.random.default_rng(1)), 1.0 if weak else 1 / count
            batch = 8 * count if weak else 32
            time_s = 0.2 * (work + (overhead if count > 1 else 0))
            share = count if kind == "fsdp" else 1
            rows.append(
                row
                | {
                    "trial_id": f"{kind}{count}", "processes": count, "parallel": kind if count > 1 else "none",
                    "batch_size": batch, "step_time_median_s": time_s, "samples_per_s": batch / time_s,
                    "memory_parameters_bytes": 4e6 / share, "memory_gradients_bytes": 4e6 / share,
                    "memory_optimizer_bytes": 8e6 / share, "timing_exclusive": count < 4,
                }
            )  # fmt: skip
    frame = pd.DataFrame(rows)
    planned = [{"trial_id": name} for name in frame["trial_id"]]
    axes = {"processes": [1, 2, 4], "parallel": ["ddp", "fsdp"]} | ({"batch_size": [8, 16, 32]} if weak else {})
    return Results(frame, (), {"synthetic": STUDY | {"planned": planned, "axes": axes}})


def study(*, weak: bool = False) -> StudyAnalysis:
    return analyse(results(weak=weak), "synthetic")


@pytest.mark.parametrize("weak", [False, True])
def test_speed_up_efficiency_and_memory_are_those_of_the_times(*, weak: bool) -> None:
    by_label = {line.label: line.points for line in scaling.lines(study(weak=weak))}
    assert set(by_label) == set(OVERHEAD)
    for kind, points in by_label.items():
        assert points["processes"].tolist() == [1, 2, 4]
        work = [1.0, 1.0, 1.0] if weak else [1.0, 0.5, 0.25]
        scale = [1, 2, 4] if weak else [1, 1, 1]
        expected = [scale[i] / (work[i] + (OVERHEAD[kind] if i else 0)) for i in range(3)]
        assert points["speedup"].tolist() == pytest.approx(expected)
        assert points["efficiency"].tolist() == pytest.approx(
            [value / n for value, n in zip(expected, (1, 2, 4), strict=True)]
        )
        share = [1, 2, 4] if kind == "fsdp" else [1, 1, 1]
        assert points["memory"].tolist() == pytest.approx([16e6 / each for each in share])
        assert points["timed"].tolist() == [True, True, False]


@pytest.mark.slow
def test_the_page_shows_them_with_a_figure_each() -> None:
    assert section_for(study()) is scaling.SECTION
    page = render(results()).replace("\u00a0", " ")
    assert "With 2 processes (ddp) training is 1.67 times as fast as with 1: an efficiency of 83 %" in page
    assert "0.25 times the memory of 1" in page
    for title in ("Speed-up against the number of processes", "Efficiency against", "Memory per process"):
        assert title in page


def test_speeds_of_trials_that_shared_their_cores_are_not_compared() -> None:
    text = " ".join(scaling.sentences(study()))
    assert "With 4 processes (ddp) training" not in text
    assert text.count("times with 4 processes are not exclusive") == len(OVERHEAD)
    assert text.count("With 4 processes (fsdp) each holds") == 1
    frame = results().frame.assign(timing_exclusive=False)
    busy = " ".join(scaling.sentences(analyse(replace(results(), frame=frame), "synthetic")))
    assert "as fast as" not in busy
    assert busy.count("times with 1, 2, 4 processes are not exclusive") == len(OVERHEAD)


def test_a_study_of_one_number_of_processes_has_its_own_section() -> None:
    frame = results().frame
    alone = Results(frame[frame["processes"] == 1], (), {"synthetic": STUDY})
    assert section_for(analyse(alone, "synthetic")) is not scaling.SECTION


@pytest.mark.parametrize("name", ["strong-scaling", "weak-scaling"])
def test_the_studies_that_ship_share_one_batch_or_have_one_each(name: str) -> None:
    trials = [planned.trial.spec for planned in plan(load_study(name))]
    assert sorted((spec.processes, spec.parallel) for spec in trials) == [
        (1, "none"), (2, "ddp"), (2, "fsdp"), (4, "ddp"), (4, "fsdp"),
    ]  # fmt: skip
    samples = {spec.batch_size // spec.processes if name == "weak-scaling" else spec.batch_size for spec in trials}
    assert len(samples) == 1
