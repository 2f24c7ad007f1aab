"""The overview of studies: exponents against planted ones, and a row for every series."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_support import page_text

from scalebench.analysis.growth import growth
from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.overview import COLUMNS, overview_rows, overview_table
from scalebench.store import Results
from scalebench.workloads import columns_of

SIZES = np.repeat([1e3, 4e3, 1.6e4, 6.4e4, 2.56e5], 2)


def planted(study: str, exponent: float, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({column.name: [None] * len(SIZES) for column in columns_of("training")})
    loss = 1.5 + 20 * SIZES**-0.4 + rng.normal(0, 0.002, len(SIZES))
    return frame.assign(
        study=study, trial_id=[f"{study}{i}" for i in range(len(SIZES))], status="ok", family="mlp",
        params_non_embedding=SIZES, seed=[0, 1] * 5, validation_loss_nats=loss, validation_loss_se_nats=0.002,
        step_time_median_s=1e-6 * SIZES**exponent, peak_rss_bytes=1e3 * SIZES**0.5, timing_exclusive=True,
        wall_time_s=2.0,
    )  # fmt: skip


@pytest.mark.slow
def test_growth_is_the_planted_exponent_and_its_interval_holds_it() -> None:
    x = pd.Series(SIZES)
    grown = growth(x, 3e-6 * x**0.8)
    assert grown.exponent == pytest.approx(0.8, abs=1e-12)
    rng, inside = np.random.default_rng(0), 0
    for _ in range(400):
        noisy = growth(x[::2], 3e-6 * x[::2] ** 0.8 * np.exp(rng.normal(0, 0.1, 5)))
        inside += noisy.low <= 0.8 <= noisy.high
    assert 0.92 <= inside / 400 <= 0.98


def test_one_size_has_no_growth_and_two_have_no_interval() -> None:
    assert growth(pd.Series([10.0, 10.0]), pd.Series([1.0, 2.0])) is None
    assert np.isnan(growth(pd.Series([10.0, 20.0]), pd.Series([1.0, 2.0])).low)


def rows_of(study: str, frame: pd.DataFrame) -> list[tuple]:
    return list(overview_rows(study, StudyAnalysis(study, {}, frame).series))


def test_the_loss_of_a_series_of_one_size_is_there_once() -> None:
    frame = planted("a", 0.7, 1)
    (row,) = rows_of("a", frame[frame["params_non_embedding"] == SIZES[0]])
    cells = dict(zip(COLUMNS, row.cells, strict=True))
    assert cells["loss at smallest"] == ("one size", None)
    assert cells["loss at largest"][1] == pytest.approx(1.5 + 20 * SIZES[0] ** -0.4, abs=0.01)


def test_every_study_has_a_row() -> None:
    frame = planted("a", 0.7, 1)
    frame.loc[3, "status"] = "failed"
    table = overview_table([row.cells for row in (*rows_of("a", frame), *rows_of("b", planted("b", 1.0, 2)))])
    rows = {row[0][0]: dict(zip(COLUMNS, row, strict=True)) for row in table.rows}
    assert list(rows) == ["a", "b"]
    assert rows["a"]["trials ok"] == ("9 of 10", 9)
    assert rows["b"]["time exponent"][1] == pytest.approx(1.0)
    assert rows["a"]["memory exponent"][1] == pytest.approx(0.5)
    assert rows["b"]["loss exponent"][1] == pytest.approx(0.4, abs=0.05)
    assert rows["b"]["total run time"][1] == 20.0


def test_a_study_in_which_nothing_worked_still_has_a_row() -> None:
    (row,) = rows_of("a", planted("a", 1.0, 1).assign(status="failed"))
    assert row.cells[3][0] == "0 of 10"
    assert len(row.cells) == len(COLUMNS)


@pytest.mark.slow
def test_a_page_of_several_studies_begins_with_their_overview_and_of_one_does_not() -> None:
    two = pd.concat([planted("a", 0.7, 1), planted("b", 1.0, 2)], ignore_index=True)
    assert "Every study. Sizes" in page_text(Results(two, (), {"a": {}, "b": {}}))
    assert "Every study. Sizes" not in page_text(Results(planted("a", 0.7, 1), (), {"a": {}}))
