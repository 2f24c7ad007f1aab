"""What all sections about a study share: trials, failures, environment, command and downloads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import AT_EDGE, MEMORY_PEAKS, STEP_TIME, N, numeric
from scalebench.errors import number_of
from scalebench.reporting.chains import chain_tables
from scalebench.reporting.figures.after_training import OF_STUDY
from scalebench.reporting.outcomes import Outcome, loss_outcome
from scalebench.reporting.quantities import present, quantity
from scalebench.reporting.sections.base import MAX_FINDINGS, Room, SectionView, Subject, as_typed
from scalebench.reporting.strip import strip_table
from scalebench.reporting.svg import Marks
from scalebench.reporting.tables import MAX_ROWS, Cell, Table, environment_table, evenly, number, table, word
from scalebench.reporting.views import Caption, FigureSpec, FigureView, downloads, draw_figures
from scalebench.store import left_out_line, planned_ids

TEMPLATE = Path(__file__).with_name("study.html.j2")
BRIEF_FIGURES, BRIEF_TABLES, BRIEF_TRIALS = 3, 1, 250  # of a study on a page of many
GROUPED_FROM = 3  # trials that ended alike
DRAWN_WITH = (
    f"Computed with numpy {version('numpy')} and pandas {version('pandas')}, drawn with matplotlib "
    f"{version('matplotlib')} and seaborn {version('seaborn')}."
)


@dataclass(frozen=True)
class Column:
    """A column of the table of trials: its heading, the name in the records, the unit, significant digits."""

    title: str
    name: str
    unit: str = ""
    digits: int = 3


# What trials of any workload may have measured, after their own columns.
RESOURCES = (
    Column("tokens/s", "tokens_per_s"),
    Column("achieved", "achieved_flops_per_s", "FLOP/s"),
    *(
        Column(f"{title} peak", name, "B")
        for title, name in zip(("allocated", "tracked", "process"), MEMORY_PEAKS, strict=True)
    ),
    Column("energy", "energy_j", "J"),
)


@dataclass(frozen=True)
class StudyView(SectionView):
    """A study's section; ``tables`` are those of its kind alone."""

    name: str
    counts: str
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    figures: tuple[FigureView, ...]
    strip: Table | None
    axes: Table
    problems: Table
    damaged: tuple[str, ...]
    tables: tuple[Table, ...]
    trials: Table
    command: str
    study_toml: str
    brief: bool


def nothing(_: StudyAnalysis) -> Iterator[Any]:
    """Return no tables."""
    return iter(())


@dataclass(frozen=True)
class StudySection:
    """A kind of section about a study.

    ``shows`` returns whether it is for a study. ``sentences`` yields the findings, most important first; ``figures``
    are in order, headline first; ``columns`` are those of the table of trials, left out where nothing was measured;
    ``tables`` yields further tables for ``template``. ``outcome`` returns the study's row on a page of several, with
    the published findings that it tests (``reporting.outcomes``). ``strip`` is whether the first screen has what a
    larger size will need and reach.
    """

    shows: Callable[[StudyAnalysis], bool]
    sentences: Callable[[StudyAnalysis], Iterable[str]]
    figures: Callable[[StudyAnalysis], Sequence[FigureSpec[StudyAnalysis]]]
    columns: Callable[[StudyAnalysis], Sequence[Column]]
    methods: tuple[str, ...]
    tables: Callable[[StudyAnalysis], Iterable[Table]] = nothing
    template: Path = TEMPLATE
    outcome: Callable[[StudyAnalysis], Outcome] = loss_outcome
    strip: bool = True

    def applies(self, subject: Subject) -> bool:
        """Return whether the subject is a study that this kind shows."""
        return isinstance(subject, StudyAnalysis) and self.shows(subject)

    def conclusions(self, subject: Subject) -> tuple[str, ...]:
        """Return what the study found, and last how many of its trials failed."""
        assert isinstance(subject, StudyAnalysis)
        lead, *rest = _verdict(subject, self.sentences)
        return (lead, *(rest if len(rest) <= MAX_FINDINGS else [*rest[: MAX_FINDINGS - 1], rest[-1]]))

    def headline(self, marks: Marks, subject: Subject) -> Caption | str | None:
        """Draw the study's first figure, where it has one."""
        assert isinstance(subject, StudyAnalysis)
        figures = self.figures(subject)
        return figures[0].draw(marks, subject) if figures else None

    def build(self, subject: Subject, name: str, room: Room) -> StudyView:
        """Analyse and draw a study."""
        assert isinstance(subject, StudyAnalysis)
        study, definition = subject, subject.definition
        specs, tables = self.figures(study), (*self.tables(study), *chain_tables(study))
        if room.brief:
            specs = [spec for spec in specs if not spec.diagnostic][:BRIEF_FIGURES]
            tables = tuple(table for table in tables if not table.appendix)[:BRIEF_TABLES]
        return StudyView(
            id=name,
            name=study.name,
            title=str(definition.get("title") or study.name or "Untitled study"),
            template=self.template,
            conclusions=self.conclusions(study),
            counts=counts(study),
            missing=study.missing,
            notes=tuple(dict.fromkeys(note for series in study.series for note in series.notes)),
            figures=draw_figures(name, (*specs, *OF_STUDY), study),
            strip=strip_of(study) if self.strip else None,
            axes=axes_table(definition),
            problems=problems_table(study),
            damaged=study.damaged,
            tables=tables,
            brief=room.brief,
            trials=trials_table(study, self.columns(study), BRIEF_TRIALS if room.brief else MAX_ROWS),
            environment=environment_table(study.trials),
            command=as_typed(str(definition.get("command") or "")),
            study_toml=str(definition.get("study_toml") or ""),
            methods=self.methods,
            downloads=tuple(downloads(study.name or name, study.rows, room.max_bytes, compress=room.neighbours > 1)),
        )


