"""The compute-optimal frontier against planted exponents, and its absence where one token count ran."""

from __future__ import annotations

import html
import re

import numpy as np
import pandas as pd
import pytest
from report_support import page_text, undrawn

from scalebench.advice import Allocation, Counting
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.laws import fit
from scalebench.reporting.figures.frontier import frontier_figure
from scalebench.reporting.fit_tables import fits_table, parameters_table
from scalebench.reporting.quantities import bounded, symbol
from scalebench.reporting.svg import canvas
from scalebench.store import Results

pytestmark = pytest.mark.usefixtures("few_refits")

E, A, ALPHA, B, BETA = 1.4, 9.0, 0.32, 30.0, 0.36
SIZES, BUDGETS = np.geomspace(2e3, 2e6, 7), (1e12, 1e13, 1e14)


def results(noise: float = 0.002, one_length: bool = False, along: float | None = None) -> Results:
    """Isoflop trials, `steps` an axis of the study as in a real one; or one token count; or D = `along` times N."""
    rng = np.random.default_rng(3)
    rows = []
    for flops in BUDGETS:
        for size in np.round(SIZES * (flops / 1e13) ** 0.5):
            tokens = 1e6 if one_length else along * size if along else flops / 6 / size
            loss = (E + A * size**-ALPHA + B * tokens**-BETA) * np.exp(rng.normal(0, noise))
            rows.append(
                {"study": "iso", "trial_id": f"{flops:g}-{size:g}", "attempt": "attempt-1", "status": "ok", "seed": 0,
                 "family": "gpt", "params": size, "params_non_embedding": size, "steps": round(tokens / 64),
                 "tokens_seen": tokens, "validation_loss_nats": loss, "invalid_reason": None, "attempt_dir": None}
            )  # fmt: skip
    frame = pd.DataFrame(rows)
    plan = {"name": "iso", "axes": {"steps": sorted(frame["steps"].unique().tolist())}, "fit": {"law": "power"}}
    return Results(frame, (), {"iso": plan})


def analysis(recorded: Results) -> StudyAnalysis:
    return analyse(recorded, "iso")


def planted(flops: np.ndarray) -> np.ndarray:
    """N*(C) of the planted law: equation 4 of Hoffmann et al. 2022."""
    return (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA)) * (flops / 6) ** (BETA / (ALPHA + BETA))


def test_lines_bands_and_minima_lie_on_the_planted_frontier() -> None:
    with canvas("x") as marks:
        words = frontier_figure(marks, analysis(results()))
        lines = [line.get_xydata() for line in marks.axes.lines]
    size_line, size_minima, token_line, token_minima = lines
    assert size_line[:, 1] == pytest.approx(planted(size_line[:, 0]), rel=0.05)
    assert token_line[:, 0] == pytest.approx(6 * size_line[:, 1] * token_line[:, 1], rel=1e-9)
    assert len(size_minima) == len(token_minima) == len(BUDGETS)
    assert size_minima[:, 1] == pytest.approx(planted(size_minima[:, 0]), rel=0.5)  # parabolas are biased
    assert size_minima[:, 0] == pytest.approx(6 * size_minima[:, 1] * token_minima[:, 1], rel=1e-9)
    assert f"C^{BETA / (ALPHA + BETA):.2f}"[:5] in words.text
    assert len(words.table.rows) == len(size_line) + len(BUDGETS)


def test_band_holds_the_planted_frontier() -> None:
    with canvas("x") as marks:
        frontier_figure(marks, analysis(results()))
        band = marks.axes.collections[0].get_paths()[0].vertices
    near = band[np.abs(np.log(band[:, 0] / BUDGETS[1])) < 1e-6, 1]
    assert near.min() < planted(np.array(BUDGETS[1:2]))[0] < near.max()


def test_lengths_join_one_series_and_families_split_it() -> None:
    recorded = results()
    other = recorded.frame.assign(family="mlp", trial_id=recorded.frame["trial_id"] + "m")
    with canvas("x") as marks:
        words = frontier_figure(marks, analysis(Results(pd.concat([recorded.frame, other]), (), recorded.studies)))
    assert {row[0][0] for row in words.table.rows} == {"gpt", "mlp"}


def test_without_spare_trials_the_frontier_has_no_band_and_says_why() -> None:
    recorded = results(noise=0.0)
    five = Results(recorded.frame.iloc[[0, 3, 8, 12, 17]], (), recorded.studies)
    with canvas("x") as marks:
        words = frontier_figure(marks, analysis(five))
    assert "(no interval)" in words.text
    assert "zero degrees of freedom" in words.text
    assert words.table.rows[0][3][0] == "—"


