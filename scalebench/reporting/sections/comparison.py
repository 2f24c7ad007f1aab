"""A compared operation: which provider is fastest, whether its result is correct, and how it was measured."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.trials import numeric
from scalebench.errors import number_of
from scalebench.reporting.quantities import NBSP, present, significant
from scalebench.reporting.sections.base import MAX_FINDINGS, Room, SectionView, Subject, as_typed
from scalebench.reporting.sections.comparison_figures import FIGURES, TIMES, Part, part_of
from scalebench.reporting.sections.comparison_tables import (
    VERDICTS,
    details_table,
    problems_table,
    providers_table,
    rows_environment_table,
    runnable,
    suite_table,
    verdicts_table,
)
from scalebench.reporting.sections.operations import Operation
from scalebench.reporting.svg import Marks
from scalebench.reporting.tables import Table
from scalebench.reporting.views import Caption, FigureView, downloads, draw_figures

DIRECTIONS = {False: "Results", True: "Gradients"}
METHODS = (
    "The providers of a case are interleaved in random order within a process, and everything is repeated in fresh "
    "processes. Sampling stops when the median reaches the target noise, when more samples no longer reduce its noise, "
    "or at the time limit. Preparation and the first call, including compilation, are reported separately; the time is "
    "the geometric mean over processes of their medians. Outliers are counted, never dropped. Rows from "
    "pytest-benchmark were measured one provider after the other, one process per file.",
    "Speedup is the time of the baseline over that of the provider, per process. Its 95 % interval is a bootstrap over "
    "processes and samples, widened by Student's t for their small number. The verdict is FASTER, SLOWER or SAME only "
    "if the whole interval is outside, or inside, the equivalence margin of the row; otherwise, and with a single "
    "process, it is INCONCLUSIVE. Wrong results and results from different machines get no verdict.",
    "A result is correct if its largest error against a float64 reference is at most twice that of the plain eager "
    "path in the same precision, or a few float32 units in the last place. FLOPs and bytes are the minimum that the "
    "operation needs, the same for every provider.",
)


@dataclass(frozen=True)
class PartView:
    """One direction on one machine: figures and tables."""

    title: str
    suite: Table
    figures: tuple[FigureView, ...]
    verdicts: Table
    details: Table


@dataclass(frozen=True)
class ComparisonView(SectionView):
    """The section of one operation."""

    name: str
    counts: str
    providers: Table
    problems: Table
    parts: tuple[PartView, ...]
    commands: tuple[str, ...]


@dataclass(frozen=True)
class ComparisonSection:
    """The kind of section that shows a compared operation."""

    template: Path

    def applies(self, subject: Subject) -> bool:
        """Return whether the subject is a compared operation."""
        return isinstance(subject, Operation)

    def conclusions(self, subject: Subject) -> tuple[str, ...]:
        """Return for each direction and machine which provider is fastest, and how each compares with the baseline."""
        assert isinstance(subject, Operation)
        texts = [text for _, part in parts_of(subject) for text in sentences(subject.name, part)]
        if len(texts) > 1 + MAX_FINDINGS:  # which is fastest; the tables of all cases have the others
            texts = [text for _, part in parts_of(subject) for text in islice(sentences(subject.name, part), 1)]
        return tuple(text.replace(" %", f"{NBSP}%") for text in texts[: 1 + MAX_FINDINGS])

    def headline(self, marks: Marks, subject: Subject) -> Caption | str | None:
        """Draw the times of the first direction and machine."""
        assert isinstance(subject, Operation)
        return TIMES.draw(marks, parts_of(subject)[0][1])

    def build(self, subject: Subject, name: str, room: Room) -> ComparisonView:
        """Judge and draw an operation."""
        assert isinstance(subject, Operation)
        rows = subject.rows
        return ComparisonView(
            id=name,
            name=subject.name,
            title=f"{subject.name}: providers compared",
            template=self.template,
            conclusions=self.conclusions(subject),
            counts=_counts(rows),
            providers=providers_table(rows),
            problems=problems_table(rows),
            parts=tuple(_part_views(subject, name)),
            environment=rows_environment_table(rows),
            commands=tuple(rows["command"].dropna().map(as_typed).drop_duplicates()),
            methods=METHODS,
            downloads=tuple(downloads(f"compare-{subject.name}", rows.reset_index(drop=True), room.max_bytes)),
        )


def parts_of(operation: Operation) -> list[tuple[Any, Part]]:
    """Return the rows of each source, direction and machine, under these three."""
    providers = list(operation.rows["provider"].drop_duplicates())
    groups = operation.rows.groupby(["source", "backward", "machine_id"], dropna=False)
    return [(key, part_of(rows, providers)) for key, rows in groups]


def _part_views(operation: Operation, name: str) -> Iterator[PartView]:
    several = operation.rows["machine_id"].nunique() > 1
    for i, (key, part) in enumerate(parts_of(operation), 1):
        figures = draw_figures(f"{name}-{i}", FIGURES, part)
        yield PartView(_title(key, part.frame, several), suite_table(part), figures, verdicts_table(part),
                       details_table(part.frame))  # fmt: skip


def _title(key: Any, frame: pd.DataFrame, several: bool) -> str:
    source, backward, machine = key
    title = DIRECTIONS[bool(backward)] + (f" (from {source})" if source != "measured" else "")
    device = frame["device_name"].combine_first(frame["cpu_model"]).iloc[0]
    return f"{title} on {device if present(device) else 'a machine'}" + (f" ({machine})" if several else "")


# --- sentences -------------------------------------------------------------------------------------------------------


def sentences(name: str, part: Part) -> Iterator[str]:
    """Yield which correct provider is fastest how often, then how each compares with the baseline."""
    frame = part.frame
    subject = f"{name}, gradients," if frame["backward"].iloc[0] else name
    right = frame[(frame["status"] == "ok") & frame["accepted"].ne(False) & (numeric(frame, "time_median_s") > 0)]
    if right.empty:
        yield f"No conclusion on {subject}: no provider ran with a correct result."
        return
    fastest = right.loc[right.groupby("case")["time_median_s"].idxmin().astype(int)]["provider"].value_counts()
    best = sorted(fastest.items(), key=lambda item: (-item[1], str(item[0])))
    cases = frame["case"].nunique()
    (first, count), *others = best
    wins = "".join(f", {provider} in {count}" for provider, count in others)
    yield f"Fastest {subject} by median time: {first} in {count} of {number_of(cases, 'case')}{wins}."
    ran, recorded = runnable(frame), set(frame["provider"])
    for provider in part.providers:
        rows = ran[(ran["provider"] == provider) & (ran["provider"] != ran["baseline"])]
        if len(rows):
            yield _against_baseline(provider, rows)
    absent = [provider for provider in part.providers if provider in recorded - set(ran["provider"])]
    if absent:
        yield f"Could not run in any case: {', '.join(absent)}."


def _against_baseline(provider: str, rows: pd.DataFrame) -> str:
    baseline, judged = rows["baseline"].iloc[0], rows[rows["verdict"].notna()]
    states = rows.loc[rows["status"] != "ok", "status"].value_counts()
    wrong = int(rows["accepted"].eq(False).sum())
    ends = [f"{status} in {count}" for status, count in states.items()] + [f"WRONG in {wrong}"] * bool(wrong)
    if judged.empty:
        return f"{provider}: {', '.join(ends) or 'no verdict'} of {len(rows)} cases."
    counts = judged["verdict"].value_counts()
    words = [f"{word_.lower()} in {counts[word_]}" for word_ in VERDICTS
             if word_ in counts]  # fmt: skip
    mean = significant(float(np.exp(-np.log(numeric(judged, "ratio")).mean())))
    alone = judged["verdict"].eq("INCONCLUSIVE").all() and numeric(judged, "processes").le(1).all()
    why = " (a verdict needs more than one process)" if alone else ""
    return (
        f"{provider} against {baseline}: {', '.join([*words, *ends])} of {number_of(len(rows), 'case')}{why}; "
        f"geometric mean speedup ×{mean}."
    )


def _counts(frame: pd.DataFrame) -> str:
    cases, providers = frame.groupby("backward")["case"].nunique().sum(), frame["provider"].nunique()
    statuses = frame["status"].mask(frame["accepted"].eq(False), "wrong").value_counts()
    ended = ", ".join(f"{statuses[name]} {name}" for name in sorted(statuses.index, key=lambda n: (n != "ok", n)))
    runs = frame["run"].nunique()
    source = f"from {number_of(runs, 'run')}; the newest of each case"
    load, cores = numeric(frame, "load_average").max(), numeric(frame, "cpu_count").max()
    busy = f" The machine was busy: load average {load:.1f} on {cores:.0f} cores." if load > 0.5 * cores else ""
    compared = f"{number_of(cases, 'case')} and {number_of(providers, 'provider')}"
    early = "".join(f" A run ended early: {reason}." for reason in frame["run_ended"].dropna().unique())
    return f"{compared}, {number_of(len(frame), 'row')}: {ended} ({source}).{early}{busy}"


SECTION = ComparisonSection(Path(__file__).with_name("comparison.html.j2"))
