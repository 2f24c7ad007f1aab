"""The report against a synthetic study whose truth is known, and against results that are broken or hostile."""

import base64
import hashlib
import html
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from scalebench.analysis.study import analyse
from scalebench.analysis.trials import PARAMETERS, best_over, prepare
from scalebench.laws import fit
from scalebench.reporting import render, report, verdict
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.store import Results, new_attempt, read_results, write_json, write_record

SIZES = (1_536, 4_096, 10_240, 24_576, 49_152, 98_304)
E, A, ALPHA = 1.4, 6.0, 0.28
HOSTILE = '<script>alert(1)</script>"]]><b>&amp;'
STUDY = {
    "name": "synthetic",
    "title": "Synthetic study of a known law",
    "axes": {"params": list(SIZES), "seed": [0, 1]},
    "fit": {"law": "power", "holdout": "largest", "best_over": []},
    "command": "scalebench run studies/synthetic.toml",
    "study_toml": 'schema = 1\nname = "synthetic"\n',
}


def trial(size: int, seed: int, rng: np.random.Generator) -> dict[str, object]:
    """One record: the law with noise of 0.004 nats, 3 ms + 60 ns a parameter, 2 MiB + 18 bytes a parameter."""
    step_time, memory = 3e-3 + 60e-9 * size * rng.normal(1, 0.01), 2.0**21 + 18 * size
    parts = {"parameters": 4 * size, "gradients": 0, "optimizer": 8 * size, "activations": 2**21, "other": 6 * size}
    return {
        "study": "synthetic", "trial_id": f"{size:08x}{seed:08x}", "attempt": "attempt-1", "status": "ok",
        "error_class": None, "error_message": None, "stop_step": 300, "family": "gpt", "params": size + 16_384,
        "params_non_embedding": size, "steps": 300, "batch_size": 16, "learning_rate": 0.008, "seed": seed,
        "implementation": "eager", "optimizer": "adamw", "precision": "float32", "device_kind": "cpu",
        "validation_loss_nats": E + A * size**-ALPHA + rng.normal(0, 0.004), "validation_loss_se_nats": 0.003,
        "train_loss_nats": 2.0, "floor_nats": None, "step_time_median_s": step_time,
        "step_time_p20_s": 0.97 * step_time, "step_time_p80_s": 1.06 * step_time,
        "timing_method": "perf_counter_ns", "timing_exclusive": True,
        "tokens_per_s": 2048 / step_time, "flops_per_step": 6.0 * size * 2048,
        "achieved_flops_per_s": 6.0 * size * 2048 / step_time, "mfu": 6.0 * size * 2048 / step_time / 6e11,
        "peak_flops_per_s": 6e11, "peak_source": "measured matrix product", "peak_memory_allocated_bytes": None,
        "memory_tracked_peak_bytes": memory, "peak_rss_bytes": 4e8 + size,
        **{f"memory_{part}_bytes": value for part, value in parts.items()},
        **{f"memory_at_peak_{part}_bytes": value for part, value in parts.items()},
        "machine_id": "m1", "device_name": "a processor", "cpu_model": "a processor", "threads": 1,
        "started_at": "2026-01-01T00:00:00Z", "git_commit": "0" * 40, "git_dirty": False, "python_version": "3.11.9",
        "torch_version": "2.13.0", "platform": "Linux", "invalid_reason": None, "attempt_dir": None,
    }  # fmt: skip


def write_steps(folder: Path, row: dict[str, object], rng: np.random.Generator) -> None:
    """Write 300 steps, 20 of them warm-up, one of them ten times as slow as the rest."""
    folder.mkdir(parents=True, exist_ok=True)
    times = float(row["step_time_median_s"]) * rng.lognormal(0, 0.03, 300)  # type: ignore[arg-type]
    times[150] *= 10
    loss = float(row["validation_loss_nats"]) + 3.4 * np.exp(-np.arange(300) / 40) + rng.normal(0, 0.02, 300)  # type: ignore[arg-type]
    steps = {"step": np.arange(300), "train_loss_nats": loss, "step_time_s": times, "data_time_s": 1e-5}
    pd.DataFrame(steps).assign(warm=np.arange(300) >= 20).to_parquet(folder / "steps.parquet")


