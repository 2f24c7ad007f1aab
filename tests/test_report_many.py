"""Many trials and many series: what is thinned, joined, coloured and named, and what the page then says of it."""

from __future__ import annotations

import html

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, all_planned, synthetic

from scalebench.analysis.series import BEST_FITTED, MOST_FITTED, ranked, to_fit
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.analysis.trends import MAX_POINTS, choose_cost_law
from scalebench.reporting import conclusions
from scalebench.reporting.end_labels import apart
from scalebench.reporting.figures.base import styles_of
from scalebench.reporting.figures.costs import efficiency_figure, memory_figure
from scalebench.reporting.figures.loss import loss_figure
from scalebench.reporting.figures.runs import curves_figure
from scalebench.reporting.fit_tables import fit_tables, ranking_table
from scalebench.reporting.inline_svg import to_svg
from scalebench.reporting.sections.common import counts
from scalebench.reporting.svg import MAX_MARKS, MOST_MARKS, MUTED, SERIES_COLORS, canvas
from scalebench.reporting.tables import MAX_DATA_ROWS
from scalebench.store import Results

pytestmark = pytest.mark.usefixtures("few_refits")


def of_series(number: int) -> StudyAnalysis:
    """A study of as many series, each 0.1 nats above the one before, in an order that is not that of their names."""
    plain = synthetic().frame
    loss, names = plain["validation_loss_nats"], [f"way {(7 * i) % number:02d}" for i in range(number)]
    parts = [plain.assign(optimizer=name, trial_id=f"{i:02x}" + plain["trial_id"], validation_loss_nats=loss + 0.1 * i)
             for i, name in enumerate(names)]  # fmt: skip
    return analyse(all_planned(pd.concat(parts, ignore_index=True)), "synthetic")


@pytest.fixture(scope="module")
def twelve() -> StudyAnalysis:
    return of_series(12)


