"""Figures of pruned models: loss against density by size and method, loss against bytes, density tolerated by size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from scalebench.analysis.pareto import pareto_front
from scalebench.analysis.pruning import (
    ADDED,
    CONTROL,
    DENSITY,
    FEWEST_DENSITIES,
    SIZE,
    TOLERATED_NATS,
    dense,
    groups,
    pruned,
    tolerated,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, numeric
from scalebench.reporting.quantities import quantity, scale, significant
from scalebench.reporting.svg import MUTED, PAPER, Marks, cost_axis, legend, series_style, size_axis
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

DENSITY_LABEL = "density (share that remains)"


def means(part: pd.DataFrame, column: str) -> pd.DataFrame:
    """Return the mean density found, mean and standard error over models of a column, for each requested density."""
    grouped = part.groupby("density")
    return pd.DataFrame(
        {"density": grouped[DENSITY].mean(), "mean": grouped[column].mean(), "se": grouped[column].sem()}
    )


def _line(marks: Marks, part: pd.DataFrame, name: str, i: int, *, control: bool = False) -> None:
    """Draw the mean loss added against density with bars of one standard error; the control hollow and dashed."""
    points, style = means(part, ADDED), series_style(i)
    titles = [f"{name}, density {significant(row['density'], 2)}: {significant(row['mean'])} nats added"
              for row in points.to_dict("records")]  # fmt: skip
    marks.axes.plot(
        points["density"], points["mean"], color=style["color"], linewidth=1, linestyle="--" if control else "-"
    )
    marks.bars(points["density"], points["mean"] - points["se"], points["mean"] + points["se"], color=style["color"],
               linewidth=1.2)  # fmt: skip
    face = PAPER if control else style["color"]
    marks.draw(
        points["density"], points["mean"], titles, **style, markerfacecolor=face, label=None if control else name
    )


def _finish(marks: Marks) -> None:
    marks.axes.axhline(0, color=MUTED, linewidth=0.8)
    marks.axes.set(xlabel=DENSITY_LABEL, ylabel="loss added (nats)")
    legend(marks)


def _rows(name: str, part: pd.DataFrame) -> Iterator[Sequence[Cell]]:
    for density, row in means(part, ADDED).iterrows():
        yield (word(name), number(density), number(row["density"]), number(row["mean"]), number(row["se"], digits=2))


TABLE_COLUMNS = ("models", "density requested", "density", "mean loss added (nats)", "±")


def main_group(trials: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    """Return the group of most trials that is not the control, else the first."""
    every = list(groups(trials))
    return max(every, key=lambda each: (CONTROL not in set(each[1]["method"]), len(each[1])))


def density_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Loss added against density, one line per size."""
    trials = pruned(study.trials)
    if trials.empty:
        return None
    label, part = main_group(trials)
    steps = part["recovery_steps"].iloc[0]
    random = trials[(trials["method"] == CONTROL) & (trials["recovery_steps"] == steps)]
    rows: list[Sequence[Cell]] = []
    for i, (size, own) in enumerate(part.groupby(SIZE)):
        name = f"{quantity(size)} parameters"
        _line(marks, own, name, i)
        rows += _rows(f"{label}, {name}", own)
        control = random[random[SIZE] == size]
        if len(control) and CONTROL not in label:
            _line(marks, control, f"random, {name}", i, control=True)
            rows += _rows(f"random, {name}", control)
    _finish(marks)
    hollow = " Hollow marks and dashed lines: as many weights removed at random." if "hollow" in marks.drawn else ""
    bars = " Bars are one standard error over seeds." if "bars" in marks.drawn else ""
    return Caption(
        f"{label}: mean loss on the held-out sample minus that of the unpruned model.{hollow}{bars}",
        table("Loss added by pruning.", TABLE_COLUMNS, rows),
    )


