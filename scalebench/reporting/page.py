"""The page: the sections of all studies and compared operations in order, as one self-contained HTML file."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting import sections
from scalebench.reporting.overview import build_overview
from scalebench.reporting.pictures import save
from scalebench.reporting.quantities import printable
from scalebench.reporting.sections.base import Room, SectionView, Subject
from scalebench.reporting.sections.operations import operations_of
from scalebench.reporting.svg import canvas, quiet
from scalebench.reporting.views import Caption, as_json
from scalebench.store import StoreError, write_output
from scalebench.store.comparisons import Comparisons, latest_unmeasured

HERE = Path(__file__).parent
# Of all embedded CSV files together, and of all JSON files: the page stays below 5 MB.
SCRIPTS = ("scales.js", "explore.js", "links.js", "report.js")  # embedded in the page, and run in this order
LANDMARKS = ("Overview", "Comparisons without a measurement", "Damaged files")  # of the page beside its sections
NOT_IN_IDS = re.compile("[^a-z0-9_]+")
LIVE_S = 30  # after which a page of trials that are still running is loaded again
MAX_EMBEDDED_BYTES = {"study": 1_500_000, "comparison": 600_000}


@quiet()
def render_page(
    studies: Sequence[StudyAnalysis], damaged: Sequence[str] = (), compared: Comparisons | None = None,
    *, live: bool = False,
) -> str:  # fmt: skip
    """Return the page on analysed studies and on comparisons; the same results give the same bytes.

    ``damaged`` are lines on files that belong to no study. A ``live`` page, of a run that goes on, loads itself again.
    """
    views = list(build("study", studies))
    overview = build_overview(studies, views) if len(views) > 1 else None
    views += build("comparison", operations_of(compared) if compared else ())
    views = with_own_titles(views)
    heading = views[0].title if len(views) == 1 else "Scaling studies" if studies else "Providers compared"
    css, *scripts = (Markup((HERE / name).read_text("utf-8")) for name in ("report.css", *SCRIPTS))  # noqa: S704 - our own
    return (
        templates()
        .get_template("page.html.j2")
        .render(
            heading=heading,
            live_s=LIVE_S if live else None,
            overview=overview,
            sections=views,
            unmeasured=latest_unmeasured(compared) if compared else (),
            damaged=(*damaged, *(compared.damaged if compared else ())),
            css=css,
            js=Markup().join(scripts),
        )
    )


def build(kind: str, subjects: Sequence[Subject]) -> Iterator[SectionView]:
    """Yield the sections of several studies or of several operations; their ids come from their names."""
    for name, subject in zip(ids(kind, [subject.name for subject in subjects]), subjects, strict=True):
        section = sections.section_for(subject)
        yield section.build(subject, name, Room(MAX_EMBEDDED_BYTES[kind] // len(subjects), len(subjects)))


def ids(kind: str, names: Sequence[str]) -> list[str]:
    """Return an id for each name, the same on every page that has it; names that would share one get a number, too."""
    plain = [f"{kind}-{NOT_IN_IDS.sub('-', name.lower()).strip('-') or 'unnamed'}" for name in names]
    return [name if plain.count(name) == 1 else f"{name}-{plain[:i].count(name) + 1}" for i, name in enumerate(plain)]


def with_own_titles(views: Sequence[SectionView]) -> list[SectionView]:
    """Return the sections, those of equal titles with their names behind them: each is a landmark to screen readers."""
    titles = [*(view.title for view in views), *LANDMARKS]
    return [
        view if titles.count(view.title) == 1 else replace(view, title=f"{view.title} ({view.id.partition('-')[2]})")
        for view in views
    ]


def templates() -> jinja2.Environment:
    """Return the templates: those of the page, and those beside each kind of section."""
    folders = dict.fromkeys([HERE, HERE / "sections", *(section.template.parent for section in sections.SECTIONS)])
    return _environment(tuple(folders))


@cache
def _environment(folders: tuple[Path, ...]) -> jinja2.Environment:
    """Return the templates of these folders; kept, as they are compiled at first use."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folders), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, finalize=_printable,
    )  # fmt: skip
    environment.filters["as_json"] = as_json
    return environment


def _printable(value: Any) -> Any:
    """Return what an expression of a template prints, without characters that a page cannot hold."""
    return type(value)(printable(value)) if isinstance(value, str) else value


def write_page(html: str, output: Path) -> Path:
    """Write a page to ``output`` and return it. Raises ``StoreError``."""
    try:
        write_output(output, html.encode("utf-8", "replace"))
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error
    return output


@quiet()
def draw_picture(study: StudyAnalysis, output: Path) -> Path:
    """Draw a study's first figure as a PNG on white, for a README or a slide; return its path."""
    with canvas(study.name) as marks:
        caption = sections.section_for(study).headline(marks, study)
        if not isinstance(caption, Caption):
            marks.axes.set_axis_off()
            marks.axes.text(0, 1, caption or "nothing was measured", wrap=True, va="top")
        return save(marks, output)