def synthetic(folder: Path | None = None, **changes: object) -> Results:
    """Make the study's results; with a folder, with steps in it."""
    rng = np.random.default_rng(7)
    rows = [trial(size, seed, rng) | changes for size in SIZES for seed in (0, 1)]
    for row in rows if folder else ():
        row["attempt_dir"] = str(folder / str(row["trial_id"]))  # type: ignore[operator]
        write_steps(Path(str(row["attempt_dir"])), row, rng)
    planned = [{"trial_id": row["trial_id"]} for row in rows]
    return Results(pd.DataFrame(rows), (), {"synthetic": STUDY | {"planned": planned}})


def changed(results: Results, trial_index: int, **values: object) -> Results:
    """Return the results with one trial's record changed."""
    frame = results.frame.astype(object)
    for column, value in values.items():
        frame.loc[trial_index, column] = value
    return Results(frame, results.damaged, results.studies)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return synthetic(tmp_path_factory.mktemp("steps"))


@pytest.fixture(scope="module")
def page(results: Results) -> str:
    return render(results)


# --- numbers for people ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (98_304, "", "98.3 k"), (1_536, "", "1,536"), (0.0042123, "s", "4.21 ms"), (2**20 * 12.5, "B", "12.5 MiB"),
        (5.9e-8, "s", "59.0 ns"), (999.9996e-6, "s", "1.00 ms"), (6e11, "FLOP/s", "600 GFLOP/s"), (17.2, "B", "17.2 B"),
        (None, "s", "—"), (float("nan"), "B", "—"), (-0.5, "s", "−500 ms"), (0, "", "0"),
    ],
)  # fmt: skip
def test_quantities_carry_prefix_and_unit(value: float | None, unit: str, expected: str) -> None:
    assert quantity(value, unit).replace("\u00a0", " ") == expected


def test_digits_follow_the_uncertainty() -> None:
    assert uncertain(1.96042, 0.0049) == "1.9604\u00a0±\u00a00.0049"
    assert bounded(0.2677, 0.238, 0.302) == ("0.268", "0.238 to 0.302")
    assert bounded(1.23e-12, 1.04e-12, 1.42e-12) == ("1.23e−12", "1.04e−12 to 1.42e−12")
    assert bounded(0.0, 0.0, 3.14e-13) == ("0", "0 to 3.1e−13")
    assert bounded(0.0, 0.0, 0.0) == ("0.000", "0.000 to 0.000")
    assert bounded(9.969e11, 9.924e11, 1.001e12) == ("9.969e+11", "9.924e+11 to 1.001e+12")
    assert bounded(4.1e11, 1.2e11, 9.7e12) == ("4.1e+11", "1.2e+11 to 9.7e+12")
    assert bounded(float("inf"), 5.78e13, float("inf")) == ("not resolved", "above 5.8e+13")
    assert bounded(float("inf"), 5.78e13, float("inf"), "B/s") == ("not resolved", "above 58\u00a0TB/s")
    assert bounded(59.15e-9, 40e-9, 80e-9, "s") == ("59 ns".replace(" ", "\u00a0"), "40 to 80\u00a0ns")


# --- the page --------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """Collect elements, ids and what the page would load."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def test_structure(page: str) -> None:
    outline = Outline(page)
    assert len(outline.all("h1")) == 1
    figures, drawings = outline.all("figure"), [svg for svg in outline.all("svg") if svg.get("role") == "img"]
    assert len(figures) == len(drawings) == 10
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for svg in drawings:
        assert set(str(svg["aria-labelledby"]).split()) <= set(ids)
    for figure in re.findall(r"<figure>.*?</figure>", page, re.DOTALL):
        assert re.search(r"<desc id=[^>]*>[^<]{20,}", figure)
        assert "<details>" in figure
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


def test_every_trial_has_a_titled_mark(page: str) -> None:
    drawing = re.search(r"<svg[^>]*study1-loss-title.*?</svg>", page, re.DOTALL)
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
    assert "falling at every step of size" in lead
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


# --- what went wrong is said -----------------------------------------------------------------------------------------


