"""The section of a training study against a synthetic one whose law is known."""

from __future__ import annotations

import html
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_support import ALPHA, SIZES, E, all_planned, broken, changed, page_text, recorded, synthetic

from scalebench.analysis.study import analyse
from scalebench.analysis.trials import PARAMETERS, best_over, prepare
from scalebench.laws import fit
from scalebench.reporting.figures.runs import curves_figure
from scalebench.reporting.inline_svg import to_svg
from scalebench.reporting.svg import canvas
from scalebench.reporting.views import Caption
from scalebench.store import Results


@pytest.fixture(scope="module")
def results(synthetic_folder: Path) -> Results:
    return recorded(synthetic_folder)


@pytest.fixture(scope="module")
def page(synthetic_folder: Path) -> str:
    return (synthetic_folder / "index.html").read_text()


def test_every_trial_has_a_titled_mark(page: str) -> None:
    drawing = re.search(r"<svg[^>]*study-synthetic-loss-title.*?</svg>", page, re.DOTALL)
    assert drawing
    titles = [html.unescape(title) for title in re.findall(r"<use[^>]*>\s*<title>([^<]*)", drawing.group())]
    assert sum(", seed " in title for title in titles) == 12
    assert sum("mean at" in title for title in titles) == 5
    assert sum("held-out size at" in title for title in titles) == 1


def test_verdict_numbers(page: str, results: Results) -> None:
    """The loss of smallest and largest size and the naive error, computed here from the rows themselves."""
    loss = results.frame["validation_loss_nats"].to_numpy().reshape(6, 2)
    mean, error = loss.mean(1), np.sqrt(loss.var(1, ddof=1) / 2 + 0.003**2)
    lead = html.unescape(re.search(r'<p class="verdict">(.*?)</p>', page, re.DOTALL).group(1))  # type: ignore[union-attr]
    for i in (0, -1):
        assert f"{mean[i]:.4f} ± {error[i]:.4f}" in lead.replace("\u00a0", " ")
    assert f"{(mean[0] - mean[-1]) / np.hypot(error[0], error[-1]):.0f} combined standard errors" in lead
    assert "it fell at every size" in lead
    assert f"errs by {100 * (mean[-2] / mean[-1] - 1):+.1f}\u00a0%" in page


def test_verdict_recovers_the_truth(page: str) -> None:
    text = html.unescape(page)
    sentence = re.search(
        r"E = .*? \(95\u00a0% interval ([\d.]+) to ([\d.]+)\), α = .*? \(95\u00a0% interval ([\d.]+) to ([\d.]+)\)",
        text,
    )
    assert sentence
    low_e, high_e, low_alpha, high_alpha = map(float, sentence.groups())
    assert low_e <= E <= high_e
    assert low_alpha <= ALPHA <= high_alpha
    slope = float(re.search(r"plus ([\d.]+)\u00a0ns per parameter", text).group(1))  # type: ignore[union-attr]
    assert slope == pytest.approx(60, rel=0.03)
    assert re.search(r"2\.00\u00a0MiB plus 18\.00?\u00a0B per parameter", text)


def test_largest_size_is_predicted_from_the_others(page: str, results: Results) -> None:
    frame = results.frame
    points = pd.DataFrame({"params": frame["params_non_embedding"], "loss": frame["validation_loss_nats"]})
    predicted = float(fit(points[points["params"] < SIZES[-1]]).predict(params=[SIZES[-1]])[0])
    measured = points["loss"].iloc[-2:].mean()
    expected = f"predicted {predicted:.3f} nats for the largest, measured {measured:.3f}"
    assert expected in page
    assert f"{100 * (predicted / measured - 1):+.2f}".replace("-", "−") + "\u00a0%" in page


def test_outliers_are_counted(page: str) -> None:
    rows = re.findall(r"<tr>(?:(?!</tr>).)*seed (?:(?!</tr>).)*>280</td>(?:(?!</tr>).)*</tr>", page, re.DOTALL)
    assert len(rows) == 12
    assert all(re.findall(r">([^<]*)</td>", row)[-1] == "1" for row in rows)


@pytest.mark.slow
def test_invalid_trials_are_in_no_fit(results: Results) -> None:
    wild = changed(results, 0, validation_loss_nats=0.001, step_time_median_s=100.0, invalid_reason="negative time")
    clean = Results(results.frame.drop(index=0), (), results.studies)
    sentence = re.compile(r"<li>(The fitted law|Fitted to the smaller|A training step)(.*?)</li>")
    sentences = sentence.findall(page_text(wild))
    assert sentences
    assert sentences == sentence.findall(page_text(clean))


@pytest.mark.slow
def test_shared_machine_stays_out_of_timing(results: Results) -> None:
    text = page_text(changed(results, 11, step_time_median_s=1.0, timing_exclusive=False), "step-time")
    drawing = re.search(r"<svg[^>]*study-synthetic-step-time-title.*?</svg>", text, re.DOTALL)
    assert drawing
    assert "1.00\u00a0s" in drawing.group()
    sentence = re.compile(r"<li>A training step (.*?)</li>")
    sentences = sentence.findall(text)
    assert sentences
    assert sentences == sentence.findall(page_text(replace(results, frame=results.frame.drop(index=11))))


