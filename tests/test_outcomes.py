"""What a study concludes: verdicts on published findings, the text of a law, and the head of a page of studies."""

from __future__ import annotations

import re
from math import sqrt
from types import SimpleNamespace

import numpy as np
import pytest
from report_support import STUDY, synthetic
from support import REPOSITORY

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, trend_by
from scalebench.laws import fit
from scalebench.measure.statistics import mean_interval
from scalebench.reporting.outcomes import (
    AGREES,
    COLUMNS,
    DISAGREES,
    OPEN,
    UNTESTED,
    Finding,
    findings_sentence,
    law_text,
    loss_outcome,
    outcome_row,
)
from scalebench.reporting.overview import COLUMNS as GROWTH_COLUMNS
from scalebench.reporting.overview import build_overview, has_parents


def finding(*differences: float) -> Finding:
    return Finding.of_differences("larger models lose less", "a paper", "small minus large", differences)


def test_the_interval_of_a_mean_is_students() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    # t with two degrees of freedom has the quantile 4.30265 at 97.5 %.
    assert high - mean == pytest.approx(4.30265 * sqrt(7 / 3) / sqrt(3), rel=1e-5)
    assert mean - low == pytest.approx(high - mean)
    assert np.isnan(mean_interval([1.0])[1])


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        ((0.20, 0.22, 0.21), AGREES),
        ((-0.20, -0.22, -0.21), DISAGREES),
        ((0.20, -0.10, 0.05), OPEN),
        ((0.20, 0.2001), OPEN),  # two seeds carry no claim, however near they are
        ((), UNTESTED),
    ],
)
def test_a_verdict_needs_three_seeds_and_an_interval_on_one_side(differences, verdict) -> None:
    assert finding(*differences).verdict == verdict


def test_a_ratio_is_compared_with_one() -> None:
    ratio = Finding("int8 is no faster", "a table", "time over float32", 1.2, 1.1, 1.3, seeds=3, null=1.0)
    assert ratio.verdict == AGREES
    assert "1.20 (95 % interval 1.10 to 1.30, 3 seeds)" in ratio.measured


def test_the_sentence_counts_verdicts() -> None:
    findings = [finding(0.20, 0.22, 0.21), finding(-0.2, -0.21, -0.19), finding(0.2, -0.2, 0.0), finding()]
    assert findings_sentence(findings).startswith(
        "Of 4 published findings these studies agree with 1 and disagree with 1; not resolved: 1, not tested: 1."
    )


def test_a_refusal_of_a_law_has_its_reason() -> None:
    assert law_text(Trend(None, "two sizes, and it has three parameters")).startswith("refused: two sizes")


def test_a_law_without_determined_parameters_or_intervals_is_refused() -> None:
    """Two sizes and three lengths do not determine a law of both; three sizes fit three parameters without an error."""
    n, d = (axis.ravel() for axis in np.meshgrid([4e3, 16e3], [1e5, 2e5, 4e5]))
    surface = fit({"params": n, "tokens": d, "loss": 1 + 20 * n**-0.4 + 30 * d**-0.3}, "chinchilla")
    assert law_text(Trend(surface)).startswith("refused: the points do not separate the parameters of chinchilla")
    sizes = np.array([4e3, 8e3, 16e3])
    exact = trend_by(fit({"x": sizes, "y": 1 + 20 * sizes**-0.4}, "power"))
    assert law_text(exact) == f"refused: {exact.no_interval}"


def test_parameters_that_the_points_leave_open_have_no_value_in_a_law() -> None:
    """Losses that do not fall with size leave the exponent open, and with it the coefficient."""
    sizes, noise = np.repeat([4e3, 8e3, 16e3, 32e3], 6), np.random.default_rng(0).normal(0, 0.05, 24)
    level = trend_by(fit({"x": sizes, "y": 1 + noise}, "power"))
    assert level.fit is not None
    assert {"alpha", "A"} <= {*level.fit.undetermined}
    text = law_text(level)
    assert "α not determined" in text
    assert "A not determined" in text
    assert "α =" not in text


def test_the_row_of_a_study_has_its_sizes_its_law_and_its_time() -> None:
    study = analysed()
    row = dict(zip(COLUMNS, outcome_row(study, "training", loss_outcome(study)), strict=True))
    assert row["sizes"][0].replace("\u00a0", " ") == "1,536 to 98.3 k (6)"
    assert row["seeds"][0] == "2"
    assert row["trials ok"] == ("12 of 12", 12)
    assert row["wall time"][1] == 24.0
    assert "α = 0.2" in row["law"][0]


def test_make_lifecycle_runs_every_study_for_a_cpu_that_starts_from_others() -> None:
    names = re.search(r"^AFTER_TRAINING := (.*)$", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
    assert names is not None
    prefixes = tuple(names[1].split())
    studies = [path.stem for path in (REPOSITORY / "studies").glob("*.toml") if "\n[from]" in path.read_text()]
    chosen = [name for name in studies if not name.endswith("-gpu")]
    assert chosen
    assert [name for name in chosen if not name.startswith(prefixes)] == []


def analysed(**changes: object) -> StudyAnalysis:
    return StudyAnalysis("synthetic", STUDY, synthetic(wall_time_s=2.0, **changes).frame)


@pytest.mark.slow
def test_a_page_with_children_begins_with_outcomes_and_any_other_with_growth() -> None:
    base, child = analysed(), analysed(parent_trial_id="0123456789abcdef")
    assert not has_parents(base)
    assert has_parents(child)
    views = [SimpleNamespace(id="study-a"), SimpleNamespace(id="study-b")]
    assert build_overview([base, base], views).table.columns == GROWTH_COLUMNS
    overview = build_overview([base, child], views)
    assert overview.table.columns == COLUMNS
    assert [row[0][0] for row in overview.table.rows] == ["synthetic", "synthetic"]
    assert overview.table.links == ("study-a", "study-b")
    assert "No study on this page" in overview.sentence