def of_trials(number: int) -> StudyAnalysis:
    frame = pd.concat([synthetic().frame] * (number // 12 + 1), ignore_index=True).iloc[:number]
    frame = frame.assign(trial_id=[f"{i:08x}" for i in range(number)], seed=np.arange(number))
    return analyse(all_planned(frame), "synthetic")


def test_places_are_kept_apart_and_in_order() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 30):
        places = rng.uniform(0, 1, n)
        moved = apart(places.tolist(), 0.02)
        order = np.argsort(places)
        assert (np.diff(moved[order]) >= 0.02 - 1e-12).all()
        assert moved.min() >= 0
        assert moved.max() <= 1 + 1e-12
    np.testing.assert_allclose(apart([0.2, 0.6], 0.1), [0.2, 0.6])  # what is apart stays
    np.testing.assert_allclose(apart([0.5, 0.5], 0.1), [0.45, 0.55])
    np.testing.assert_allclose(apart([0.5] * 5, 0.9), [0, 0.25, 0.5, 0.75, 1])  # there is no more room


def test_no_colour_is_used_twice_and_the_best_have_them(twelve: StudyAnalysis) -> None:
    styles = dict(zip(map(id, twelve.series), styles_of(twelve.series), strict=True))
    colors = [styles[id(series)]["color"] for series in ranked(twelve.series)]
    assert colors == [*SERIES_COLORS, *[MUTED] * 4]


def test_many_series_are_means_joined_by_lines_with_their_names_at_the_ends(twelve: StudyAnalysis) -> None:
    with canvas("x") as marks:
        caption = loss_figure(marks, twelve)
        names = {series.label for series in twelve.series}
        texts = [text for text in marks.axes.texts if text.get_text() in names]
        assert {text.get_text() for text in texts} == names
        order = [text.get_text() for text in sorted(texts, key=lambda text: text.get_position()[1])]
        assert order == [series.label for series in ranked(twelve.series)]
        assert marks.axes.get_legend() is None
        assert sum(map(len, marks.titles.values())) == 12 * 6
        lines = [line for line in marks.axes.lines if line.get_linestyle() == "-" and np.size(line.get_xdata()) == 6]
        assert len(lines) == 12
        expected = ranked(twelve.series)[0].sizes["mean"].to_numpy()
        assert any(np.allclose(np.asarray(line.get_ydata()), expected) for line in lines)
    assert caption is not None
    assert "means of the sizes" in caption.text
    assert "Grey" in caption.text


def test_of_many_series_the_laws_of_the_best_are_fitted(twelve: StudyAnalysis) -> None:
    assert list(to_fit(twelve.series)) == ranked(twelve.series)[:BEST_FITTED]
    few = of_series(MOST_FITTED)
    assert to_fit(few.series) is few.series
    with canvas("x") as marks:
        memory_figure(marks, twelve)
    assert not any("memory" in vars(series) for series in twelve.series)  # a fit that is not shown is not made


@pytest.mark.slow
def test_tables_of_fits_say_which_series_they_show(twelve: StudyAnalysis) -> None:
    ranking, *others = fit_tables(twelve.series, ())
    assert len(ranking.rows) == 12
    best = {series.label for series in ranked(twelve.series)[:3]}
    for table in others:
        assert "3 of 12 series" in table.caption
        assert {row[0][0].split(",")[0] for row in table.rows} <= best


@pytest.mark.slow
def test_every_series_has_its_exponent(twelve: StudyAnalysis) -> None:
    """All have the planted exponent, and the same noise; of all but the best it is without an interval."""
    table = ranking_table(twelve.series)
    place = table.columns.index("exponent")
    assert [row[place][1] for row in table.rows] == pytest.approx([0.28] * 12, abs=0.03)
    assert ["(" in row[place][0] for row in table.rows] == [True] * BEST_FITTED + [False] * 9
    assert "without an interval" in table.caption
    (first,) = (series for series in twelve.series if series.label == table.rows[-1][0][0])
    assert table.rows[-1][place][0] == f"{first.loss_of_means.fit.parameters['alpha']:.3f}"


def test_the_verdict_on_many_series_names_the_lowest(twelve: StudyAnalysis) -> None:
    lead, *bullets = conclusions(twelve)
    assert "12 series" in lead
    assert "way 00" in lead
    assert "No other is within noise" in bullets[0]
    assert len(bullets) <= 6


def test_sizes_have_one_ramp_from_light_to_dark(tmp_path) -> None:
    study = analyse(synthetic(tmp_path), "synthetic")
    with canvas("x") as marks:
        caption = curves_figure(marks, study)
        svg = to_svg(marks, "x", "title", "text")
    assert caption is not None
    assert "the darker the line" in caption.text
    colours = [int(part[0]) for part in svg.split("var(--r")[1:]]
    assert colours[:12] == sorted(colours[:12])
    assert {colours[0], colours[11]} == {1, 9}


def test_many_trials_are_thinned_and_said_to_be() -> None:
    study = of_trials(3_000)
    (series,) = study.series
    assert series.loss_all.fit is not None
    assert series.loss_all.fit.n_points == MAX_POINTS
    assert series.loss_all.fit.n_configurations == 6
    assert any("1,000 of 3,000 trials" in note for note in series.notes)
    with canvas("x") as marks:
        caption = efficiency_figure(marks, study)
        assert sum(map(len, marks.titles.values())) == MAX_MARKS
    assert caption is not None
    assert len(caption.table.rows) == MAX_DATA_ROWS
    assert f"{MAX_DATA_ROWS} of 3,000 rows" in caption.table.caption
    sizes = [row[0][0].split(" param")[0] for row in caption.table.rows]
    assert len(set(sizes)) == 6


def test_the_law_of_a_cost_is_chosen_as_well_by_medians() -> None:
    """Of 960 trials the choice is by the 6 medians: a straight line and a power, each where it was planted."""
    rng, sizes = np.random.default_rng(0), np.repeat(np.geomspace(1e3, 1e6, 6), 160)
    for planted, cost in (("offset_linear", 3e6 + 60 * sizes), ("offset_power", 3e6 + 400 * sizes**0.6)):
        points = pd.DataFrame({"x": sizes, "y": cost * rng.lognormal(0, 0.01, sizes.size)})
        assert choose_cost_law(points)[0] == planted


@pytest.mark.slow
def test_a_cost_that_is_computed_exactly_gets_its_law_without_the_comparison(monkeypatch) -> None:
    """The comparison, which takes 30 times as long, gives the same law; noise of 1e-5, or four sizes, are compared."""
    sizes = np.geomspace(1e3, 1e6, 6)
    exact = pd.DataFrame({"x": sizes, "y": 3e6 + 60 * sizes})
    noisy = exact.assign(y=exact["y"] * (1 + 1e-5 * np.array([1, -1, 1, -1, 1, -1])))
    curved = exact.assign(y=3e6 + 60 * sizes**1.01)
    law, reason, rival = choose_cost_law(exact)
    assert "which fits every size" in reason
    assert not rival
    assert all("hold-out" in choose_cost_law(points)[1] for points in (noisy, curved, exact.iloc[:4]))
    monkeypatch.setattr("scalebench.analysis.trends.EXACT", 0.0)
    compared = choose_cost_law(exact)
    assert compared[0] == law == "offset_linear"
    assert "hold-out" in compared[1]


def test_groups_of_a_figure_share_its_room() -> None:
    with canvas("x") as marks:
        for i in range(10):
            marks.draw(np.arange(300), np.full(300, i), [f"{i}: {k}" for k in range(300)], color=MUTED)
        marks.thin()
        drawn = [np.size(line.get_xdata()) for line in marks.groups.values()]
        assert drawn == [100] * 10
        assert sum(map(len, marks.titles.values())) == MOST_MARKS
        assert marks.titles["marks3"][0] == "3: 0"
        assert marks.titles["marks3"][-1] == "3: 299"


def test_mfu_has_an_axis_where_one_peak_is_known() -> None:
    for change, shown in (({}, True), ({"peak_flops_per_s": None}, False)):
        study = analyse(synthetic(**change), "synthetic")
        with canvas("x") as marks:
            caption = efficiency_figure(marks, study)
            axes = marks.axes.child_axes
            assert len(axes) == shown
            if shown:
                marks.figure.draw_without_rendering()
                share = np.array(axes[0].get_ylim()) / np.array(marks.axes.get_ylim())
                np.testing.assert_allclose(share, 100 * 1e9 / 6e11, rtol=1e-9)
        assert caption is not None
        assert ("right axis" in caption.text) == shown


def test_a_description_says_what_is_drawn() -> None:
    with canvas("x") as marks:
        loss_figure(marks, analyse(synthetic(), "synthetic"))
    text = marks.description()
    assert text.startswith("Validation loss (nats) against size N (non-embedding parameters).")
    assert "12 marks from 1,536 parameters, seed 0: 2.1" in text.replace("\u00a0", " ")


def test_a_study_edited_between_runs_is_marked() -> None:
    plain = synthetic()
    edited = STUDY | {"planned": plain.studies["synthetic"]["planned"], "earlier": [{"trial_id": "0" * 16}]}
    assert "edited between runs: 1 trial" in html.unescape(
        counts(analyse(Results(plain.frame, (), {"synthetic": edited}), "synthetic"))
    )
    assert "edited" not in counts(analyse(plain, "synthetic"))
