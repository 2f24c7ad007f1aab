"""The first screen, the overview and the tables of many series: their numbers, and what they never show."""

from __future__ import annotations

import html
import json
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from browser_support import hard_study
from command_support import SIZES as PLANTED
from command_support import planted, write_study
from report_support import STUDY, Outline, all_planned, changed, page_of_alike, page_text, synthetic, undrawn

from scalebench.analysis.ends import FACTORS, ends_of
from scalebench.analysis.pareto import pareto_front
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.reporting import conclusions, render
from scalebench.reporting.fit_tables import ranking_table
from scalebench.reporting.page import ids
from scalebench.reporting.quantities import NO_SPREAD, bounded, quantity, tick
from scalebench.reporting.sections.common import _verdict
from scalebench.reporting.strip import strip_table
from scalebench.store import Results, read_results

pytestmark = pytest.mark.usefixtures("few_refits")

UNITS = {"validation loss (nats)": ("validation_loss", ""), "step time": ("step_time", "s"),
         "training time": ("training_time", "s"), "memory": ("memory", "B"), "compute": ("compute", "FLOP"),
         "checkpoint": ("checkpoint", "B")}  # fmt: skip


@pytest.mark.slow
def test_the_strip_gives_the_numbers_of_predict(command, tmp_path: Path) -> None:
    write_study(tmp_path / "bent", planted(study="bent"))
    (series,) = analyse(read_results(tmp_path / "bent"), "bent").series
    table = strip_table(series)
    assert table is not None
    rows = {row[0][0]: row for row in table.rows}
    for factor, column in zip(FACTORS, (-2, -1), strict=True):
        answers = json.loads(command("predict", "bent", "--params", factor * max(PLANTED), "--json")[1])["answers"]
        for name, (key, unit) in UNITS.items():
            answer, (text, value) = answers[key], rows[name][column]
            assert value == pytest.approx(answer["value"], rel=1e-12)
            expected, interval = bounded(answer["value"], answer["low"], answer["high"], unit)
            assert text == (expected if interval == NO_SPREAD else f"{expected}\n({interval})")


def test_factors_are_the_ratios_of_both_ends_and_their_intervals_hold_them() -> None:
    study = analyse(synthetic(), "synthetic")
    ends = {each.quantity: each for each in ends_of(study.series[0])}
    first, last = (study.trials[study.trials["params_non_embedding"] == size] for size in (1_536, 98_304))
    for name, column in (("step time", "step_time_median_s"), ("memory", "memory_tracked_peak_bytes")):
        ratio = last[column].median() / first[column].median()
        assert ends[name].factor == pytest.approx(ratio)
    assert ends["step time"].low < (3e-3 + 60e-9 * 98_304) / (3e-3 + 60e-9 * 1_536) < ends["step time"].high
    assert ends["compute"].low == ends["compute"].high == pytest.approx(64)
    assert "not measured" in ends["energy"].reason


def test_no_value_of_another_size_stands_in_for_an_end_that_was_not_measured() -> None:
    results = hard_study()
    results.frame.loc[results.frame["params_non_embedding"] == 98_304, "timing_exclusive"] = False
    ends = {each.quantity: each for each in ends_of(analyse(results, "s").series[0])}
    assert np.isnan(ends["step time"].largest)
    assert "at both sizes" in ends["step time"].reason
    assert ends["memory"].factor > 1


def test_the_pareto_front_is_what_nothing_beats() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 40):
        cost, loss = rng.integers(1, 9, n).astype(float), rng.integers(1, 9, n).astype(float)
        front = pareto_front(cost, loss)
        beaten = [any((cost <= c) & (loss <= y) & ((cost < c) | (loss < y))) for c, y in zip(cost, loss, strict=True)]
        assert {(cost[i], loss[i]) for i in front} == {(cost[i], loss[i]) for i in range(n) if not beaten[i]}
        assert list(cost[front]) == sorted(cost[front])


