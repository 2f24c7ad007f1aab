"""The page as a whole: structure, what it loads, escaping, embedded data, bytes, and damaged results."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_support import (
    HOSTILE,
    SIZES,
    STUDY,
    Outline,
    all_planned,
    broken,
    changed,
    page_text,
    recorded,
    synthetic,
    trial,
    write_steps,
)

from scalebench.analysis.study import analyse
from scalebench.reporting import conclusions, render, report
from scalebench.store import Results, new_attempt, read_results, write_json, write_record

LITTLE = ("no study", "no rows", "few columns", "all null")  # their pages take less than a third of a second


@pytest.fixture(scope="module")
def results(synthetic_folder: Path) -> Results:
    return recorded(synthetic_folder)


@pytest.fixture(scope="module")
def page(synthetic_folder: Path) -> str:
    return (synthetic_folder / "index.html").read_text()


def test_structure(page: str) -> None:
    outline = Outline(page)
    assert len(outline.all("h1")) == 1
    figures, drawings = outline.all("figure"), [svg for svg in outline.all("svg") if svg.get("role") == "img"]
    assert len(figures) == len(drawings) == 13
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in drawings:
        assert set(str(svg["aria-labelledby"]).split()) <= set(ids)
    for figure in re.findall(r"<figure[ >].*?</figure>", page, re.DOTALL):
        assert re.search(r"<desc id=[^>]*>[^<]{20,}", figure)
        assert '<details class="data">' in figure
        assert "<tbody>" in figure


def test_nothing_is_loaded_from_anywhere(page: str) -> None:
    assert "http:" not in page
    assert "https:" not in page
    assert "url(http" not in page
    for _, attributes in Outline(page).elements:
        assert "src" not in attributes
        assert str(attributes.get("href") or "#").startswith(("#", "data:"))
    policy = next(m for m in Outline(page).all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert str(policy["content"]).startswith("default-src 'none';")


def test_references_inside_drawings_resolve(page: str) -> None:
    ids = set(re.findall(r'\bid="([^"]+)"', page))
    assert set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page)) <= {(i, "") for i in ids} | {("", i) for i in ids}


def test_drawings_take_every_colour_from_the_page(page: str) -> None:
    for svg in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        assert not re.search(r"#[0-9a-fA-F]{3,8}\b(?=[;\"])", re.sub(r'href="#[^"]+"', "", svg))
        assert "var(--ink)" in svg
        assert "DejaVu" not in svg


def test_size_budget(page: str, results: Results) -> None:
    data = len(results.frame.to_csv(index=False)) + len(results.frame.to_json(orient="records", indent=1))
    assert len(page.encode()) <= 300_000 + 4 / 3 * data


@pytest.mark.slow
@pytest.mark.usefixtures("few_refits")
def test_same_results_same_bytes(results: Results, page: str) -> None:
    assert render(results) == page


def test_rows_travel_in_the_page(page: str, results: Results) -> None:
    links = {str(a["download"]): str(a["href"]) for a in Outline(page).all("a") if "download" in a}
    contents = {name: base64.b64decode(uri.partition("base64,")[2]) for name, uri in links.items()}
    assert set(links) == {"synthetic.csv", "synthetic.json"}
    for content in contents.values():
        assert hashlib.sha256(content).hexdigest() in page
    expected = results.frame.drop(columns="attempt_dir")
    read = pd.read_csv(io.BytesIO(contents["synthetic.csv"]), dtype={"trial_id": str, "git_commit": str})
    both = ["trial_id", "validation_loss_nats", "step_time_median_s", "status", "seed"]
    pd.testing.assert_frame_equal(read[both], expected[both], check_dtype=False)
    assert list(read.columns) == list(expected.columns)
    rows = json.loads(contents["synthetic.json"])
    assert [row["trial_id"] for row in rows] == expected["trial_id"].tolist()
    assert rows[0]["floor_nats"] is None
    np.testing.assert_allclose([row["step_time_median_s"] for row in rows], expected["step_time_median_s"], rtol=1e-12)


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
def test_everything_is_escaped(results: Results) -> None:
    study = STUDY | {
        "name": HOSTILE, "title": HOSTILE, "command": HOSTILE, "study_toml": HOSTILE,
        "planned": [HOSTILE, *results.frame["trial_id"]],
        "axes": {HOSTILE: [HOSTILE, "b"], "implementation": ["eager", HOSTILE]},
    }  # fmt: skip
    hostile = changed(results, 0, status="failed", error_class=HOSTILE, error_message=HOSTILE)
    frame = hostile.frame.assign(study=HOSTILE, peak_source=HOSTILE, device_name=HOSTILE)
    frame.loc[::2, "implementation"] = HOSTILE
    text = render(Results(frame, (HOSTILE,), {HOSTILE: study}))
    assert "<script>alert" not in text
    assert text.count("<script>") == 1
    assert not Outline(text).all("b")
    assert html.escape(HOSTILE) in text or html.escape(HOSTILE).replace("&quot;", "&#34;") in text


@pytest.mark.usefixtures("few_refits")
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in LITTLE else pytest.mark.slow) for case in broken(synthetic())]
)
def test_renders_whatever_is_missing(case: str, results: Results) -> None:
    text = render(broken(results)[case])
    assert "<h1>" in text
    assert ">nan" not in text.lower()
    assert "None" not in re.sub(r"base64,[\w+/=]+", "", text)


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
def test_many_trials_stay_below_the_cap(results: Results) -> None:
    """With 1,320 trials the page thins marks, cuts tables and leaves a download out, and says each of these."""
    copies = [results.frame.assign(trial_id=f"{i:04x}" + results.frame["trial_id"], seed=i) for i in range(110)]
    text = render(all_planned(pd.concat(copies, ignore_index=True).assign(attempt_dir=None)))
    assert len(text.encode()) < 5_000_000
    assert "1,000 of 1,320 rows, spread evenly; the exported CSV has all." in text
    assert "marks are thinned evenly" in text
    assert "too large to embed as JSON" in text


@pytest.mark.usefixtures("few_refits")
@pytest.mark.slow
def test_several_studies_in_one_page(results: Results) -> None:
    other = results.frame.assign(study="other")
    studies = {**results.studies, "other": STUDY | {"title": "The other one"}}
    text = page_text(Results(pd.concat([results.frame, other], ignore_index=True), (), studies), "loss", "step-time")
    outline = Outline(text)
    assert [a["href"] for a in outline.all("a")][1:3] == ["#study-synthetic", "#study-other"]
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(outline.all("h1")) == 1


@pytest.mark.slow
def test_report_from_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, study_dir = np.random.default_rng(1), tmp_path / "results" / "synthetic"
    for size in SIZES:
        row = trial(size, 0, rng)
        attempt = new_attempt(study_dir, str(row["trial_id"]))
        write_steps(attempt, row, rng)
        row.pop("attempt_dir")
        write_record(attempt, row)
    write_json(study_dir / "study.json", STUDY | {"planned": []})
    attempt = new_attempt(study_dir, "ffff")
    (attempt / "record.json").write_text('{"schema": 1, "sta')
    monkeypatch.setattr("scalebench.reporting.sections.common.draw_figures", lambda *_: ())  # half of the time
    output = report([tmp_path / "results"], tmp_path / "out" / "index.html")
    text = html.unescape(output.read_text())
    assert output.read_text() == render(read_results(tmp_path / "results"))
    assert "×64" in text
    assert "not readable as JSON" in text
    assert "6 recorded trials: 6 ok." in text
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.usefixtures("few_refits")
def test_verdict_alone_is_that_of_the_page(page: str, results: Results) -> None:
    lead, *others = conclusions(analyse(results, "synthetic"))
    assert html.escape(lead, quote=False) in page
    assert len(others) == 5
    assert all(html.escape(sentence).replace("&#x27;", "&#39;") in page for sentence in others)