def test_failed_invalid_missing_and_damaged_are_listed(results: Results) -> None:
    bad = changed(results, 2, status="oom", error_class="OutOfMemoryError", error_message="tried 3 GiB", stop_step=7,
                  validation_loss_nats=None, step_time_median_s=None)  # fmt: skip
    bad = changed(bad, 5, invalid_reason="MFU 130 % is above 100 %")
    lost = bad.frame["trial_id"].iloc[8]
    bad = Results(bad.frame.drop(index=8), ("trials/x/record.json: not readable as JSON",), bad.studies)
    text = html.unescape(render(bad))
    for part in ("OutOfMemoryError: tried 3 GiB", "invalid: MFU 130 % is above 100 %", "record.json: not readable",
                 lost,
                 "12 trials planned: 10 ok, 1 oom, 1 of the ok ones invalid, 1 missing.",
                 "2 of 11 trials recorded ended otherwise than ok, or are invalid"):  # fmt: skip
        assert part in text
    assert "9 of 11" not in text


def test_invalid_trials_are_in_no_fit(results: Results) -> None:
    wild = changed(results, 0, validation_loss_nats=0.001, step_time_median_s=100.0, invalid_reason="negative time")
    clean = Results(results.frame.drop(index=0), (), results.studies)
    sentence = re.compile(r"<li>(The law|From the smaller|A training step)(.*?)</li>")
    assert sentence.findall(render(wild)) == sentence.findall(render(clean))


def test_shared_machine_stays_out_of_timing(results: Results) -> None:
    text = render(changed(results, 11, step_time_median_s=1.0, timing_exclusive=False))
    drawing = re.search(r"<svg[^>]*study1-step-time-title.*?</svg>", text, re.DOTALL)
    assert drawing
    assert "1.00\u00a0s" in drawing.group()
    sentence = re.compile(r"<li>A training step (.*?)</li>")
    assert sentence.findall(text) == sentence.findall(render(replace(results, frame=results.frame.drop(index=11))))


