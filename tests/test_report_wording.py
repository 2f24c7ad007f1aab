"""What the page says where there is little to say: reasons once, no number that means nothing, and where to look."""

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, trial

from scalebench.analysis.predictions import PredictedQuantity, predicted
from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, trend_by
from scalebench.laws import fit
from scalebench.reporting.figures.frontier import frontier_figure
from scalebench.reporting.figures.runs import noise_figure
from scalebench.reporting.fit_tables import predictions_table, projected_cell, ranking_table
from scalebench.reporting.outcomes import Finding, findings_table
from scalebench.reporting.page import templates
from scalebench.reporting.quantities import percent
from scalebench.reporting.sections.base import as_typed
from scalebench.reporting.sentences import cost_sentence, law_sentence, series_sentences
from scalebench.reporting.strip import strip_table
from scalebench.reporting.svg import canvas
from scalebench.reporting.tables import COVERED, Table, number, word


def study_of(sizes, names=("",), **columns) -> StudyAnalysis:
    """A study of series ``names``, the later the worse, of two seeds without times or memory."""
    rng, rows = np.random.default_rng(0), []
    for place, name in enumerate(names):
        for size in sizes:
            rows += [trial(size, seed, rng) | {"optimizer": name or "adam", "place": place} for seed in (0, 1)]
    frame = pd.DataFrame(rows).assign(
        **dict.fromkeys(
            ("step_time_median_s", "memory_tracked_peak_bytes", "peak_rss_bytes", "flops_per_step", "checkpoint_bytes")
        )
    )
    frame["validation_loss_nats"] += 0.5 * frame.pop("place")
    definition = STUDY | {"axes": {"optimizer": [*names]} if len(names) > 1 else {}}
    return StudyAnalysis("synthetic", definition, frame.assign(**columns))


def macro(table: Table) -> str:
    return str(templates().get_template("macros.html.j2").module.data_table(table))  # type: ignore[attr-defined]


def test_a_reason_takes_the_places_of_the_numbers_that_are_not_there() -> None:
    rows = ((word("energy"), word("no counter"), COVERED, number(1)), (word("time"), number(1), number(2), number(3)))
    first, second = macro(Table("A.", ("", "a", "b", "c"), rows)).split("<tbody>")[1].split("</tr>")[:2]
    assert first.count("<td") == 2
    assert '<td class="why" colspan="2">no counter</td>' in first
    assert second.count("<td") == 3
    assert "colspan" not in second


def test_a_finding_leads_to_the_section_of_its_study() -> None:
    finding = Finding("larger is better", "a paper", "gain", 1.0, 0.5, 1.5, seeds=3)
    table = findings_table([("prune", finding), ("distill", finding)], ["study-prune", "study-distill"])
    assert '<a href="#study-distill">distill</a>' in macro(table)


@pytest.mark.parametrize(("value", "text"), [
    (1e6, "1e6"), (1.1e10, "1.1e10"), (2233079.6, "2233080"), (7208.43, "7208.43"), (512, "512"), (0.3, "0.3"),
    (True, "true"), ("text:A.txt", "text:A.txt"), (1893.0, "1893"),
])  # fmt: skip
def test_values_of_an_axis_are_as_in_a_study_file(value, text) -> None:
    assert setting_text(value) == text


def test_nothing_and_all_have_no_decimals() -> None:
    assert [percent(share, sign=False).replace("\u00a0", " ") for share in (0.0, 1.0, 0.5, 0.004)] == [
        "0 %", "100 %", "50.0 %", "0.40 %",
    ]  # fmt: skip


def test_a_command_begins_with_the_name_of_the_program() -> None:
    assert as_typed("app.py run gpu --jobs 4") == "scalebench run gpu --jobs 4"
    assert as_typed("scalebench run my/app.py") == "scalebench run my/app.py"


def test_a_series_of_one_size_is_said_to_be_one_and_no_more() -> None:
    (series,) = study_of([1000]).series
    assert law_sentence(series) == ""
    text = list(series_sentences(StudyAnalysis("s", STUDY, series.trials), lambda each: (law_sentence(each),)))
    assert len(text) == 1
    assert "the only size" in text[0]
    timed = study_of([1000], step_time_median_s=2e-3).series[0]
    printed = cost_sentence(timed, "step_time").replace("\u00a0", " ")
    assert printed == "A training step takes 2.00 ms at 1,000 parameters."


def test_two_sizes_carry_no_law_and_every_place_gives_one_reason() -> None:
    study = study_of([1000, 4000], ("a", "b"))
    table = predictions_table(study.series)
    ((names, _), (reason, _)), *others = table.rows
    assert (names, others) == ("a, b", [])
    assert "2 configurations" in reason
    strip = strip_table(study.series[0])
    assert strip.caption.endswith("Not projected, as no law could be fitted: validation loss.")
    assert "exponent" not in ranking_table(study.series).columns


def test_of_several_series_the_best_comes_first() -> None:
    lead, others, *rest = series_sentences(study_of([1000, 4000], ("worse", "worst")), lambda _: ())
    assert lead.startswith("Of 2 series the lowest validation loss at the largest size is that of worse (")
    assert "The highest is that of worst (" in others
    assert [text.partition(":")[0] for text in rest] == ["worse", "worst"]


def test_equal_refusals_of_a_frontier_are_one_sentence() -> None:
    study = study_of([1000, 4000], ("a", "b"))
    surfaces = [pd.Series({"label": name, "frontier": "two sizes are too few"}) for name in "ab"]
    study.__dict__["surfaces"] = tuple(surfaces)
    with canvas("a") as marks:
        assert frontier_figure(marks, study) == "No frontier of a; b: two sizes are too few."


def test_the_appendix_has_the_reason_of_the_first_screen() -> None:
    study = study_of([1000, 4000], ensemble_size=2, timing_exclusive=False)
    with canvas("a") as marks:
        reason = noise_figure(marks, study)
    assert isinstance(reason, str)
    assert "4 of 4 trials were trained together" in reason


def test_a_projection_without_an_interval_says_so() -> None:
    line = trend_by(fit({"x": np.array([1.0, 2, 4]), "y": np.array([3.0, 5, 9])}, "offset_linear"))
    without = predicted(Trend(line.fit, no_interval="not computed"), 8.0, "memory", "B")
    assert projected_cell(without)[0] == "17.0\u00a0B (no interval)"
    assert projected_cell(PredictedQuantity("data", "tokens", 8.0))[0] == "8"
