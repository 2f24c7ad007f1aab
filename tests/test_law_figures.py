"""The figures on a fitted law show its own residuals and hold-out errors, and nothing without a fit."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from scalebench.analysis.series import PROFILED_STUDIES
from scalebench.analysis.study import StudyAnalysis
from scalebench.laws import fit
from scalebench.reporting.figures.laws import backtest_figure, residuals_figure
from scalebench.reporting.figures.profile import profile_figure
from scalebench.reporting.svg import canvas

SIZES = (1_500, 4_000, 10_000, 25_000, 50_000, 100_000)
NOISE = 0.004


def analysis(sizes: tuple[int, ...] = SIZES) -> StudyAnalysis:
    rng = np.random.default_rng(5)
    rows = [
        {"trial_id": f"{size}-{seed}", "status": "ok", "params_non_embedding": size, "seed": seed,
         "invalid_reason": None,
         "validation_loss_nats": (1.4 + 6 * size**-0.28) * np.exp(rng.normal(0, NOISE))}
        for size in sizes for seed in (0, 1)
    ]  # fmt: skip
    return StudyAnalysis("x", {"fit": {"law": "power"}}, pd.DataFrame(rows))


def fitted(study: StudyAnalysis):
    return fit({"x": study.trials["params_non_embedding"], "y": study.trials["validation_loss_nats"]}, "power")


def test_residuals_are_those_of_the_fit_to_every_size() -> None:
    study = analysis()
    with canvas("x") as marks:
        words = residuals_figure(marks, study)
        (titles,) = marks.titles.values()
    expected = np.exp(fitted(study).residuals) - 1
    assert [row[-1][1] for row in words.table.rows] == pytest.approx(expected, abs=1e-9)
    assert len(titles) == len(study.trials)
    assert np.std(expected) == pytest.approx(NOISE, rel=0.5)


@pytest.mark.slow
def test_hold_out_errors_and_intervals_are_those_of_the_backtest() -> None:
    study = analysis()
    rows = study.series[0].backtest
    with canvas("x") as marks:
        backtest_figure(marks, study)
        points = [line.get_xydata() for line in marks.axes.lines if len(line.get_xydata()) == len(rows)]
        bars = [part.get_segments()[0] for part in marks.axes.collections]
    law, naive = points
    expected = fitted(study).backtest("rolling").forecasts
    assert [row.error_percent for row in rows] == [row.error_percent for row in expected]
    assert law[:, 1] == pytest.approx([row.error_percent for row in rows])
    assert naive[:, 1] == pytest.approx([row.naive_error_percent for row in rows])
    ends = [[100 * (end / row.measured - 1) for end in row.interval] for row in rows if row.interval]
    assert np.array(bars)[:, :, 1] == pytest.approx(np.array(ends))


@pytest.mark.slow
def test_profile_marks_the_interval_of_the_fit() -> None:
    study = analysis()
    trend = study.series[0].loss_all
    profile = trend.fit.profile("E", n=PROFILED_STUDIES)
    with canvas("x") as marks:
        words = profile_figure(marks, study)
        line, best = (part.get_xydata() for part in marks.axes.lines[:2])
        (band,) = (patch.get_extents() for patch in marks.axes.patches)
        edges = marks.axes.transData.inverted().transform([(band.x0, 0), (band.x1, 0)])[:, 0]
    assert edges == pytest.approx(fitted(study).interval("E"), rel=1e-9)
    assert line[:, 0] == pytest.approx(profile.values)
    assert best[0] == pytest.approx([fitted(study).parameters["E"], 0], abs=1e-9)
    assert line[:, 1].min() >= 0
    assert line[:, 1] == pytest.approx([100 * row[2][1] / trend.fit.objective for row in words.table.rows])
    assert [row[1][1] for row in words.table.rows] == pytest.approx(profile.objective, rel=1e-6)
    for value, row in list(zip(profile.values, words.table.rows, strict=True))[::10]:  # an independent fit at that E
        held = fit({"x": study.trials["params_non_embedding"], "y": study.trials["validation_loss_nats"]}, "power",
                   fixed={"E": value})  # fmt: skip
        assert row[2][1] == pytest.approx(held.objective - fitted(study).objective, rel=1e-4, abs=1e-11)


def test_profile_that_is_refused_gives_the_reason() -> None:
    with canvas("x") as marks:
        text = profile_figure(marks, analysis(SIZES[:3]))
    assert text == "No profile: zero degrees of freedom for power: a profile needs at least one more size."


@pytest.mark.parametrize("figure", [residuals_figure, profile_figure, backtest_figure])
def test_without_a_fit_nothing_is_drawn(figure) -> None:
    with canvas("x") as marks:
        text = figure(marks, analysis(SIZES[:2]))
        assert isinstance(text, str)
        assert "2 configurations for 3 free parameters of power" in text
        assert not marks.axes.lines
