"""The committed demo report must be science: what it shows is checked from the rows it carries.

The rows are those that the demo measured; the checks are written out here, independently of the report's own.
"""

from __future__ import annotations

import base64
import io
import re
import subprocess
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from report_support import synthetic
from support import REPOSITORY

from scalebench.cli.commands import sweeps
from scalebench.laws import fit
from scalebench.running.planning import load_study, plan
from scalebench.store import Results

PAGE = (REPOSITORY / "reports" / "demo" / "index.html").read_text(encoding="utf-8").replace("\u00a0", " ")


@pytest.fixture(scope="module")
def trials() -> pd.DataFrame:
    (encoded,) = re.findall(r'href="data:text/csv;charset=utf-8;base64,([^"]+)"', PAGE)
    return pd.read_csv(io.BytesIO(base64.b64decode(encoded))).sort_values(["params_non_embedding", "seed"])


def test_it_is_the_shipped_study_and_every_trial_ended_well(trials: pd.DataFrame) -> None:
    planned = plan(load_study("demo"))
    sizes = [trial.counts.non_embedding for trial in planned]
    assert sorted(sizes) == trials["params_non_embedding"].tolist()
    assert set(trials["status"]) == {"ok"}
    assert set(trials["steps"]) == set(load_study("demo").train.steps or ())
    assert trials["invalid_reason"].isna().all()
    assert tomllib.loads((REPOSITORY / "studies" / "demo.toml").read_text())["name"] == "demo"


def test_sizes_span_a_factor_of_fifty_with_at_least_two_seeds(trials: pd.DataFrame) -> None:
    sizes = trials["params_non_embedding"]
    assert sizes.max() / sizes.min() >= 50
    assert trials.groupby("params_non_embedding")["seed"].nunique().min() >= 2


def test_mean_loss_falls_with_every_size_by_more_than_its_validation_error(trials: pd.DataFrame) -> None:
    means = trials.groupby("params_non_embedding")["validation_loss_nats"].mean()
    errors = trials.groupby("params_non_embedding")["validation_loss_se_nats"].mean()
    steps = -means.diff().dropna()
    assert (steps > 0).all()
    assert (steps > errors.iloc[1:]).all()


def test_smallest_and_largest_differ_by_more_than_ten_standard_errors(trials: pd.DataFrame) -> None:
    groups = trials.groupby("params_non_embedding")
    means, validation = groups["validation_loss_nats"].mean(), groups["validation_loss_se_nats"].mean()
    seeds = groups["validation_loss_nats"].var(ddof=1) / groups.size()
    variance = seeds + validation**2
    difference = means.iloc[0] - means.iloc[-1]
    assert difference > 10 * np.sqrt(variance.iloc[0] + variance.iloc[-1])


def test_the_smaller_sizes_predict_the_largest_within_three_percent_and_beat_repetition(trials: pd.DataFrame) -> None:
    points = trials[["params_non_embedding", "validation_loss_nats"]].set_axis(["params", "loss"], axis=1)
    largest = points["params"].max()
    smaller, measured = points[points["params"] < largest], points.loc[points["params"] == largest, "loss"].mean()
    predicted = fit(smaller, law="power").predict(params=np.array([float(largest)]))[0]
    next_smaller = smaller.loc[smaller["params"] == smaller["params"].max(), "loss"].mean()
    assert abs(predicted / measured - 1) < 0.03
    assert abs(predicted - measured) < abs(next_smaller - measured)
    (printed,) = re.findall(r"an error of (−?\d+\.\d+) %", PAGE)
    decimals = len(printed.partition(".")[2])
    assert float(printed.replace("−", "-")) == round(100 * (predicted / measured - 1), decimals)


def test_time_and_memory_were_measured_and_the_workers_were_alone(trials: pd.DataFrame) -> None:
    assert trials["timing_exclusive"].all()
    assert (trials["step_time_p20_s"] <= trials["step_time_median_s"]).all()
    assert (trials["step_time_median_s"] <= trials["step_time_p80_s"]).all()
    assert (trials["memory_parameters_bytes"] == 4 * trials["params"]).all()
    assert (trials["memory_optimizer_bytes"] > 8 * trials["params"]).all()
    assert trials["mfu"].between(0, 1).all()
    assert trials["git_commit"].notna().all()


# --- where it is written ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "folder", "page"),
    [
        ((), "results/demo", "report.html"),
        (("--results", "elsewhere"), "elsewhere/demo", "report.html"),
        (("-o", "shown/page.html"), "shown", "page.html"),
    ],
)
def test_the_demo_writes_under_the_results_unless_told_otherwise(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], folder: str, page: str
) -> None:
    results = synthetic()
    done = Results(results.frame.assign(study="demo"), (), {"demo": results.studies["synthetic"]})
    monkeypatch.setattr(sweeps, "run_study", lambda *_, **__: 0)
    monkeypatch.setattr("scalebench.reporting.views.to_svg", lambda *_: "")  # drawing takes half of the time
    monkeypatch.setattr(sweeps.store, "read_results", lambda *_: done)
    code, out, _ = command("demo", *arguments)
    assert code == 0
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()} == {
        f"{folder}/{page}", f"{folder}/loss.png",
    }  # fmt: skip
    assert f"report: {folder}/{page}" in out
    assert f"picture: {folder}/loss.png" in out
    assert "Validation loss went from" in out


def test_only_make_reports_writes_tracked_pages() -> None:
    """Dry runs: the other targets name no path under reports/, and `reports` names all three pages."""

    def commands(*targets: str) -> str:
        return subprocess.run(
            ["make", "--dry-run", *targets], cwd=REPOSITORY, capture_output=True, text=True, check=True
        ).stdout

    assert "reports/" not in commands("demo", "families", "compare", "report")
    for page in ("demo", "families", "compare-cpu"):
        assert f"--output reports/{page}/index.html" in commands("reports")