@pytest.mark.slow
def test_bound_is_said(results: Results) -> None:
    """A pure power law drives E to its lower bound."""
    frame = results.frame.assign(validation_loss_nats=4 * results.frame["params_non_embedding"] ** -0.05)
    assert "at its bound" in page_text(Results(frame, (), results.studies))


@pytest.mark.slow
def test_a_rise_is_said(results: Results) -> None:
    risen = changed(changed(results, 6, validation_loss_nats=2.5), 7, validation_loss_nats=2.5)
    assert "it did not fall at 24.6\u00a0k" in page_text(risen)


def test_refusal_stands_in_place_of_the_number(results: Results) -> None:
    assert "No law could be fitted: " in page_text(broken(results)["two sizes"])


@pytest.mark.slow
def test_series_differ_in_colour_and_marker(results: Results) -> None:
    faster = results.frame.assign(
        implementation="sdpa", step_time_median_s=results.frame["step_time_median_s"] / 2, attempt_dir=None,
        trial_id="b" + results.frame["trial_id"].str[1:],
    )  # fmt: skip
    text = page_text(all_planned(pd.concat([results.frame, faster], ignore_index=True)), "step-time")
    assert "eager: Validation loss" in text
    assert "sdpa: Validation loss" in text
    drawing = re.search(r"<svg[^>]*study-synthetic-step-time-title.*?</svg>", text, re.DOTALL).group()  # type: ignore[union-attr]
    groups = re.findall(r'<path id="(f[0-9a-f]{8}-\d+)" d="([^"]+)"[^>]*style="[^"]*stroke: (var\(--s\d\))', drawing)
    assert len({color for *_, color in groups}) == 2
    assert len({shape for _, shape, _ in groups}) >= 2


def test_best_over_keeps_the_best_and_names_an_edge() -> None:
    """At 10 parameters 0.1 wins by its mean, at 20 the edge 0.3 does."""
    losses = {(10, 0.01): (3, 3), (10, 0.1): (2.1, 2.3), (10, 0.3): (2.0, 2.6), (20, 0.01): (3, 3), (20, 0.1): (2, 2),
              (20, 0.3): (1, 1)}  # fmt: skip
    rows = [
        {"trial_id": f"{size}{rate}{seed}", "status": "ok", "params": size, "learning_rate": rate, "seed": seed,
         "validation_loss_nats": loss}
        for (size, rate), values in losses.items() for seed, loss in enumerate(values)
    ]  # fmt: skip
    best, notes = best_over(prepare(pd.DataFrame(rows)), ["learning_rate"], PARAMETERS)
    assert best.groupby("params")["learning_rate"].unique().map(list).to_dict() == {10: [0.1], 20: [0.3]}
    assert len(notes) == 1
    assert "0.3, is the largest tried" in notes[0]
    _, notes = best_over(prepare(pd.DataFrame(rows)), ["seed"], PARAMETERS)  # the first of two at both sizes
    assert [note.partition("; ")[0] for note in notes] == [
        "seed: the best value at 2 of 2 sizes, 0, is the smallest tried"
    ]


def test_names_and_absent_values_are_tuned_and_have_no_edge() -> None:
    """The rank of a trial that adapts all weights is null."""
    rows = [
        {"trial_id": f"{size}{method}{rank}", "status": "ok", "params": size, "method": method, "rank": rank,
         "decay": method == "full", "validation_loss_nats": loss}
        for size, best in ((10, "full"), (20, "lora"))
        for method, rank, loss in (("full", None, 1 + (best != "full")), ("lora", 2, 1.5), ("lora", 4, 1.6))
    ]  # fmt: skip
    best, notes = best_over(prepare(pd.DataFrame(rows)), ["method", "rank", "decay"], PARAMETERS)
    assert best.groupby("params")["trial_id"].unique().map(list).to_dict() == {10: ["10fullNone"], 20: ["20lora2"]}
    assert [note.partition("; ")[0] for note in notes] == [
        "rank: the best value at 20 parameters, 2, is the smallest tried"
    ]


def test_a_trial_with_an_infinite_loss_keeps_the_curves(tmp_path: Path) -> None:
    recorded = synthetic(tmp_path)
    path = Path(recorded.frame["attempt_dir"][3]) / "steps.parquet"
    steps = pd.read_parquet(path)
    steps.loc[steps["step"] >= 200, "train_loss_nats"] = np.inf
    steps.to_parquet(path)
    study = analyse(recorded, "synthetic")
    with canvas("c") as marks:
        caption = curves_figure(marks, study)
        to_svg(marks, "c", "curves", "text")
        curves = [line.get_ydata() for line in marks.axes.lines if len(line.get_ydata()) > 1]
    assert isinstance(caption, Caption)
    assert len(curves) == len(caption.table.rows) == 12
    assert sorted(len(curve) for curve in curves)[1:] == [100] * 11