def strip_of(study: StudyAnalysis) -> Table | None:
    """Return the strip of the first screen: of the series with the lowest loss at its largest size.

    None where no trial took a training step, as most of its rows are what training costs.
    """
    with_loss = [series for series in study.series if len(series.sizes) > 1]
    trained = study.trials[STEP_TIME].notna().any() or study.untimed_reason
    if not (with_loss and trained):
        return None
    return strip_table(min(with_loss, key=lambda series: float(series.sizes["mean"].iloc[-1])))


def workload_of(study: StudyAnalysis) -> str:
    """Return the workload that a study names, else that of its records; "training" if those have no such column."""
    if workload := study.definition.get("workload"):
        return str(workload)
    recorded = set(study.trials["workload"].dropna()) if "workload" in study.trials else set()
    return str(recorded.pop()) if len(recorded) == 1 else "training"


def _verdict(study: StudyAnalysis, sentences: Callable[[StudyAnalysis], Iterable[str]]) -> Iterator[str]:
    trials, usable = len(study.trials), int(study.trials["valid"].sum())
    if not usable:
        yield f"No conclusion: none of the {trials} recorded trials ended ok with valid numbers."
        return
    yield from sentences(study)
    yield from _note_sentences([note for series in study.series for note in series.notes])
    sound = "The recorded trial ended ok." if trials == 1 else f"All {trials} recorded trials ended ok."
    of = number_of(trials, "recorded trial")
    yield sound if usable == trials else f"{trials - usable} of {of} did not end ok or are invalid; they are in no fit."
    if study.missing:
        yield f"Without a result yet: {len(study.missing)} of {number_of(study.planned, 'planned trial')}."


def _note_sentences(notes: Sequence[str]) -> Iterator[str]:
    """Yield that tuned values are at the edge of those tried (losses may be lower than measured), and other notes."""
    edges = [note for note in notes if AT_EDGE in note]
    others = list(dict.fromkeys(note for note in notes if AT_EDGE not in note))
    if edges:
        several = f"values are at the edge of those tried in {len(edges)} places, listed under What was run"
        yield f"Tuned {edges[0] if len(edges) == 1 else several}."
    if others:
        yield f"{others[0] if len(others) == 1 else f'{len(others)} notes are listed under What was run'}."


def counts(study: StudyAnalysis) -> str:
    """Return how many trials were planned, how they ended, and how many others the folder holds."""
    ended = [f"{count} {status}" for status, count in study.by_status.items()]
    ended += [f"{study.invalid} of the ok ones invalid"] * bool(study.invalid)
    ended += [f"{len(study.missing)} missing"] * bool(study.missing)
    head = (
        f"{number_of(study.planned, 'trial')} planned"
        if study.planned
        else number_of(len(study.trials), "recorded trial")
    )
    return f"{head}: {', '.join(ended) or 'no records yet'}.{_of_other_settings(study)}"


def _of_other_settings(study: StudyAnalysis) -> str:
    """Return that the study was edited between runs, and how many results of its folder are left out."""
    if not study.earlier:
        return f" {left_out_line(study.left_out)}." if study.left_out else ""
    others = f"; results of {study.left_out:,} are in this folder and left out" if study.left_out else ""
    planned = f"{'are' if study.earlier > 1 else 'is'} no longer planned"
    trials = number_of(study.earlier, "trial")
    return f" The study was edited between runs: {trials} of an earlier version {planned}{others}."


