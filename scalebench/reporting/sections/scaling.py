"""Training by several processes: speed-up, efficiency and memory per process against their number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import STEP_TIME, N, numeric
from scalebench.reporting.figures.runs import CURVES
from scalebench.reporting.quantities import quantity, scale
from scalebench.reporting.sections import training
from scalebench.reporting.sections.common import StudySection, workload_of
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style
from scalebench.reporting.tables import Table, number, share, table, word
from scalebench.reporting.views import Caption, FigureSpec

PROCESSES, KIND, BATCH, RATE = "processes", "parallel", "batch_size", "samples_per_s"
ALLOCATED = "peak_memory_allocated_bytes"
STATE = tuple(f"memory_{part}_bytes" for part in ("parameters", "gradients", "optimizer"))


@dataclass(frozen=True)
class Line:
    """Trials that differ in the number of processes (and seed) alone, those of one process among them.

    ``points`` has a row for each number of processes, sorted: ``processes``, ``rate`` (samples per second, the median
    over seeds), ``step_time``, ``speedup``, ``efficiency``, ``memory`` (bytes per process), ``timed`` (all exclusive).
    """

    label: str
    points: pd.DataFrame


def lines(study: StudyAnalysis) -> list[Line]:
    """Return a line for each way to share the work, size and batch; weak scaling has one batch per process."""
    trials = study.trials[study.trials["valid"] & (numeric(study.trials, RATE) > 0)].copy()
    counts, batches = numeric(trials, PROCESSES), numeric(trials, BATCH)
    weak = (batches / counts).nunique() == 1 and batches.nunique() > 1
    trials["samples"] = batches / counts if weak else batches
    names = "samples per process" if weak else "samples per step"
    several = trials[counts > 1]
    drawn = []
    for (kind, size, samples), part in several.groupby([KIND, N, "samples"], sort=True):
        alone = trials[(counts == 1) & (trials[N] == size) & (trials["samples"] == samples)]
        parts = [str(kind), quantity(size) if several[N].nunique() > 1 else ""]
        parts.append(f"{samples:g} {names}" if several["samples"].nunique() > 1 else "")
        drawn.append(Line(", ".join(filter(None, parts)), _points(pd.concat([alone, part]))))
    return drawn


def _points(trials: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of a ``Line``; speed-up is against its fewest processes, taken to scale perfectly up to there."""
    columns = {
        "processes": numeric(trials, PROCESSES), "rate": numeric(trials, RATE), "step_time": numeric(trials, STEP_TIME),
        "memory": memory_per_process(trials), "timed": trials["timed"].astype(bool),
    }  # fmt: skip
    groups = pd.DataFrame(columns).groupby("processes")
    points = groups[["rate", "step_time", "memory"]].median().assign(timed=groups["timed"].all()).reset_index()
    points["speedup"] = points["processes"].iloc[0] * points["rate"] / points["rate"].iloc[0]
    points["efficiency"] = points["speedup"] / points["processes"]
    return points


