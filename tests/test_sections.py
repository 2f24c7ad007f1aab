"""Kinds of section: what all sections of studies share, other workloads, and adding a kind."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from report_support import broken, changed, page_text, recorded, undrawn

from scalebench.analysis.study import StudyAnalysis, analyse, analyse_all
from scalebench.reporting import conclusions, picture, render, sections
from scalebench.reporting.figures import costs
from scalebench.reporting.sections import inference, training
from scalebench.reporting.sections.common import Column, StudySection, axes_table, workload_of
from scalebench.reporting.svg import Marks
from scalebench.reporting.tables import Table
from scalebench.reporting.views import Caption, FigureSpec, draw_figure
from scalebench.running.planning import load_study
from scalebench.running.sweep import Sweep, execute
from scalebench.store import Results, read_results

pytestmark = pytest.mark.usefixtures("few_refits")


@pytest.fixture(scope="module")
def results(synthetic_folder: Path) -> Results:
    return recorded(synthetic_folder)


@pytest.mark.slow
def test_failed_invalid_missing_and_damaged_are_listed(results: Results) -> None:
    bad = changed(results, 2, status="oom", error_class="OutOfMemoryError", error_message="tried 3 GiB", stop_step=7,
                  validation_loss_nats=None, step_time_median_s=None)  # fmt: skip
    bad = changed(bad, 5, invalid_reason="MFU 130 % is above 100 %")
    lost = bad.frame["trial_id"].iloc[8]
    bad = Results(bad.frame.drop(index=8), ("trials/x/record.json: not readable as JSON",), bad.studies)
    text = html.unescape(page_text(bad))
    for part in ("OutOfMemoryError: tried 3 GiB", "invalid: MFU 130 % is above 100 %", "record.json: not readable",
                 lost,
                 "12 trials planned: 10 ok, 1 oom, 1 of the ok ones invalid, 1 missing.",
                 "2 of 11 recorded trials did not end ok or are invalid"):  # fmt: skip
        assert part in text
    assert "9 of 11" not in text


def test_all_failed_draws_no_conclusion(results: Results) -> None:
    text = page_text(broken(results)["all failed"])
    assert "No conclusion: none of the 12 recorded trials ended ok" in text
    assert "boom" in text


# --- other workloads -------------------------------------------------------------------------------------------------

COLUMNS = [
    {"name": "status", "unit": "", "meaning": "how the trial ended"},
    {"name": "params", "unit": "1", "meaning": "parameters"},
    {"name": "audit_time_s", "unit": "s", "meaning": "time to audit all weights"},
    {"name": "canaries", "unit": "1", "meaning": "canaries found <in> the weights"},
    {"name": "verdict_text", "unit": "", "meaning": "what the audit concluded"},
    {"name": "wall_time_s", "unit": "s", "meaning": "time of the whole trial"},
]


def audit(sizes: tuple[int, ...] = (1000, 4000, 16_000)) -> Results:
    """A workload without a kind of section of its own: two trials of each size."""
    rows = [
        {"study": "audit", "trial_id": f"{size}-{seed}", "status": "ok", "invalid_reason": None, "workload": "audit",
         "params": size, "params_non_embedding": size, "seed": seed, "audit_time_s": 2e-6 * size * (1 + seed),
         "canaries": 3 + seed, "verdict_text": "fine", "wall_time_s": 1.0, "attempt_dir": None}
        for size in sizes for seed in (0, 2)
    ]  # fmt: skip
    definition = {"columns": COLUMNS, "measured": ["params", "audit_time_s", "canaries", "verdict_text"]}
    return Results(pd.DataFrame(rows), (), {"audit": definition})


def test_another_workload_is_shown_by_the_columns_that_it_declares() -> None:
    text = render(audit())
    titles = re.findall(r"<h[23]>(.*?)</h[23]>", text)
    assert titles == ["Audit time against size", "Canaries against size"]
    (first, *_), plain = conclusions(analyse(audit(), "audit")), html.unescape(text).replace("\u00a0", " ")
    assert first.replace("\u00a0", " ") == "Audit time is 4.00 ms at 1,000 parameters and 64.0 ms at 16.0 k parameters."
    for cell in ("time to audit all weights", "what the audit concluded", "canaries found <in> the weights"):
        assert f">{html.escape(cell)}<" in text
    assert "Canaries found <in> the weights." in plain
    drawing = re.search(r"<svg[^>]*study-audit-audit_time_s-title.*?</svg>", text, re.DOTALL)
    assert drawing is not None
    assert len(re.findall(r"<use[^>]*>\s*<title>", drawing.group())) == 6
    assert "whole trial" not in text  # a column that every workload has
    assert "loss" not in " ".join(titles)


def test_trials_without_a_result_yet_are_counted_in_the_conclusions() -> None:
    whole = audit()
    ids = [*whole.frame["trial_id"], "f" * 16, "e" * 16]
    partial = Results(whole.frame, (), {"audit": whole.studies["audit"] | {"planned": ids}})
    assert conclusions(analyse(partial, "audit"))[-1] == "Without a result yet: 2 of 8 planned trials."


def test_another_workload_at_one_size_or_without_columns_still_has_a_page(tmp_path: Path) -> None:
    single_size = audit((1000,))
    text = render(single_size)
    assert "Audit time is 4.00\u00a0ms at 1,000 parameters, the only size" in text
    assert "<figure" not in text
    bare = Results(single_size.frame, (), {})
    assert "All 2 recorded trials ended ok." in render(bare)
    assert picture(analyse(bare, "audit"), tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


# --- adding a kind of section ----------------------------------------------------------------------------------------


def canary_figure(marks: Marks, study: StudyAnalysis) -> Caption:
    marks.draw(study.trials["params"], study.trials["canaries"], ["a canary"] * len(study.trials))
    return Caption("Canaries.", Table("Canaries.", ("n",), ((("3", 3.0),),)))


@pytest.mark.parametrize("first", [True, False])
def test_a_kind_of_section_is_one_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, first: bool) -> None:
    template = tmp_path / "audit.html.j2"
    template.write_text("{% extends 'study.html.j2' %}{% block findings %}<p>{{ s.name }}'s birds</p>{% endblock %}")
    section = StudySection(
        shows=lambda study: workload_of(study) == "audit",
        sentences=lambda study: [f"{len(study.trials)} audits."],
        figures=lambda _: (FigureSpec("canary", "The canaries", canary_figure),),
        columns=lambda _: (Column("birds", "canaries"),),
        methods=("Counted by hand.",),
        template=template,
    )
    entries = (section, *sections.SECTIONS) if first else (*sections.SECTIONS, section)
    monkeypatch.setattr(sections, "SECTIONS", entries)
    study = analyse(audit(), "audit")
    assert sections.section_for(study) is section
    assert conclusions(study) == ["6 audits.", "All 6 recorded trials ended ok."]
    text = render(audit())
    assert re.findall(r"<h[23]>(.*?)</h[23]>", text) == ["The canaries"]
    assert "<p>audit's birds</p>" in text
    assert "Counted by hand." in text
    assert re.search(r"<th[^>]*>birds</th>", text)
    assert picture(study, tmp_path / "a.png").stat().st_size > 1000


@pytest.mark.parametrize("recorded", [None, "training"])
def test_the_section_is_that_of_the_workload_that_the_study_names(recorded: str | None) -> None:
    """With no record, and with records that name another workload."""
    rows = pd.DataFrame({"study": "s", "trial_id": "0", "status": "failed", "workload": recorded}, index=[0])
    results = Results(rows if recorded else rows.iloc[:0], (), {"s": {"workload": "inference", "planned": ["0"]}})
    study = analyse(results, "s")
    assert sections.section_for(study) is inference.SECTION
    assert "No conclusion" in render(results)
    assert sections.section_for(analyse(replace(results, studies={"s": {}}), "s")) is training.SECTION


def test_the_results_of_a_run_name_the_workload(tmp_path: Path) -> None:
    study = load_study("inference")
    (tmp_path / study.name / "trials").mkdir(parents=True)
    assert list(execute(Sweep(tmp_path / study.name, []), study)) == []
    assert sections.section_for(analyse(read_results(tmp_path), study.name)) is inference.SECTION


@pytest.mark.slow
def test_every_study_has_a_kind_of_section(results: Results) -> None:
    for study_results in [results, audit(), *broken(results).values()]:
        for study in analyse_all(study_results):
            assert sections.section_for(study).conclusions(study)


# --- figures that cannot be drawn ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, KeyError, ZeroDivisionError, TypeError, IndexError, RuntimeError])
def test_a_figure_that_fails_is_replaced_by_its_reason(error: type[Exception]) -> None:
    def fail(marks: Marks, subject: object) -> Caption:
        marks.axes.plot([1, 2], [3, 4])
        raise error("<b>no such axis</b>")

    view = draw_figure("x", FigureSpec("f", "A figure", fail), None)
    assert view is not None
    assert (view.svg, view.table) == ("", None)
    assert error.__name__ in view.caption
    assert "no such axis" in view.caption


@pytest.mark.slow
def test_a_figure_that_fails_leaves_the_page_standing(results: Results, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_memory_stack", lambda *_: {}["activations"])
    page = undrawn(results)
    (reason,) = re.findall(r'<p class="none">(.*?)</p>', page)
    assert "KeyError" in reason
    assert len(re.findall("<figure ", page)) == 13
    assert len(re.findall(r"<figcaption>", page)) == 12


def test_only_a_full_grid_is_called_every_combination_of_its_axes() -> None:
    axes = {"params": [1e3, 1e4], "seed": [0, 1]}
    grid, zipped = ({"axes": axes, "planned": [{"trial_id": str(i)} for i in range(count)]} for count in (4, 2))
    assert "every combination" in axes_table(grid).caption
    assert "every combination" not in axes_table(zipped).caption