# --- tables ----------------------------------------------------------------------------------------------------------


def axes_table(definition: Mapping[str, Any]) -> Table:
    """Return what was varied, one axis per row."""
    axes = {
        name: values if isinstance(values, list) else [values]
        for name, values in (definition.get("axes") or {}).items()
    }
    rows = [
        (word(name), number(len(values)), word(", ".join(map(setting_text, values)))) for name, values in axes.items()
    ]
    planned, combinations = len(planned_ids(definition)), math.prod(len(values) for values in axes.values())
    every = "; every combination of their values is a trial" if planned == combinations else ""
    return Table(f"Axes of the study{every}.", ("axis", "number", "values"), tuple(rows))


def problems_table(study: StudyAnalysis) -> Table:
    """Return the trials that did not end ok, or are invalid, each with its reason."""
    trials, x = study.trials, study.x
    bad = trials[(trials["status"] != "ok") | trials["invalid_reason"].notna()]
    alike: dict[tuple[str, str], list[pd.Series[Any]]] = {}
    for _, row in bad.iterrows():
        alike.setdefault((status_of(row), reason_of(row) or ""), []).append(row)
    rows = [cells for group in alike.values() for cells in _problem_rows(group, x.column)]
    columns = ("trial", "size", "status", "last step", "reason")
    return table("Trials that are in no fit, with the reason.", columns, rows)


def _problem_rows(group: Sequence[pd.Series[Any]], size: str) -> Iterator[tuple[Cell, ...]]:
    """Yield a row per trial of those that ended alike; one row with their number where there are three or more."""
    first = group[0]
    ended = (word(status_of(first)), number(first.get("stop_step")), word(reason_of(first)))
    if len(group) < GROUPED_FROM:
        for row in group:
            yield (word(row["trial_id"]), number(row[size]), ended[0], number(row.get("stop_step")), ended[2])
        return
    sizes = sorted({float(row[size]) for row in group if present(row[size])})
    spread = (
        f"{quantity(sizes[0])} to {quantity(sizes[-1])}" if len(sizes) > 1 else quantity(sizes[0] if sizes else None)
    )
    names = ", ".join(str(row["trial_id"]) for row in group[:GROUPED_FROM])
    group_text = f"{len(group)} trials: {names}{', …' * (len(group) > GROUPED_FROM)}"
    yield (word(group_text), word(spread), ended[0], word(None), ended[2])


def status_of(row: pd.Series[Any]) -> str:
    """Return the status of a trial, marked where its record is invalid."""
    return f"{row['status']}, invalid" if present(row["invalid_reason"]) else str(row["status"])


def reason_of(row: pd.Series[Any]) -> str | None:
    """Return why a trial is not ok, from its record; None for a good one."""
    error = ": ".join(str(row[c]) for c in ("error_class", "error_message") if c in row and present(row[c]))
    invalid = f"invalid: {row['invalid_reason']}" if present(row["invalid_reason"]) else ""
    return "; ".join(filter(None, (error, invalid))) or (None if row["status"] == "ok" else "no reason recorded")


def trials_table(study: StudyAnalysis, columns: Sequence[Column], most: int = MAX_ROWS) -> Table:
    """Return the trials by size, failed ones included, at most ``most`` of them, spread evenly.

    Its columns are what the study varied, and those of ``columns`` that it measured.
    """
    axes = [axis for axis in study.varied if axis in study.trials and axis not in ("params", N)]
    measured = [column for column in columns if numeric(study.trials, column.name).notna().any()]
    frame = evenly(study.trials, most)
    values = {column.name: numeric(frame, column.name).to_numpy() for column in measured}
    rows = []
    for i, (_, row) in enumerate(frame.iterrows()):
        size = (f"{row[N]:,.0f}", float(row[N])) if present(row[N]) else word(None)
        cells = [number(values[c.name][i], c.unit, c.digits) for c in measured]
        rows.append((word(row["trial_id"]), size, *(word(row[axis]) for axis in axes), word(status_of(row)), *cells,
                     word(reason_of(row))))  # fmt: skip
    titles = ("trial", "N (non-embedding parameters)", *axes, "status", *(c.title for c in measured), "reason")
    units = ("", "", *("" for _ in axes), "", *(c.unit for c in measured), "")
    total = len(study.trials)
    cut = f" {len(frame):,} of {total:,} rows, spread evenly; the exported CSV has all." if len(frame) < total else ""
    return Table(f"Every trial, by size.{cut}", titles, tuple(rows), units=units)
