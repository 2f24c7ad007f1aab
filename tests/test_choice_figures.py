"""A study of one size under several choices: its figure, its sentences, and pictures beside the page."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_support import page_text, undrawn

from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.analysis.trials import PARAMETERS
from scalebench.reporting import conclusions, render
from scalebench.reporting.figures.loss import loss_figure
from scalebench.reporting.sections.choices import choice_sentences, choices_figure
from scalebench.reporting.svg import canvas
from scalebench.store import Results, new_attempt, write_json, write_record
from scalebench.workloads import columns_of

LOSSES = {"sgd": (3.30, 3.32), "muon": (2.50, 2.51), "adamw": (2.52, 2.515)}


def trials(losses: dict[str, tuple[float, float]], sizes: tuple[int, ...] = (12_000,)) -> pd.DataFrame:
    rows = [
        {"optimizer": name, "seed": seed, "params_non_embedding": size, "validation_loss_nats": loss}
        for size in sizes for name, by_seed in losses.items() for seed, loss in enumerate(by_seed)
    ]  # fmt: skip
    frame = pd.DataFrame({column.name: [None] * len(rows) for column in columns_of("training")})
    return frame.assign(
        study="o", trial_id=[f"{i:04x}" for i in range(len(rows))], status="ok", family="gpt",
        validation_loss_se_nats=0.01, step_time_median_s=1e-3, peak_rss_bytes=1e6, timing_exclusive=True,
        wall_time_s=2.0,
        **pd.DataFrame(rows),
    )  # fmt: skip


def analysis(frame: pd.DataFrame) -> StudyAnalysis:
    return StudyAnalysis("o", {}, frame)


def test_choices_stand_in_the_order_of_their_losses() -> None:
    with canvas("c") as marks:
        words = choices_figure(marks, analysis(trials(LOSSES)))
        labels = [label.get_text() for label in marks.axes.get_yticklabels()]
        top, bottom = marks.axes.transData.transform([(3, 0), (3, 2)])[:, 1]
    assert labels == ["muon", "adamw", "sgd"]
    assert top > bottom
    assert [row[0][0] for row in words.table.rows] == labels
    assert words.table.rows[2][2][1] == pytest.approx(3.31)


def test_sizes_that_grow_are_no_choices() -> None:
    with canvas("c") as marks:
        assert choices_figure(marks, analysis(trials(LOSSES, (1000, 2000)))) is None
        assert choices_figure(marks, analysis(trials({"sgd": (3.0, 3.1)}))) is None


def test_a_page_of_choices_names_the_lowest_and_draws_nothing_against_size() -> None:
    results = Results(trials(LOSSES), (), {"o": {}})
    first, near, *_ = conclusions(analyse(results, "o"))
    assert first.startswith("Of 3 choices at 12.0\u00a0k parameters the lowest validation loss is that of muon (2.50")
    assert "the highest that of sgd (3.31" in first
    assert near == "Within noise of the lowest: adamw."
    titles = re.findall(r"<h[23]>(.*?)</h[23]>", undrawn(results))
    assert titles[0] == "Validation loss of each choice"
    assert not [title for title in titles if "against size" in title]


@pytest.mark.slow
def test_a_wide_interval_leaves_the_losses_their_room() -> None:
    rising = {"plain": (3.6, 3.61), "residual": (3.6, 3.62)}
    frame = trials(rising, (1000, 2000, 4000, 8000))
    steps = np.log2(frame["params_non_embedding"] / 1000)
    frame["validation_loss_nats"] += steps * np.where(frame["optimizer"] == "plain", 0.1, -0.1)
    with canvas("c") as marks:
        words = loss_figure(marks, analysis(frame))
        low, high = marks.axes.get_ylim()
    losses = frame["validation_loss_nats"]
    assert low < losses.min()
    assert losses.max() < high
    assert high - low <= 3.01 * (losses.max() - losses.min())
    assert "cut off" in words.text


@pytest.mark.slow
def test_pictures_lie_beside_the_page_one_for_each_study(command, tmp_path: Path) -> None:
    for study, frame in (("o", trials(LOSSES)), ("grown", trials({"sgd": (3.0, 3.1)}, (1000, 2000, 4000)))):
        for row in frame.assign(study=study).to_dict("records"):
            row["trial_id"] = f"{study}{row['trial_id']}"
            attempt = new_attempt(tmp_path / "results" / study, row["trial_id"])
            write_record(attempt, {key: value for key, value in row.items() if value is not None})
        write_json(tmp_path / "results" / study / "study.json", {"name": study, "planned": []})
    code, out, _ = command("report", "results", "-o", "page/index.html", "--pictures")
    assert code == 0
    assert set(out.split()) == {"page/index.html", "page/o.png", "page/grown.png"}
    for name in ("o", "grown"):
        assert (tmp_path / "page" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


# --- studies that grow the data -----------------------------------------------------------------------------------


def more_data(seeds: int = 2) -> pd.DataFrame:
    amounts = [2**power for power in range(16, 22)]
    frame = trials({"adamw": (0.0,) * seeds}, tuple(amounts))
    tokens = frame["params_non_embedding"].astype(float)
    noise = np.random.default_rng(3).normal(0, 1e-3, len(frame))
    return frame.assign(
        params_non_embedding=20_000, tokens_seen=tokens, validation_loss_nats=2 + 60 * tokens**-0.4 + noise
    )


@pytest.mark.slow
def test_a_study_of_one_size_and_more_data_is_shown_against_data() -> None:
    results = Results(more_data(), (), {"o": {}})
    first, law, *_ = conclusions(analyse(results, "o"))
    assert "as the data grew from 65.5\u00a0k to 2.10\u00a0M tokens or samples seen" in first
    assert law.startswith("The fitted law is L = E + B·D^−β")
    exponent = float(re.search(r"β = ([\d.]+)", law).group(1))
    assert exponent == pytest.approx(0.4, abs=0.05)
    page = render(results)
    titles = re.findall(r"<h[23]>(.*?)</h[23]>", page)
    assert titles[0] == "Validation loss against data"
    assert not [title for title in titles if "against size" in title]
    assert "data D (tokens or samples seen)" in page
    assert "k parameters, seed" not in page
    two = Results(pd.concat([more_data(), trials(LOSSES).assign(study="p")], ignore_index=True), (), {"o": {}, "p": {}})
    (row, *_) = re.findall(
        r"<tr><th[^>]*><a[^>]*>o: tokens or samples seen.*?</tr>", re.sub(r">\s+<", "><", page_text(two))
    )
    assert row.count("—") == 2  # neither time per step nor memory grows with data


def test_a_law_without_intervals_says_so_once() -> None:
    frame = trials({"adamw": (3.0, 3.01)}, (1000, 4000, 16_000))
    frame["validation_loss_nats"] -= 0.2 * np.log2(frame["params_non_embedding"] / 1000)
    text = " ".join(conclusions(analysis(frame)))  # three sizes, three parameters
    assert text.count("zero degrees of freedom") == 1
    assert "α =" not in text  # what has no interval is no answer
    assert "interval no interval" not in text


def test_a_trial_that_stopped_early_does_not_make_a_study_of_data() -> None:
    frame = trials(LOSSES).assign(tokens_seen=1e5)
    frame.loc[0, ["status", "tokens_seen"]] = "diverged", 5e3
    assert analysis(frame).x is PARAMETERS


def test_a_choice_without_others_is_not_both_lowest_and_highest() -> None:
    (sentence,) = choice_sentences(analysis(trials({"adamw": (2.52, 2.515)})).series)
    assert sentence == "The validation loss at 12.0\u00a0k parameters is 2.518\u00a0±\u00a00.010 nats."
