"""One number for one question: report and `predict` agree, and a study is fitted once however often it is read."""

from __future__ import annotations

import html
import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from command_support import BATCH_TOKENS, SIZES, STEPS, planted, write_study

from scalebench.analysis import trends
from scalebench.analysis.predictions import predict_loss_at, predict_size
from scalebench.analysis.recipe import Recipe
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.analysis.trends import COST_LAWS, choose_cost_law
from scalebench.analysis.trials import training_flops
from scalebench.laws import Fit
from scalebench.laws.intervals.bootstrap import bootstrap
from scalebench.reporting import conclusions, picture, write
from scalebench.reporting.figures.runs import compute_figure
from scalebench.reporting.fit_tables import parameters_table
from scalebench.reporting.page import render_page
from scalebench.reporting.quantities import NO_SPREAD, bounded, quantity
from scalebench.reporting.sections.common import counts
from scalebench.reporting.svg import canvas
from scalebench.store import read_results, write_json

FACTORS = (2, 4, 10)
UNITS = {"validation_loss": "", "step_time": "s", "memory": "B", "training_time": "s", "compute": "FLOP"}


def rows() -> list[dict[str, object]]:
    """Seven sizes, two seeds; memory bends: 1 MiB + 900 N^0.7 bytes."""
    bent = planted(study="bent")
    for row in bent:
        row["memory_tracked_peak_bytes"] = 2.0**20 + 900 * float(str(row["params_non_embedding"])) ** 0.7
    return bent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("results") / "bent", rows())


@pytest.fixture(scope="module")
def study(folder: Path) -> StudyAnalysis:
    return analyse(read_results(folder), "bent")


@pytest.fixture(scope="module")
def page(study: StudyAnalysis) -> str:
    return text_of(render_page([study]))


def text_of(page: str) -> str:
    return html.unescape(page).replace("\u00a0", " ")