def memory_per_process(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the allocator's peak, or, if unknown, the bytes of parameters, gradients and optimizer state."""
    allocated = numeric(trials, ALLOCATED)
    state = sum((numeric(trials, column) for column in STATE[1:]), start=numeric(trials, STATE[0]))
    return allocated if allocated.notna().all() else state


def draw(
    marks: Marks, study: StudyAnalysis, *, column: str, label: str, text: str, ideal: Callable[[float], float] | None
) -> Caption | None:
    """Draw a column of ``points`` against the number of processes, with the ideal where it is known."""
    measured = [line for line in lines(study) if line.points[column].notna().any()]
    if not measured:
        return None
    factor, unit = scale(float(measured[0].points[column].max()), "B") if column == "memory" else (1.0, "")
    counts = sorted({count for line in measured for count in line.points["processes"]})
    if ideal is not None:
        marks.axes.plot(counts, [ideal(count) for count in counts], color=MUTED, linestyle="--", label="ideal")
    for i, line in enumerate(measured):
        points, style = line.points, series_style(i)
        marks.axes.plot(points["processes"], points[column] / factor, color=style["color"], linewidth=1)
        for chosen, face in ((points[points["timed"]], style["color"]), (points[~points["timed"]], PAPER)):
            titles = [
                f"{line.label}, {row.processes:g} processes: {_value_text(column, row)}" for row in chosen.itertuples()
            ]
            marks.draw(chosen["processes"], chosen[column] / factor, titles, **style, markerfacecolor=face,
                       label=line.label if face != PAPER or points["timed"].sum() == 0 else None)  # fmt: skip
    marks.axes.set(xscale="log", xlabel="processes", ylabel=f"{label} ({unit})" if unit else label)
    marks.axes.set_xticks(counts, [f"{count:g}" for count in counts])
    marks.axes.xaxis.minorticks_off()
    marks.axes.set_ylim(bottom=0)
    legend(marks)
    return Caption(f"{text} Hollow marks shared the machine.", _table(measured))


def _value_text(column: str, row: object) -> str:
    value = float(getattr(row, column))
    return quantity(value, "B") if column == "memory" else f"{value:.3g}"


def _table(drawn: list[Line]) -> Table:
    rows = [
        (
            word(line.label), number(row.processes), number(row.step_time, "s"), number(row.rate),
            number(row.speedup), share(row.efficiency), number(row.memory, "B"), word("yes" if row.timed else "no"),
        )
        for line in drawn
        for row in line.points.itertuples()
    ]  # fmt: skip
    columns = (
        "series",
        "processes",
        "step time",
        "samples/s",
        "speed-up",
        "efficiency",
        "memory per process",
        "exclusive",
    )
    return table("Speed-up, efficiency and memory per process.", columns, rows)


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield for each line how much faster its most processes are than its fewest, and the memory of each process.

    Speeds are compared among trials that had their cores or GPUs to themselves; the others are listed.
    """
    for line in lines(study):
        if len(line.points) < 2:
            continue
        timed, shared = line.points[line.points["timed"]], line.points[~line.points["timed"]]
        if len(timed) > 1:
            yield _speed(line.label, timed.iloc[0], timed.iloc[-1])
        if len(shared):
            counts = ", ".join(f"{count:g}" for count in shared["processes"])
            yield f"{line.label}: times with {counts} processes are not exclusive and not compared here."
        first, last = line.points.iloc[0], line.points.iloc[-1]
        if first["memory"] > 0:
            yield (
                f"With {last['processes']:g} processes ({line.label}) each holds {quantity(last['memory'], 'B')}, "
                f"{last['memory'] / first['memory']:.2f} times the memory of {first['processes']:g}."
            )


def _speed(label: str, first: pd.Series[float], last: pd.Series[float]) -> str:
    times = last["rate"] / first["rate"]
    efficiency = times * first["processes"] / last["processes"]
    return (
        f"With {last['processes']:g} processes ({label}) training is {times:.2f} times as fast as with "
        f"{first['processes']:g}: an efficiency of {100 * efficiency:.0f} %."
    )


def several_processes(study: StudyAnalysis) -> bool:
    """Whether a study of training varies the number of processes."""
    return workload_of(study) == "training" and numeric(study.trials, PROCESSES).nunique() > 1


SPEEDUP = FigureSpec(
    "speedup", "Speed-up against the number of processes",
    partial(
        draw, column="speedup", label="speed-up", ideal=lambda count: count,
        text="Samples per second over those of one process; the dashed line is a process's worth for each.",
    ),
    optional=True,
)  # fmt: skip
EFFICIENCY = FigureSpec(
    "efficiency", "Efficiency against the number of processes",
    partial(
        draw, column="efficiency", label="efficiency", ideal=lambda _: 1.0,
        text="Speed-up over the number of processes.",
    ),
    optional=True,
)  # fmt: skip
MEMORY = FigureSpec(
    "process-memory", "Memory per process",
    partial(
        draw, column="memory", label="memory per process", ideal=None,
        text="The allocator's peak on a GPU; on a CPU parameters, gradients and optimizer state.",
    ),
    optional=True,
)  # fmt: skip
METHODS = (
    "Speed-up is the ratio of samples per second at the median step time, efficiency its share of the number of "
    "processes. With the same batch for all this is strong scaling, with the same batch per process weak scaling.",
    *training.METHODS,
)
SECTION = StudySection(
    shows=several_processes,
    sentences=sentences,
    figures=lambda _: (SPEEDUP, EFFICIENCY, MEMORY, CURVES),
    columns=lambda _: training.COLUMNS,
    methods=METHODS,
    template=training.TEMPLATE,
)
