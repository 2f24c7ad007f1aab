"""The page: verdict, figures, tables and downloads of each study, filled into one self-contained HTML file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
from markupsafe import Markup

from scalebench.analysis.series import (
    PARAMETERS,
    Series,
    grown,
    of_one_size,
    prepare,
    series_of,
    split_columns,
    tuned_axes,
)
from scalebench.reporting import (
    choice_figures,
    figures,
    frontier_figure,
    inference_figures,
    law_figures,
    profile_figure,
    run_figures,
    tables,
)
from scalebench.reporting.comparisons import sections_of
from scalebench.reporting.figures import Analysis, Words
from scalebench.reporting.overview import overview_rows, overview_table
from scalebench.reporting.quantities import present
from scalebench.reporting.sentences import verdict
from scalebench.reporting.svg import Marks, canvas
from scalebench.reporting.tables import Cell, Table
from scalebench.reporting.views import Download, FigureView, downloads, drawn
from scalebench.store import Results, StoreError, read_results, read_steps, write_atomically
from scalebench.store.comparisons import Comparisons, read_comparisons

FIGURES: dict[str, tuple[str, Callable[[Marks, Analysis], Words | str | None]]] = {
    "loss": ("Validation loss against size", figures.loss_figure),
    "data": ("Validation loss against data", figures.data_figure),
    "choices": ("Validation loss of each choice", choice_figures.choices_figure),
    "residuals": ("Residuals of the law", law_figures.residuals_figure),
    "profile": ("Profile of the irreducible loss E", profile_figure.profile_figure),
    "backtest": ("Larger sizes predicted from smaller ones", law_figures.backtest_figure),
    "frontier": ("Compute-optimal frontier", frontier_figure.frontier_figure),
    "latency": ("Latency against size", inference_figures.latency_figure),
    "throughput": ("Throughput against batch size", inference_figures.throughput_figure),
    "step-time": ("Time per training step against size", figures.step_time_figure),
    "memory": ("Memory against size", figures.memory_figure),
    "efficiency": ("Achieved arithmetic rate against size", figures.efficiency_figure),
    "curves": ("Training loss over the steps", run_figures.curves_figure),
    "compute": ("Validation loss against compute", run_figures.compute_figure),
    "noise": ("Noise of the step times", run_figures.noise_figure),
}
AT_WORK = ("latency", "throughput", "memory", "efficiency")  # of a study that trains nothing
BY_DATA = ("data", "profile", "compute", "curves", "noise")  # of a study that grows the data
OF_ONE_SIZE = ("choices", "curves", "noise")  # of a study that grows nothing
# Left out of the page, not shown empty, where there is nothing to say.
WHERE_POSSIBLE = frozenset({"choices", "data", "frontier", "latency", "throughput"})
MAX_EMBEDDED_BYTES = 1_500_000  # of CSV and of JSON each, over all studies: the page stays below 5 MB


@dataclass(frozen=True)
class Section:
    """One study of the page."""

    id: str
    name: str
    title: str
    verdict: tuple[str, ...]
    overview: tuple[tuple[Cell, ...], ...]
    counts: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    figures: tuple[FigureView, ...]
    axes: Table
    problems: Table
    damaged: tuple[str, ...]
    fits: tuple[Table, ...]
    trials: Table
    environment: Table
    command: str
    study_toml: str
    methods: tuple[str, ...]
    downloads: tuple[Download, ...]


def report(paths: Sequence[Path], output: Path) -> Path:
    """Write the report on the results folders ``paths`` to ``output`` and return it. Raises ``StoreError``."""
    html = render(read_results(*paths), read_comparisons(*paths))
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, html.encode())
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error
    return output


def render(results: Results, compared: Comparisons | None = None) -> str:
    """Return the page on every study and comparison; the same results give the same bytes."""
    if "study" not in results.frame:
        results = replace(results, frame=results.frame.assign(study=""))
    names = list(dict.fromkeys([*results.studies, *results.frame["study"].dropna().astype(str)]))
    damaged = damaged_by_study(results.damaged, names)
    sections = [section(i, name, results, damaged.get(name, ())) for i, name in enumerate(names, 1)]
    parts = sections_of(compared) if compared else []
    lines = (*damaged.get("", ()), *(compared.damaged if compared else ()))
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    css, js = (Markup((folder / name).read_text()) for name in ("report.css", "report.js"))  # noqa: S704 - our own files
    template = environment.get_template("template.html.j2")
    titles = [*(one.title for one in sections), *(one.title for one in parts)]
    heading = titles[0] if len(titles) == 1 else "Scaling studies" if sections else "Providers compared"
    several = [row for one in sections for row in one.overview] if len(sections) > 1 else []
    overview = overview_table(several) if several else None
    page = {"heading": heading, "overview": overview, "sections": sections, "comparisons": parts, "damaged": lines}
    return template.render(page, css=css, js=js) + "\n"


def verdicts(results: Results) -> list[str]:
    """Return the verdict of every study of ``results``, without drawing anything."""
    found: list[str] = []
    for name, raw in results.frame.groupby("study", sort=False):
        study = results.studies.get(str(name)) or {}
        frame = grown(prepare(raw), study)
        found += verdict(frame, list(series_of(frame, study)))
    return found


def picture(results: Results, name: str, output: Path) -> Path:
    """Draw a study's first figure as a PNG on white, for a README or a slide; return its path."""
    frame = grown(prepare(results.frame[results.frame["study"] == name]), results.studies[name])
    series = list(series_of(frame, results.studies[name]))
    key = shown(frame, series)[0]
    with canvas(name) as marks:
        FIGURES[key][1](marks, Analysis(frame, series, {}))
        marks.figure.savefig(output, dpi=150, facecolor="white", metadata={"Software": None})
    return output