def methods_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Loss added against density at the largest size, one line per method."""
    trials = pruned(study.trials)
    largest = trials[trials[SIZE] == trials[SIZE].max()]
    every = list(groups(largest))
    if len(every) < 2:
        return None
    rows: list[Sequence[Cell]] = []
    for i, (label, part) in enumerate(every):
        _line(marks, part, label, i)
        rows += _rows(label, part)
    _finish(marks)
    return Caption(
        f"Models of {quantity(trials[SIZE].max())} parameters. A density is the share that remains of the matrices "
        "that a method prunes, which are not the same for all methods.",
        table("Loss added by each method at the largest size.", TABLE_COLUMNS, rows),
    )


def tolerance_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """The density at which a fixed loss is added, against size."""
    trials = pruned(study.trials)
    rows: list[Sequence[Cell]] = []
    parts = [(label, part) for label, part in groups(trials) if part["density"].nunique() >= FEWEST_DENSITIES]
    for i, (label, part) in enumerate(parts):
        points = tolerated(part).dropna()
        style = series_style(i)
        titles = [f"{label}, {quantity(row['size'])} parameters, seed {row['seed']:g}: density {row['density']:.2f}"
                  for row in points.to_dict("records")]  # fmt: skip
        marks.draw(points["size"], points["density"], titles, **style, label=label)
        line = points.groupby("size")["density"].mean()
        marks.axes.plot(line.index, line, color=style["color"], linewidth=1)
        rows += [(word(label), number(row["size"]), number(row["seed"]), number(row["density"]))
                 for row in points.to_dict("records")]  # fmt: skip
    if not rows:
        return None
    size_axis(marks.axes, "size of the unpruned model (non-embedding parameters)")
    marks.axes.set_ylabel(f"density at which {TOLERATED_NATS:g} nats are lost")
    legend(marks)
    return Caption(
        f"One mark per model; lower tolerates more pruning. Between two densities tried the loss added is interpolated "
        f"linearly. Models that lose less than {TOLERATED_NATS:g} nats at every density tried are left out.",
        table("Density tolerated.", ("method", "size", "seed", "density"), rows),
    )


def bytes_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Loss against packed bytes: the unpruned models of every size, and the masked ones."""
    trials = pruned(study.trials)
    masked = trials[trials["packed_bytes"].notna()]
    if masked.empty:
        return None
    parents = dense(main_group(masked)[1]).groupby("size")[["bytes", "loss"]].mean()
    points = [("unpruned", quantity(size), row["bytes"], row["loss"]) for size, row in parents.iterrows()]
    for label, part in groups(masked):
        for (size, density), own in part.groupby([SIZE, "density"]):
            points.append((label, f"{quantity(size)}, density {density:g}", own["bytes"].mean(), own[LOSS].mean()))
    frame = pd.DataFrame(points, columns=["kind", "what", "bytes", "loss"]).dropna()
    factor, unit = scale(float(frame["bytes"].median()), "B")
    for i, (kind, part) in enumerate(frame.groupby("kind", sort=False)):
        titles = [f"{kind} {row['what']}: {row['loss']:.3f} nats in {quantity(row['bytes'], 'B')}"
                  for row in part.to_dict("records")]  # fmt: skip
        if kind == "unpruned":
            marks.axes.plot(part["bytes"] / factor, part["loss"], color=series_style(i)["color"], linewidth=1)
        marks.draw(part["bytes"] / factor, part["loss"], titles, **series_style(i), label=str(kind))
    front = frame.iloc[pareto_front(frame["bytes"], frame["loss"])]
    line: dict[str, Any] = {
        "color": MUTED,
        "linewidth": 1.2,
        "drawstyle": "steps-post",
        "zorder": 1,
        "label": "Pareto front",
    }
    marks.axes.plot(front["bytes"] / factor, front["loss"], **line)
    cost_axis(marks.axes, frame["bytes"] / factor)
    marks.axes.set(xlabel=f"packed size ({unit})", ylabel="validation loss (nats)")
    legend(marks)
    on = set(front.index)
    rows = [(word(row["kind"]), word(row["what"]), number(row["bytes"], "B"), number(row["loss"], digits=4),
             word("yes" if index in on else "no")) for index, row in frame.iterrows()]  # fmt: skip
    columns = ("models", "size and density", "packed size", "validation loss (nats)", "on the Pareto front")
    return Caption(
        "Means over seeds. Masked models are counted as if packed: a bit for every weight of the pruned matrices, and "
        f"the weights that remain. {len(front)} of {len(frame)} points are on the Pareto front.",
        table("Loss against packed size.", columns, rows),
    )


def latency_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Latency of a forward pass over that of the unpruned model, against density."""
    trials = pruned(study.trials).dropna(subset=["latency_ratio"])
    rows: list[Sequence[Cell]] = []
    for i, (label, part) in enumerate(groups(trials)):
        style = series_style(i)
        low, high = (numeric(part, f"latency_ratio_{end}") for end in ("low", "high"))
        titles = [f"{label}, {quantity(row[SIZE])} parameters, density {row[DENSITY]:.2f}: {row['latency_ratio']:.3f}"
                  for _, row in part.iterrows()]  # fmt: skip
        marks.bars(part[DENSITY], low, high, color=style["color"], linewidth=1.2)
        marks.draw(part[DENSITY], part["latency_ratio"], titles, **style, label=label)
        rows += [(word(label), number(row[SIZE]), number(row[DENSITY]), number(row["latency_ratio"]))
                 for _, row in part.iterrows()]  # fmt: skip
    if not rows:
        return None
    marks.axes.axhline(1, color=MUTED, linewidth=0.8)
    marks.axes.set(xlabel=DENSITY_LABEL, ylabel="latency over that of the unpruned model")
    legend(marks)
    return Caption(
        "Medians of forward passes of one sample, both models timed in turns in one process; bars are 95 % bootstrap "
        "intervals within it.",
        table("Latency over that of the unpruned model.", ("method", "size", "density", "ratio"), rows),
    )


DENSITIES = FigureSpec("density", "Loss added against density", density_figure)
METHODS_COMPARED = FigureSpec("methods", "Methods at the largest size", methods_figure, optional=True)
TOLERANCE = FigureSpec("tolerance", "Density tolerated against size", tolerance_figure, optional=True)
BYTES = FigureSpec("bytes", "Loss against packed size", bytes_figure, optional=True)
LATENCY = FigureSpec("latency", "Latency against density", latency_figure, optional=True, diagnostic=True)