def series_of(n: int) -> Results:
    parts = [synthetic().frame.assign(implementation=f"way{i}", trial_id=f"{i:02x}" + synthetic().frame["trial_id"])
             for i in range(n)]  # fmt: skip
    for i, part in enumerate(parts):
        part["validation_loss_nats"] += 0.05 * (i // 2)
    return all_planned(pd.concat(parts, ignore_index=True))


@pytest.mark.slow
def test_many_series_have_six_bullets_at_most_and_one_ranking() -> None:
    study = analyse(series_of(9), "synthetic")
    lead, *bullets = conclusions(study)
    assert lead
    assert len(bullets) == 6
    assert bullets[-1] == "All 108 recorded trials ended ok."
    rows = ranking_table(study.series).rows
    assert [row[0][0] for row in rows[:2]] == ["way0", "way1"]
    assert [row[-1][0] for row in rows[:3]] == ["lowest", "within noise of the lowest", "higher"]
    assert [row[2][1] for row in rows] == sorted(row[2][1] for row in rows)


def test_equal_failures_are_one_row_with_their_number() -> None:
    results = synthetic()
    for i in range(5):
        results = changed(results, i, status="failed", error_class="OSError", error_message="disk full")
    text = html.unescape(page_text(changed(results, 7, status="oom", error_message="3 GiB")))
    assert text.count("OSError: disk full") == 6  # once in the table of problems; the table of trials has every one
    assert "5 trials: " in text


# --- what no page may do ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_hostile_names_and_wild_numbers_leave_every_figure(tmp_path: Path) -> None:
    """Control characters, mathematics, halves of surrogates, missing glyphs, infinities and texts for numbers."""
    plain = synthetic(tmp_path)
    names = ["a$x^{$\x00\x1b[31m", "b$\\frac$\u202e漢\ufffe"]
    frame = plain.frame.astype(object).assign(implementation=[names[i % 2] for i in range(12)])
    frame.loc[3, ["validation_loss_nats", "step_time_median_s", "mfu"]] = np.inf
    frame.loc[5, ["memory_tracked_peak_bytes", "tokens_per_s", "flops_per_step"]] = ["many", -1e308, 1e308]
    frame.loc[7, ["error_message", "device_name", "peak_source"]] = "\x07$\\$"
    wild = Results(frame, (), {"synthetic": STUDY | {"title": names[0] + "\ud800", "planned": list(frame["trial_id"])}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = render(wild)
    text.encode()
    assert not re.search("[\x00-\x08\x0b\x0c\x0e-\x1f]", text)
    assert "could not be drawn" not in text
    drawings = [svg for svg in Outline(text).all("svg") if svg.get("role") == "img"]
    assert len(drawings) >= 11
    assert "a$x^{$" in text


@pytest.mark.slow
def test_one_diverged_trial_sets_no_axis() -> None:
    results = changed(synthetic(), 0, status="diverged", validation_loss_nats=1e25, train_loss_nats=1e25)
    text = render(results)
    assert "1e+25" not in re.sub(r"<table.*?</table>", "", text, flags=re.DOTALL)
    assert "diverged" in text


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_no_interval_repeats_its_end_and_no_number_hides_behind_zeros() -> None:
    assert bounded(0.0, 0.0, 0.0, "s") == ("0\u00a0s", NO_SPREAD)
    assert bounded(0.0, 0.0, 3e-6, "s") == ("0.000\u00a0µs", "0.000 to 3.000\u00a0µs")
    low, high = bounded(12.02, 12.0199, 12.0201)[1].split(" to ")
    assert float(low) < float(high)
    assert bounded(1e9, 1e9, 1e9, "FLOP")[1] == NO_SPREAD
    assert quantity(999_999_999) == "1.00\u00a0G"
    assert [tick(x) for x in (0, 0.05, 7, 2e4, 1e9)] == ["0", "0.05", "7", "20.0\u00a0k", "1.00\u00a0G"]


# --- several studies -------------------------------------------------------------------------------------------------


def test_ids_come_from_names_not_positions() -> None:
    assert ids("study", ["b", "A study!", ""]) == ["study-b", "study-a-study", "study-unnamed"]
    assert ids("study", ["A study!"]) == ["study-a-study"]
    assert ids("study", ["a b", "a-b"]) == ["study-a-b-1", "study-a-b-2"]


@pytest.fixture(scope="module")
def sixteen() -> str:
    rows = synthetic().frame
    rows = rows[rows["params_non_embedding"] < 30_000]
    names = [f"study {i}" for i in range(16)]
    frame = pd.concat([rows.assign(study=name) for name in names], ignore_index=True)
    planned = [{"trial_id": trial_id} for trial_id in rows["trial_id"]]
    studies = {name: STUDY | {"title": name, "planned": planned} for name in names}
    return page_of_alike(Results(frame, (), studies))


@pytest.mark.slow
def test_a_page_of_sixteen_studies_is_small_and_begins_with_all_of_them(sixteen: str) -> None:
    outline = Outline(sixteen)
    assert len(sixteen.encode()) <= 2_000_000
    assert len(outline.elements) <= 15_000
    table = re.search(r'<section id="overview".*?</table>', sixteen, re.DOTALL)
    assert table
    links = re.findall(r'<th scope="row"[^>]*><a href="#([^"]+)">', table.group())
    assert links == [f"study-study-{i}" for i in range(16)]
    assert {a["id"] for name, a in outline.elements if name == "section" and "id" in a} >= set(links)
    assert "Time grew more slowly than model size in 16 of 16" in sixteen
    assert "Faster:" not in sixteen
    assert 'id="overview-growth"' in sixteen


# --- replicates ------------------------------------------------------------------------------------------------------


def test_settings_that_vary_within_a_size_and_copies_are_named() -> None:
    frame = synthetic().frame
    mixed = frame.assign(batch_size=[16, 32] * 6)
    (note,) = StudyAnalysis("synthetic", STUDY, mixed).series[0].notes
    assert "batch_size" in note
    named = STUDY | {"axes": STUDY["axes"] | {"batch_size": [16, 32]}}
    assert all(not series.notes for series in StudyAnalysis("synthetic", named, mixed).series)
    copied = pd.concat([frame, frame.iloc[[4]].assign(trial_id="copy")], ignore_index=True)
    (note,) = StudyAnalysis("synthetic", STUDY, copied).series[0].notes
    assert note.startswith("1 trial repeats")
    assert f"{note}." in _verdict(StudyAnalysis("synthetic", STUDY, copied), lambda _: ("First.",))
    assert StudyAnalysis("synthetic", STUDY, frame).series[0].notes == ()


def test_parents_of_one_seed_that_count_as_replicates_are_named() -> None:
    """As of two learning rates: a trial has its parent's seed, and they are not seeds of one another."""
    frame = synthetic().frame
    started = pd.concat([frame, frame.assign(trial_id=frame["trial_id"] + "b", validation_loss_nats=3.0)])
    started = started.assign(parent_trial_id=[f"p{i}" for i in range(len(started))], parent_flops=1e9)
    inheriting = STUDY | {"fields": {"steps": [4]}}
    (note,) = StudyAnalysis("synthetic", inheriting, started).series[0].notes
    assert "several models" in note
    others = started.assign(parent_flops=range(len(started)))  # checkpoints of one run differ in what they cost
    for study, trials in ((STUDY | {"fields": {"seed": [0, 1]}}, started), (STUDY, started), (inheriting, others)):
        assert StudyAnalysis("synthetic", study, trials).series[0].notes == ()


@pytest.mark.slow
def test_a_size_far_off_the_law_is_named_on_the_page() -> None:
    frame = synthetic().frame
    frame["validation_loss_nats"] = 1.4 + 6 * frame["params_non_embedding"] ** -0.28
    frame.loc[frame["params_non_embedding"] == 10_240, "validation_loss_nats"] *= 1.06
    text = html.unescape(undrawn(all_planned(frame))).replace("\u00a0", " ")
    assert text.count("Far from the fitted law, where the other sizes lie close to it: 10.2 k (+5.9 %).") >= 2