def shown(frame: pd.DataFrame, series: Sequence[Series]) -> tuple[str, ...]:
    """Return which figures show a study, the headline first, by what it does and what it grows."""
    if inference_figures.at_work(frame):
        return AT_WORK
    if series[0].noun != PARAMETERS:
        return BY_DATA
    return OF_ONE_SIZE if of_one_size(series) else tuple(FIGURES)


def section(number: int, name: str, results: Results, damaged: tuple[str, ...]) -> Section:
    """Analyse one study and lay out its part of the page."""
    name_id, study = f"study{number}", results.studies.get(name) or {}
    raw = results.frame[results.frame["study"] == name]
    prepared = prepare(raw)
    frame = grown(prepared, study)
    series = list(series_of(frame, study))
    analysis = Analysis(frame, series, load_steps(frame), study)
    varying = dict.fromkeys([*split_columns(frame, study), *tuned_axes(study), "seed"])
    missing, share = missing_trials(frame, study), MAX_EMBEDDED_BYTES // max(len(results.studies), 1)
    keys = shown(frame, series)
    return Section(
        id=name_id,
        name=name,
        title=str(study.get("title") or name or "Untitled study"),
        verdict=tuple(verdict(frame, series)),
        overview=() if keys == AT_WORK else tuple(overview_rows(name, series)),
        counts=counts(frame, study, missing),
        missing=tuple(missing),
        notes=tuple(note for one in series for note in one.notes),
        figures=tuple(view for key in keys if (view := figure_view(f"{name_id}-{key}", key, analysis))),
        axes=tables.axes_table(study),
        problems=tables.problems_table(frame),
        damaged=damaged,
        fits=()
        if keys in (AT_WORK, BY_DATA)
        else tables.fit_tables(series, frontier_figure.surface_trends(frame, study)),
        trials=tables.trials_table(prepared, varying),
        environment=tables.environment_table(frame),
        command=str(study.get("command") or ""),
        study_toml=str(study.get("study_toml") or ""),
        methods=methods(),
        downloads=tuple(downloads(name or name_id, raw, share)),
    )


def damaged_by_study(lines: Sequence[str], names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Group the lines on damaged files by the study whose folder the path of each passes through, "" for none."""
    owner = [next((name for name in names if name in Path(line.partition(": ")[0]).parts), "") for line in lines]
    return {name: tuple(line for line, of in zip(lines, owner, strict=True) if of == name) for name in set(owner)}


def load_steps(frame: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Read the steps of as many trials as the figures show; trials without readable steps are left out."""
    steps: dict[str, pd.DataFrame] = {}
    spread = np.linspace(0, len(frame) - 1, min(len(frame), run_figures.MAX_CURVES)).round().astype(int)
    for _, row in frame.iloc[spread].iterrows():
        try:
            found = read_steps(row["attempt_dir"]) if present(row.get("attempt_dir")) else None
        except StoreError:
            continue
        if found is not None:
            steps[row["trial_id"]] = found
    return steps


def figure_view(name: str, key: str, analysis: Analysis) -> FigureView | None:
    """Draw one figure of ``FIGURES``; None where it is possible for some studies only, and not for this one."""
    title, draw = FIGURES[key]
    return drawn(name, title, lambda marks: draw(marks, analysis), possible=key not in WHERE_POSSIBLE)


def missing_trials(frame: pd.DataFrame, study: Mapping[str, Any]) -> list[str]:
    """Return the planned trials without a readable record."""
    planned = [trial["trial_id"] if isinstance(trial, dict) else trial for trial in study.get("planned") or []]
    there = set(frame["trial_id"])
    return [str(trial_id) for trial_id in planned if trial_id not in there]


def counts(frame: pd.DataFrame, study: Mapping[str, Any], missing: Sequence[str]) -> str:
    """Say how many trials were planned, and how they ended."""
    planned = len(study.get("planned") or [])
    by_status = Counter(frame["status"].dropna().astype(str))
    ended = [f"{by_status[status]} {status}" for status in sorted(by_status, key=lambda name: (name != "ok", name))]
    invalid = int(((frame["status"] == "ok") & frame["invalid_reason"].notna()).sum())
    ended += [f"{invalid} of the ok ones invalid"] * bool(invalid) + [f"{len(missing)} missing"] * bool(missing)
    head = f"{planned} trials planned" if planned else f"{len(frame)} trials recorded"
    return f"{head}: {', '.join(ended) or 'none has a record yet'}."


def methods() -> tuple[str, ...]:
    """Say how the numbers were made."""
    return (
        "Every trial trains for the number of steps its row states. Step times are medians over the steps after "
        "warm-up; the first step is kept apart. Losses are in nats, on a held-out validation sample, with a standard "
        "error clustered by source unit. The error of a size's mean combines the spread over seeds, divided by their "
        "number, with the validation error, which the seeds share; with one seed it is the validation error alone. "
        "Intervals are at 95 %. Sizes are non-embedding parameters.",
        f"Computed with numpy {version('numpy')} and pandas {version('pandas')}, drawn with matplotlib "
        f"{version('matplotlib')} and seaborn {version('seaborn')}.",
    )
