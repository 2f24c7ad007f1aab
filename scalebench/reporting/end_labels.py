"""Names of lines beside their ends, kept apart from one another: for more series than a legend can show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

Array = NDArray[np.float64]

FONT_POINTS, LINE_POINTS = 9.5, 13.5  # the page enlarges text to 13 units on a phone
AXES_SHARE = 0.8  # of the figure's height; the rest holds ticks and the axis' name
MOST_INCHES = 6.2
LEADER_END, TEXT_START = 1.03, 1.045  # in widths of the axes
LEADER = "leader"  # begins the ids of leaders in the drawing
PHONE_ROOM = 0.075  # of the figure's width, left free for the larger text


@dataclass(frozen=True)
class End:
    """The end of a line in data coordinates, with its colour and its name."""

    x: float
    y: float
    color: str
    name: str


def end_of(line: Line2D, color: str, name: str) -> End | None:
    """Return the rightmost finite point of a line as its end; None of a line without one, such as a legend's entry.

    Dashed lines and steps are references beside the series: they stay in the legend.
    """
    x, y = (np.asarray(values, dtype=float) for values in line.get_data())
    finite = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
    drawn_as_reference = line.get_drawstyle() != "default" or line.get_linestyle() == "--"
    if drawn_as_reference or not finite.size or not line.get_transform().contains_branch(line.axes.transData):  # type: ignore[union-attr]
        return None
    last = finite[np.argmax(x[finite])]
    return End(float(x[last]), float(y[last]), color, name)


def apart(places: Sequence[float], gap: float, lowest: float = 0.0, highest: float = 1.0) -> Array:
    """Move places (n,) as little as possible, in least squares, so that neighbours are at least ``gap`` apart.

    Their order stays. Where ``lowest`` to ``highest`` has no room for all of them, the gap is what it has room for.
    """
    from scipy.optimize import isotonic_regression

    n = len(places)
    gap = min(gap, (highest - lowest) / max(n - 1, 1))
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(n)
    moved = isotonic_regression(np.asarray(places, dtype=float)[order] - steps).x
    result = np.empty(n)
    result[order] = np.clip(moved, lowest, highest - steps[-1] if n else highest) + steps
    return result


def label_ends(axes: Axes, ends: Sequence[End]) -> None:
    """Write the name of each line to the right of the axes, with a leader from its end; the figure grows as needed."""
    from matplotlib.lines import Line2D

    figure = axes.get_figure()
    assert figure is not None
    height = max(figure.get_figheight(), LINE_POINTS / 72 * len(ends) / AXES_SHARE)  # type: ignore[union-attr]
    height = min(height, MOST_INCHES)
    figure.set_figheight(height)  # type: ignore[union-attr]
    axes.autoscale_view()
    axes.set(xlim=axes.get_xlim(), ylim=axes.get_ylim())  # what is added below does not move them
    fractions = (axes.transData + axes.transAxes.inverted()).transform([(end.x, end.y) for end in ends])
    places = apart(fractions[:, 1].tolist(), LINE_POINTS / 72 / (AXES_SHARE * height))
    for i, (end, (x, y), place) in enumerate(zip(ends, fractions, places, strict=True)):
        leader = Line2D([x, 1.0, LEADER_END], [y, y + (place - y) * 0.3, place], transform=axes.transAxes,
                        color=end.color, linewidth=0.8, clip_on=False, gid=f"{LEADER}{i}")  # fmt: skip
        leader.set_in_layout(False)
        axes.add_artist(leader)
        axes.text(TEXT_START, place, end.name, transform=axes.transAxes, va="center", fontsize=FONT_POINTS)
    if engine := figure.get_layout_engine():  # none in a figure of someone else's
        engine.set(rect=(0, 0, 1 - PHONE_ROOM, 1))  # type: ignore[call-arg]