def table(page: str, caption: str) -> list[list[str]]:
    """Return the cells of the table with a caption, one list per row."""
    (body,) = re.findall(rf"<caption>(?:<span>)?{re.escape(caption)}.*?</table>", page, re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", body.partition("<tbody>")[2], re.DOTALL)
    cells = (re.findall(r"<t[hd].*?</t[hd]>", row, re.DOTALL) for row in rows)
    return [[" ".join(re.sub(r"<[^>]*>", "", cell).split()) for cell in row] for row in cells]  # as a browser shows it


def shown(answer: dict[str, float], unit: str) -> str:
    value, interval = bounded(answer["value"], answer["low"], answer["high"], unit)
    return (value if interval == NO_SPREAD else f"{value} ({interval})").replace("\u00a0", " ")


@pytest.mark.slow
def test_every_prediction_of_the_report_is_that_of_predict(command, folder: Path, page: str) -> None:
    cells = table(page, "Projections for a new run")
    assert [row[1] for row in cells] == [f"×{factor}" for factor in FACTORS]
    losses = {}
    for factor, (size, _, *predictions) in zip(FACTORS, cells, strict=True):
        params = factor * max(SIZES)
        answers = json.loads(command("predict", folder, "--params", params, "--json")[1])["answers"]
        losses[quantity(params).replace("\u00a0", " ") + " parameters"] = answers["validation_loss"]["value"]
        assert size == quantity(params).replace("\u00a0", " ")
        assert {answers[name]["interval"] for name in UNITS} == {"new run"}
        assert predictions[: len(UNITS)] == [shown(answers[name], unit) for name, unit in UNITS.items()]
    ((size, value),) = re.findall(r"<title>projected at ([^:<]*): ([\d.]+) nats", page)
    assert size == f"{quantity(4 * max(SIZES))} parameters".replace("\u00a0", " ")
    assert value == f"{losses[size]:.3f}"


@pytest.mark.slow
def test_next_has_the_loss_and_the_interval_of_the_report(command, folder: Path, page: str) -> None:
    size = 4 * max(SIZES)
    (loss,) = (row[2] for row in table(page, "Projections for a new run") if row[1] == "×4")
    design = json.loads(command("next", folder, "--predict", f"params={size}", "--json")[1])
    value, interval = bounded(design["predicted"], *design["interval_new_run"])
    assert f"{value} ({interval})" == loss
    printed = " ".join(command("next", folder, "--predict", f"params={size}")[1].split())
    assert f": {value}, 95 % interval of a new run {interval} " in printed


@pytest.mark.slow
def test_costs_follow_the_law_that_predicted_the_larger_sizes(study: StudyAnalysis) -> None:
    (series,) = study.series
    laws = {name: getattr(series, name).fit.law.name for name in ("step_time", "memory", "flops", "checkpoint")}
    assert laws == {"step_time": "offset_linear", "memory": "offset_power", "flops": "offset_linear",
                    "checkpoint": "offset_linear"}  # fmt: skip
    assert series.memory.fit.parameters["p"] == pytest.approx(0.7, rel=1e-3)
    sentence = next(line for line in conclusions(study) if "of the tracked tensors" in line)
    assert "·N^p with p = 0.70" in sentence
    (exponent,) = [
        row[2][0] for row in parameters_table(study.series).rows if row[0][0] == "memory" and row[1][0] == "p"
    ]
    assert float(exponent) == pytest.approx(0.7, rel=0.01)  # without a unit
    memory = {answer.quantity: answer for answer in predict_size(series, 3e6).quantities}["memory"]
    assert memory.value == pytest.approx(2.0**20 + 900 * 3e6**0.7, rel=1e-3)
    assert "offset_power" in memory.basis


@pytest.mark.parametrize(("bend", "noise", "expected"), [(1.0, 0.0, 0), (1.0, 0.02, 0), (0.6, 0.0, 1), (0.6, 0.01, 1)])
def test_the_simpler_law_is_chosen_unless_the_other_predicts_better(bend: float, noise: float, expected: int) -> None:
    sizes = np.repeat(np.geomspace(1e3, 1e6, 7), 2)
    noisy = (1e6 + 5_000 * sizes**bend) * np.exp(noise * np.random.default_rng(2).standard_normal(len(sizes)))
    law, reason, _ = choose_cost_law(pd.DataFrame({"x": sizes, "y": noisy}))
    assert law == COST_LAWS[expected]
    assert law in reason
    assert "%" in reason


@pytest.mark.slow
def test_the_irreducible_loss_has_one_interval(command, study: StudyAnalysis, folder: Path, page: str) -> None:
    document = json.loads(command("fit", folder, "--law", "power", "--json")[1])
    low, high = document["intervals"]["E"]
    value, interval = bounded(document["parameters"]["E"], low, high)
    assert study.series[0].loss_all.interval("E") == (low, high)
    parameters = [row for row in table(page, "Fitted parameters.") if row[:2] == ["loss", "E"]]
    assert [row[2:4] for row in parameters] == [[value, interval]]
    stated = re.compile(r"\bE = ([\d.]+)(?: nats,)? \(?95 % interval ([\d.]+ to \d+\.\d+)")
    assert stated.findall(text_of(" ".join(conclusions(study)))) == [(value, interval)]
    captions = [pair for text in re.findall(r"<figcaption>([^<]*)", page) for pair in stated.findall(text)]
    assert captions == [(value, interval)]  # that of the profile
    assert set(stated.findall(page)) == {(value, interval)}


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
def test_a_study_is_fitted_once_for_verdict_page_and_picture(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = analyse(read_results(folder), "bent")
    monkeypatch.setattr("scalebench.reporting.views.to_svg", lambda *_: "")
    fits: Counter[tuple[object, ...]] = Counter()
    calls: Counter[tuple[str, int]] = Counter()
    keep: list[Fit] = []  # so that no id is used twice

    def counted_fit(points: pd.DataFrame, law: str) -> Fit:
        fits[law, tuple(points["x"]), tuple(points["y"])] += 1
        return real_fit(points, law=law)

    def counted(name: str, method: Callable[..., object]) -> Callable[..., object]:
        def call(self: Fit, *arguments: object, **options: object) -> object:
            calls[name, id(self)] += 1
            keep.append(self)
            return method(self, *arguments, **options)

        return call

    real_fit = trends.fit
    monkeypatch.setattr(trends, "fit", counted_fit)
    for name in ("backtest", "profile"):
        monkeypatch.setattr(Fit, name, counted(name, getattr(Fit, name)))
    monkeypatch.setattr(sys.modules["scalebench.laws.fit"], "bootstrap", counted("bootstrap", bootstrap))
    conclusions(study)
    write([study], tmp_path / "page.html")
    after_page = fits.total(), calls.total()
    picture(study, tmp_path / "loss.png")
    conclusions(study)
    write([study], tmp_path / "again.html")
    assert set(fits.values()) == {1}
    assert len(fits) == 7  # loss of every size and of all but the largest, step time twice, memory, FLOPs, checkpoint
    assert {name for name, _ in calls} == {"backtest", "bootstrap", "profile"}
    assert set(calls.values()) == {1}
    assert (fits.total(), calls.total()) == after_page


def test_compute_of_a_continued_run_is_that_of_the_whole_chain() -> None:
    """100 steps, 50 continued after 100, 50 fine-tuned: 10 FLOP and 4 tokens a step; a record without the columns."""
    rows = pd.DataFrame(
        {"steps": [100, 50, 50], "first_step": [0, 100, 0], "parent_flops": [None, 1000, 1000],
         "flops_per_step": 10, "tokens_seen": [400, 600, 200], "params_non_embedding": 7}
    )  # fmt: skip
    assert training_flops(rows).tolist() == [1000, 1500, 500]
    assert Recipe.of(rows).per_step == 4
    old = rows.drop(columns=["first_step", "parent_flops"])
    assert training_flops(old).tolist() == [1000, 500, 500]
    unknown = training_flops(rows.drop(columns="parent_flops"))
    assert unknown.isna().tolist() == [False, True, False]


def test_the_figure_of_compute_counts_the_parents_of_continued_runs() -> None:
    rows = [row | {"first_step": 500, "parent_flops": 1e15} for row in planted()]
    with canvas("x") as marks:
        compute_figure(marks, StudyAnalysis("continued", {}, pd.DataFrame(rows)))
        (line,) = marks.axes.lines[-1:]
    own = [STEPS * (1e6 + 6 * size * BATCH_TOKENS) for size in SIZES]
    assert line.get_xdata() == pytest.approx([1e15 + flops for flops in own])


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
@pytest.mark.parametrize("old_file", [False, True])
def test_trials_that_the_latest_run_did_not_plan_are_counted_and_in_no_fit(
    command, tmp_path: Path, *, old_file: bool
) -> None:
    """Leftovers of another setting have a third seed and a loss of 9 at every size."""
    other = [row | {"trial_id": f"o{row['trial_id']}", "validation_loss_nats": 9.0} for row in planted()[::2]]
    clean, mixed = write_study(tmp_path / "clean", planted()), write_study(tmp_path / "planted", planted() + other)
    ids = [row["trial_id"] for row in planted()]
    definition = json.loads((mixed / "study.json").read_text())
    write_json(mixed / "study.json", definition | {"planned": ids if old_file else [{"trial_id": i} for i in ids]})

    study = analyse(read_results(mixed), "planted")
    assert (len(study.trials), study.planned, study.missing, study.left_out) == (14, 14, (), 7)
    assert counts(study).startswith("14 trials planned: 14 ok. 7 more trials of other settings are")
    options = ("--params", "3e6", "--json")
    code, out, err = command("predict", mixed, *options)
    assert (code, out) == command("predict", clean, *options)[:2]
    assert err.startswith("7 more trials of other settings are in this folder and left out")
    fitted = command("fit", mixed, "--law", "power", "--json", "--bootstrap", "20")
    assert json.loads(fitted[1])["n_points"] == 14
    assert "7 more trials of other settings" in fitted[2]
    assert len(read_results(mixed).frame) == 21  # export and status read all


def test_a_folder_of_unplanned_trials_alone_says_so(command, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "planted", planted())
    write_json(folder / "study.json", {"planned": [{"trial_id": "absent"}]})
    code, _, err = command("predict", folder, "--params", "3e6")
    assert (code, err.count("\n")) == (2, 1)
    assert "14 more trials of other settings" in err
    assert analyse(read_results(folder), "planted").missing == ("absent",)


def test_two_folders_of_one_study_plan_together(tmp_path: Path) -> None:
    """The parts of a study that ran on two machines are read as one study."""
    parts = planted()[:6], planted()[6:]
    for part, rows in enumerate(parts):
        folder = write_study(tmp_path / str(part) / "planted", rows)
        write_json(folder / "study.json", {"planned": [{"trial_id": row["trial_id"]} for row in rows]})
    study = analyse(read_results(tmp_path / "0", tmp_path / "1"), "planted")
    assert (len(study.trials), study.planned, study.left_out) == (14, 14, 0)


def test_predict_from_comparisons_alone_is_one_line(command, tmp_path: Path) -> None:
    (tmp_path / "results" / "compare-norm" / "runs").mkdir(parents=True)
    code, _, err = command("predict", "results", "--params", "3e6")
    assert (code, err.count("\n")) == (2, 1)
    assert "results: there are no trials here" in err


@pytest.mark.parametrize(
    ("fit", "held_out"), [({"holdout": "none"}, False), ({"holdout": "largest"}, True), ({}, True)]
)
def test_a_study_without_hold_out_fits_all_sizes(fit: dict[str, str], held_out: bool) -> None:
    (series,) = StudyAnalysis("s", {"fit": fit}, pd.DataFrame(planted())).series
    assert series.holds_out is held_out


@pytest.mark.usefixtures("few_refits")
def test_an_analysis_keeps_the_columns_of_its_trials() -> None:
    """A study of one size that grows the data names its x axis and leaves the sizes alone."""
    grown = pd.DataFrame(
        [row | {"params_non_embedding": 5_000, "tokens_seen": row["params_non_embedding"]} for row in planted()]
    )
    study = StudyAnalysis("grown", {}, grown)
    (series,) = study.series
    assert set(study.trials["params_non_embedding"]) == {5_000}
    assert series.sizes["size"].tolist() == list(SIZES)
    assert series.x.column != "params_non_embedding"
    loss = predict_loss_at(series, 3e6)
    assert loss.value == pytest.approx(1.5 + 20 * 3e6**-0.3, rel=0.01)
    both = predict_size(series, 5_000, 3e6).quantities[0]
    assert (both.value, both.low, both.high) == (loss.value, loss.low, loss.high)
    assert "every trial has 5000 parameters" in predict_size(series, 10_000, 3e6).quantities[0].reason