@pytest.mark.slow
def test_one_token_count_has_no_frontier_at_all() -> None:
    recorded = results(one_length=True)
    with canvas("x") as marks:
        assert frontier_figure(marks, analysis(recorded)) is None
    assert "Compute-optimal frontier" not in page_text(recorded, "frontier")


def test_tokens_in_proportion_to_size_are_refused_with_a_reason() -> None:
    with canvas("x") as marks:
        reason = frontier_figure(marks, analysis(results(along=20.0)))
    assert isinstance(reason, str)
    assert reason.startswith("No frontier: ")


def test_an_interval_wider_than_four_orders_of_magnitude_is_no_answer() -> None:
    """The rule of the command `optimal` and of the page: N* = C^(1/2), and draws a factor apart at 1 FLOP."""
    counting, middle = Counting("non_embedding", "6ND"), np.array([0.0, 0.5, 0.0, 0.5])
    for factor, slope, expected in (
        (90.0, 0.0, [True, True]),
        (110.0, 0.0, [False, False]),
        (90.0, 0.1, [True, False]),
    ):
        ends = np.array([[0.0, 0.5, sign * np.log(factor), 0.5 + sign * slope] for sign in (-1, 1)])
        allocation = Allocation(3, counting, middle, np.repeat(ends, 500, axis=0), "test", ())
        assert allocation.determined([1.0, 1e6]).tolist() == expected
    assert Allocation(3, counting, middle, None, "no draws", ()).determined(1.0).tolist() == [True]


def test_what_is_not_determined_is_not_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Allocation, "determined", lambda _, flops: np.asarray(flops) > 9e13)
    with canvas("x") as marks:
        words = frontier_figure(marks, analysis(results()))
    assert {row[0][1] > 9e13 for row in words.table.rows if row[1][0] == "fitted law"} == {True}
    monkeypatch.setattr(Allocation, "determined", lambda _, flops: np.zeros(len(flops), dtype=bool))
    with canvas("x") as marks:
        assert "wider than ×10,000" in frontier_figure(marks, analysis(results()))


@pytest.mark.slow
def test_page_carries_the_frontier_of_a_study_that_varies_both() -> None:
    assert "Compute-optimal frontier" in page_text(results(), "frontier")


@pytest.mark.slow
def test_the_surface_is_told_with_its_parameters_and_where_one_variable_has_no_fit_the_reason() -> None:
    """The caption's parameters are those of a fit made here, rounded; chinchilla cannot be fitted to size alone."""
    recorded = results()
    recorded.studies["iso"]["fit"]["law"] = "chinchilla"
    text = html.unescape(undrawn(recorded)).replace("\u00a0", " ")
    points = recorded.frame[["params", "tokens_seen", "validation_loss_nats"]].set_axis(
        ["params", "tokens", "loss"], axis=1
    )
    parameters = fit(points, "chinchilla").parameters
    numbers = re.search(r"The law has E = ([\d.]+) .*?, α = ([\d.]+) .*?, β = ([\d.]+) .*?; fit converged", text)
    assert numbers is not None
    for shown, name in zip(numbers.groups(), ("E", "alpha", "beta"), strict=True):
        assert float(shown) == pytest.approx(parameters[name], rel=0.06)
    assert "No fit of loss against size alone: the law chinchilla needs" in text


@pytest.mark.slow
def test_the_surface_stands_in_the_table_of_fitted_parameters() -> None:
    recorded = results()
    recorded.studies["iso"]["fit"]["law"] = "chinchilla"
    surfaces = analysis(recorded).surfaces
    points = recorded.frame[["params", "tokens_seen", "validation_loss_nats"]].set_axis(
        ["params", "tokens", "loss"], axis=1
    )
    expected = fit(points, "chinchilla")
    rows = [row for row in parameters_table([], surfaces).rows if row[0][0] == "loss, size and data"]
    assert {row[1][0]: row[2][1] for row in rows} == pytest.approx(
        {symbol(name): value for name, value in expected.parameters.items()}, rel=1e-6
    )
    for row, name in zip(rows, expected.parameters, strict=True):
        assert row[3][0] == bounded(expected.parameters[name], *expected.interval(name))[1]
    assert "loss, size and data" in page_text(recorded)
    assert "loss, size and data" in [row[0][0] for row in fits_table([], surfaces).rows]
