"""The page: verdict, figures, tables and downloads of each study, filled into one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import jinja2
from markupsafe import Markup

from scalebench.analysis.study import StudyAnalysis, analyse_all, damaged_elsewhere
from scalebench.analysis.trials import DATA
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
from scalebench.reporting.figures import Words
from scalebench.reporting.overview import overview_rows, overview_table
from scalebench.reporting.sentences import verdict
from scalebench.reporting.svg import Marks, canvas
from scalebench.reporting.tables import Cell, Table
from scalebench.reporting.views import Download, FigureView, downloads, drawn
from scalebench.store import Results, StoreError, read_results, write_atomically
from scalebench.store.comparisons import Comparisons, read_comparisons

FIGURES: dict[str, tuple[str, Callable[[Marks, StudyAnalysis], Words | str | None]]] = {
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
    results = read_results(*paths)
    return write(analyse_all(results), output, damaged_elsewhere(results), read_comparisons(*paths))


def write(
    studies: Sequence[StudyAnalysis], output: Path, damaged: Sequence[str] = (), compared: Comparisons | None = None
) -> Path:
    """Write the page on analysed studies and comparisons to ``output`` and return it. Raises ``StoreError``."""
    html = page(studies, damaged, compared)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, html.encode())
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error
    return output


def render(results: Results, compared: Comparisons | None = None) -> str:
    """Return the page on every study and comparison; the same results give the same bytes."""
    return page(analyse_all(results), damaged_elsewhere(results), compared)


def page(studies: Sequence[StudyAnalysis], damaged: Sequence[str] = (), compared: Comparisons | None = None) -> str:
    """Return the page on analysed studies; ``damaged`` are lines on files of no study."""
    share = MAX_EMBEDDED_BYTES // max(len(studies), 1)
    sections = [section(f"study{i}", study, share) for i, study in enumerate(studies, 1)]
    parts = sections_of(compared) if compared else []
    lines = (*damaged, *(compared.damaged if compared else ()))
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
    fields = {"heading": heading, "overview": overview, "sections": sections, "comparisons": parts, "damaged": lines}
    return template.render(fields, css=css, js=js) + "\n"


def picture(study: StudyAnalysis, output: Path) -> Path:
    """Draw a study's first figure as a PNG on white, for a README or a slide; return its path."""
    with canvas(study.name) as marks:
        FIGURES[shown(study)[0]][1](marks, study)
        marks.figure.savefig(output, dpi=150, facecolor="white", metadata={"Software": None})
    return output


def shown(study: StudyAnalysis) -> tuple[str, ...]:
    """Return which figures show a study, the headline first, by what it does and what it grows."""
    if inference_figures.at_work(study.trials):
        return AT_WORK
    if study.x is DATA:
        return BY_DATA
    return OF_ONE_SIZE if study.of_one_size else tuple(FIGURES)


def section(name_id: str, study: StudyAnalysis, share: int) -> Section:
    """Lay out one study's part of the page, with downloads of at most ``share`` bytes each."""
    definition, keys = study.definition, shown(study)
    fitted = keys not in (AT_WORK, BY_DATA)
    return Section(
        id=name_id,
        name=study.name,
        title=str(definition.get("title") or study.name or "Untitled study"),
        verdict=tuple(verdict(study)),
        overview=() if keys == AT_WORK else tuple(overview_rows(study.name, study.series)),
        counts=counts(study),
        missing=study.missing,
        notes=tuple(note for one in study.series for note in one.notes),
        figures=tuple(view for key in keys if (view := figure_view(f"{name_id}-{key}", key, study))),
        axes=tables.axes_table(definition),
        problems=tables.problems_table(study.trials, study.x),
        damaged=study.damaged,
        fits=tables.fit_tables(study.series, study.surfaces) if fitted else (),
        trials=tables.trials_table(study.trials, study.varied),
        environment=tables.environment_table(study.trials),
        command=str(definition.get("command") or ""),
        study_toml=str(definition.get("study_toml") or ""),
        methods=methods(),
        downloads=tuple(downloads(study.name or name_id, study.rows, share)),
    )


def figure_view(name: str, key: str, study: StudyAnalysis) -> FigureView | None:
    """Draw one figure of ``FIGURES``; None where it is possible for some studies only, and not for this one."""
    title, draw = FIGURES[key]
    return drawn(name, title, lambda marks: draw(marks, study), possible=key not in WHERE_POSSIBLE)


def counts(study: StudyAnalysis) -> str:
    """Say how many trials were planned, and how they ended."""
    ended = [f"{number} {status}" for status, number in study.by_status.items()]
    ended += [f"{study.invalid} of the ok ones invalid"] * bool(study.invalid)
    ended += [f"{len(study.missing)} missing"] * bool(study.missing)
    head = f"{study.planned} trials planned" if study.planned else f"{len(study.trials)} trials recorded"
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
