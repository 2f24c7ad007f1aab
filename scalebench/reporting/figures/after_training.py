"""What quality costs in bytes and in time after training: every trial with its chain, and the Pareto front by name."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import pandas as pd

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.tradeoff import UNCHANGED, by_weights, chain, main_group, tradeoff_points
from scalebench.analysis.trials import numeric
from scalebench.reporting.figures.tradeoffs import draw_front
from scalebench.reporting.quantities import quantity, scale, uncertain
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

COSTS = {"bytes": ("bytes of the weights", "B"), "latency": ("time of a forward pass, batch of one", "s")}
MOST_LABELS = 8  # series of their own colour; more are drawn as one
NAMED = 4  # trials of the front that the caption names; the table has all
COLUMNS = ("trial", "where it comes from", "parameters", "loss (nats)", "FLOPs of the chain", "on the Pareto front")


def tradeoff_figure(marks: Marks, studies: Sequence[StudyAnalysis], cost: str) -> Caption | str | None:
    """Loss of every trial against what it costs at inference, unchanged models hollow, with the Pareto front."""
    everything = tradeoff_points(studies)
    comparable = main_group(everything)
    points = comparable.assign(cost=comparable[cost]).dropna(subset=["cost", "loss"])
    points = points[points["cost"] > 0].sort_values(["cost", "loss", "trial_id"]).reset_index(drop=True)
    if points["unchanged"].all() or len(points) < 2:
        return _missing(studies) if cost == "latency" else None
    name, unit = COSTS[cost]
    factor, prefixed = scale(float(points["cost"].median()), unit)
    points["group"] = _groups(points, by="study" if len(studies) > 1 else "label")
    _draw(marks, points, factor, unit)
    front = draw_front(marks, points, factor)
    marks.axes.set(xlabel=f"{name} ({prefixed})", ylabel="validation loss (nats)")
    legend(marks)
    data = table(f"Loss against {name}, cheapest first.", (*COLUMNS[:3], name, *COLUMNS[3:]),
                 _rows(points, set(front.index), everything, unit))  # fmt: skip
    # A page of several studies has no room for all trials of each again.
    excerpt = tuple(sorted(int(i) for i in front.index if i < len(data.rows))) if len(studies) > 1 else ()
    return Caption(
        _text(points, front, name, left_out=len(everything) - len(comparable)),
        replace(data, excerpt=excerpt if len(excerpt) < len(data.rows) else ()),
    )


def _missing(studies: Sequence[StudyAnalysis]) -> str | None:
    """Return why times that were measured are not shown."""
    timed = sum(int(numeric(study.trials, "latency_s").notna().sum()) for study in studies)
    return f"Of {timed} trials that were timed none had its cores, or the GPU, to itself." if timed else None


def _groups(points: pd.DataFrame, by: str) -> pd.Series[str]:
    """Return the label in the legend of each point."""
    changed = points[by].where(~points["unchanged"].astype(bool), UNCHANGED)
    several = changed.nunique() - 1 <= MOST_LABELS
    return changed if several else changed.where(changed == UNCHANGED, "changed")


def _draw(marks: Marks, points: pd.DataFrame, factor: float, unit: str) -> None:
    labels = [UNCHANGED, *sorted(set(points["group"]) - {UNCHANGED})]
    for i, label in enumerate(labels):
        part = points[points["group"] == label]
        titles = [f"{_name(row)}: {uncertain(row['loss'], row['se'])} nats, {quantity(row['cost'], unit)}"
                  for row in part.to_dict("records")]  # fmt: skip
        style: dict[str, Any] = series_style(i - 1)
        if label == UNCHANGED:
            style = {"color": PAPER, "marker": "o", "markeredgecolor": MUTED, "markeredgewidth": 1.4}
        marks.draw(part["cost"] / factor, part["loss"], titles, **style, markersize=5, label=label)


def _name(row: Any) -> str:
    change = row["settings"] or (UNCHANGED if row["unchanged"] else row["study"])
    return f"{row['trial_id'][:8]} ({quantity(row['size'])}, {change})"


def _text(points: pd.DataFrame, front: pd.DataFrame, name: str, left_out: int) -> str:
    names = [_name(row) for row in front.to_dict("records")]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    note = (
        f" {left_out} trials of another family, or that were validated on other data, are left out." if left_out else ""
    )
    hollow = "Hollow marks are models that were only trained. " if points["unchanged"].any() else ""
    return (
        f"Each mark is a trial. {hollow}The grey steps are the Pareto front: trials that none beats in both loss and "
        f"{name}. {len(names)} of {len(points)} are on it, cheapest first: {'; '.join(names[:NAMED])}{more}.{note}"
    )


def _rows(points: pd.DataFrame, front: set[Any], everything: pd.DataFrame, unit: str) -> Iterator[Sequence[Cell]]:
    known = by_weights(everything)
    for index, row in enumerate(points.to_dict("records")):
        yield (
            word(row["trial_id"]), word(chain(row, known)), number(row["size"]), number(row["cost"], unit),
            (uncertain(row["loss"], row["se"]), row["loss"]), number(row["flops"], "FLOP"),
            word("yes" if index in front else "no"),
        )  # fmt: skip


def _single_study(marks: Marks, study: StudyAnalysis, cost: str) -> Caption | str | None:
    return tradeoff_figure(marks, [study], cost)


# Of one study, and of all studies of a page.
OF_STUDY = tuple(
    FigureSpec[StudyAnalysis](
        f"after-{cost}", f"Loss against {COSTS[cost][0]}", partial(_single_study, cost=cost), optional=True
    )
    for cost in COSTS
)
OF_ALL = tuple(
    FigureSpec[Sequence[StudyAnalysis]](
        f"after-{cost}",
        f"All together: loss against {COSTS[cost][0]}",
        partial(tradeoff_figure, cost=cost),
        optional=True,
    )
    for cost in COSTS
)