def test_everything_is_escaped(results: Results) -> None:
    study = STUDY | {
        "name": HOSTILE, "title": HOSTILE, "command": HOSTILE, "study_toml": HOSTILE,
        "planned": [{"trial_id": HOSTILE}],
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


def test_bound_is_said(results: Results) -> None:
    """A pure power law drives E to its lower bound."""
    frame = results.frame.assign(validation_loss_nats=4 * results.frame["params_non_embedding"] ** -0.05)
    text = render(Results(frame, (), results.studies))
    assert "at its bound" in text


def test_a_rise_is_said(results: Results) -> None:
    risen = changed(changed(results, 6, validation_loss_nats=2.5), 7, validation_loss_nats=2.5)
    assert "without falling on the step to 24.6\u00a0k" in render(risen)


# --- whatever is missing, the page still says so ---------------------------------------------------------------------


def broken(results: Results) -> dict[str, Results]:
    frame, studies = results.frame, results.studies
    failed = frame.assign(status="failed", validation_loss_nats=None, step_time_median_s=None, error_message="boom")
    return {
        "no rows": Results(frame.iloc[:0], (), studies),
        "no study": Results(frame.iloc[:0], (), {}),
        "one trial": Results(frame.iloc[:1], (), studies),
        "one size": Results(frame.iloc[:2], (), studies),
        "two sizes": Results(frame.iloc[:4], (), studies),
        "four sizes": Results(frame.iloc[:8], (), studies),
        "all failed": Results(failed, (), studies),
        "no study.json": Results(frame, (), {"synthetic": {}}),
        "few columns": Results(frame[["study", "trial_id", "status", "params"]], (), studies),
        "all null": Results(
            frame.assign(**dict.fromkeys(frame.columns.drop(["study", "trial_id", "status"]))), (), studies
        ),
        "one seed": Results(frame[frame["seed"] == 0], (), studies),
        "no steps": Results(frame.assign(attempt_dir="/nowhere"), (), studies),
        "an unknown law": Results(frame, (), {"synthetic": STUDY | {"fit": {"law": "chinchilla"}}}),
    }


@pytest.mark.parametrize("case", [*broken(synthetic())])
def test_renders_whatever_is_missing(case: str, results: Results) -> None:
    text = render(broken(results)[case])
    assert "<h1>" in text
    assert ">nan" not in text.lower()
    assert "None" not in re.sub(r"base64,[\w+/=]+", "", text)


def test_all_failed_draws_no_conclusion(results: Results) -> None:
    text = render(broken(results)["all failed"])
    assert "No conclusion: none of the 12 trials recorded ended ok" in text
    assert "boom" in text


def test_refusal_stands_in_place_of_the_number(results: Results) -> None:
    assert "No law is fitted: " in render(broken(results)["two sizes"])


@pytest.mark.slow
def test_many_trials_stay_below_the_cap(results: Results) -> None:
    """With 1,320 trials the page thins marks, cuts tables and leaves a download out, and says each of these."""
    copies = [results.frame.assign(trial_id=f"{i:04x}" + results.frame["trial_id"], seed=i) for i in range(110)]
    text = render(Results(pd.concat(copies, ignore_index=True).assign(attempt_dir=None), (), results.studies))
    assert len(text.encode()) < 5_000_000
    assert "The first 1,000 of 1,320 rows." in text
    assert "marks are thinned evenly" in text
    assert "The rows are too many to carry as JSON too" in text


# --- several series, several studies ---------------------------------------------------------------------------------


def test_series_differ_in_colour_and_marker(results: Results) -> None:
    faster = results.frame.assign(
        implementation="sdpa", step_time_median_s=results.frame["step_time_median_s"] / 2, attempt_dir=None,
        trial_id="b" + results.frame["trial_id"].str[1:],
    )  # fmt: skip
    text = render(Results(pd.concat([results.frame, faster], ignore_index=True), (), results.studies))
    assert "eager: Validation loss" in text
    assert "sdpa: Validation loss" in text
    drawing = re.search(r"<svg[^>]*study1-step-time-title.*?</svg>", text, re.DOTALL).group()  # type: ignore[union-attr]
    groups = re.findall(
        r'<path id="(study1-step-time-[^"]+)" d="([^"]+)"[^>]*style="[^"]*stroke: (var\(--s\d\))', drawing
    )
    assert len({color for *_, color in groups}) == 2
    assert len({shape for _, shape, _ in groups}) >= 2


def test_several_studies_in_one_page(results: Results) -> None:
    other = results.frame.assign(study="other")
    studies = {**results.studies, "other": STUDY | {"title": "The other one"}}
    text = render(Results(pd.concat([results.frame, other], ignore_index=True), (), studies))
    outline = Outline(text)
    assert [a["href"] for a in outline.all("a")][1:3] == ["#study1", "#study2"]
    ids = [attributes["id"] for _, attributes in outline.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert len(outline.all("h1")) == 1


def test_best_over_keeps_the_best_and_names_an_edge() -> None:
    """At 10 parameters 0.1 wins by its mean, at 20 the edge 0.3 does."""
    losses = {(10, 0.01): (3, 3), (10, 0.1): (2.1, 2.3), (10, 0.3): (2.0, 2.6), (20, 0.01): (3, 3), (20, 0.1): (2, 2),
              (20, 0.3): (1, 1)}  # fmt: skip
    rows = [
        {"trial_id": f"{size}{rate}{seed}", "status": "ok", "params": size, "learning_rate": rate, "seed": seed,
         "validation_loss_nats": loss}
        for (size, rate), values in losses.items() for seed, loss in enumerate(values)
    ]  # fmt: skip
    kept, notes = best_over(prepare(pd.DataFrame(rows)), ["learning_rate"], PARAMETERS)
    assert kept.groupby("params")["learning_rate"].unique().map(list).to_dict() == {10: [0.1], 20: [0.3]}
    assert len(notes) == 1
    assert "0.3, is the largest tried" in notes[0]


# --- end to end ------------------------------------------------------------------------------------------------------


def test_report_from_folders(tmp_path: Path) -> None:
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
    output = report([tmp_path / "results"], tmp_path / "out" / "index.html")
    text = html.unescape(output.read_text())
    assert output.read_text() == render(read_results(tmp_path / "results"))
    assert "×64" in text
    assert "not readable as JSON" in text
    assert "6 trials recorded: 6 ok." in text
    assert list(output.parent.iterdir()) == [output]


def test_report_does_not_import_torch() -> None:
    code = "import sys, scalebench.reporting, scalebench.reporting.page as p; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_verdict_alone_is_that_of_the_page(page: str, results: Results) -> None:
    lead, *others = verdict(analyse(results, "synthetic"))
    assert html.escape(lead, quote=False) in page
    assert len(others) == 5
    assert all(html.escape(sentence).replace("&#x27;", "&#39;") in page for sentence in others)
