"""What figures are drawn with: axes in the report's style, marks with titles, colours, legends."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from scalebench.reporting.end_labels import end_of, label_ends
from scalebench.reporting.quantities import tick

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# Stand-ins that the page replaces by CSS variables, so that one drawing serves the light, dark and printed page.
INK, MUTED, GRID, PAPER = "#111111", "#777777", "#dddddd", "#fefefe"
SERIES_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#5e4fa2")
RAMP = tuple(f"#{100 + i:06d}" for i in range(9))  # of sizes, smallest first; the page has the colours
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one fewer than the colours: a pair repeats only after 56 series
CSS_COLORS = {INK: "--ink", MUTED: "--muted", GRID: "--grid", PAPER: "--paper"} | {
    color: f"--{kind}{i}" for kind, colors in (("s", SERIES_COLORS), ("r", RAMP)) for i, color in enumerate(colors, 1)
}
RC = {
    "font.size": 10.5, "axes.labelsize": 10.5, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 9.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": MUTED, "xtick.color": MUTED, "ytick.color": MUTED,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.grid": True, "grid.color": GRID, "grid.linewidth": 0.7,
    "axes.axisbelow": True, "legend.frameon": False, "axes.facecolor": "none", "figure.facecolor": "none",
    "lines.linewidth": 1.8, "lines.markersize": 6, "svg.fonttype": "none", "axes.formatter.useoffset": False,
    "text.parse_math": False, "xtick.bottom": False, "ytick.left": False,  # grid lines are enough
}  # fmt: skip
# Ticks between two powers of ten, by the ratio of the axis' ends below which they are drawn; a script has the same.
FEW_SUBS = ((8, (1, 2, 5)), (1000, (1, 3)))  # beside names at the ends of lines, which leave less room
Y_SUBS = ((20, (1, 2, 3, 5)),)  # labels above one another take less room
SUBS = ((8, (1, 1.5, 2, 3, 4, 5, 7)), (100, (1, 2, 5)), (1000, (1, 3)))
LEGEND_ROOM = 66  # characters of legend text across the axes
ENLARGED = 13 / 9.5  # text of a legend on a phone, over that in the drawing
CHARACTER = 0.55  # mean width over height
MAX_MARKS = 400  # of one group: more would overlap and take megabytes
MOST_MARKS = 1000  # of all groups of a figure
DESCRIBED = 4  # groups of marks in a figure's description
DIRECT_FROM = 5  # series: as many lines are labelled at their ends, fewer in a legend


@dataclass
class Marks:
    """A figure, its axes and, per drawn group of marks, the title of each mark."""

    figure: Figure
    axes: Axes
    titles: dict[str, list[str]] = field(default_factory=dict)
    groups: dict[str, Line2D] = field(default_factory=dict)
    thinned: bool = False
    drawn: set[str] = field(default_factory=set)  # what captions may speak of: "band", "curve", "hollow", …

    def draw(self, x: Any, y: Any, titles: Sequence[str], **style: Any) -> None:
        """Draw marks at x, y (n,) with a title each; non-finite ones are left out, above MAX_MARKS thinned evenly."""
        x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
        good = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if good.size > MAX_MARKS:
            good = good[np.linspace(0, good.size - 1, MAX_MARKS).round().astype(int)]
            self.thinned = True
        if good.size:
            gid = f"marks{len(self.titles)}"
            self.titles[gid] = [titles[i] for i in good.tolist()]
            (self.groups[gid],) = self.axes.plot(x[good], y[good], linestyle="none", gid=gid, **style)
            self.drawn |= {"hollow"} if style.get("markerfacecolor", style.get("color")) == PAPER else {"filled"}

    def thin(self) -> None:
        """Thin every group evenly where all of them together have more than MOST_MARKS."""
        total = sum(map(len, self.titles.values()))
        if total <= MOST_MARKS:
            return
        self.thinned = True
        for gid, line in self.groups.items():
            x, y = map(np.asarray, line.get_data())
            left = max(2, len(x) * MOST_MARKS // total)
            rows = np.unique(np.linspace(0, len(x) - 1, left).round().astype(int))
            line.set_data(x[rows], y[rows])
            self.titles[gid] = [self.titles[gid][i] for i in rows]

    def description(self) -> str:
        """Return what is drawn against what, and from where to where the marks of each group go."""
        axes = self.axes
        names = " against ".join(filter(None, (axes.get_ylabel(), axes.get_xlabel())))
        ends = [texts for texts in self.titles.values() if len(texts) > 1][:DESCRIBED]
        spans = [f"{len(texts)} marks from {texts[0]} to {texts[-1]}." for texts in ends]
        return " ".join([*([f"{names[0].upper()}{names[1:]}."] if names else []), *spans])

    def bars(self, places: Any, low: Any, high: Any, **style: Any) -> None:
        """Draw vertical bars from low to high at places, each (n,), those that have both ends."""
        ends = np.array([places, low, high], dtype=float).reshape(3, -1)
        ends = ends[:, np.isfinite(ends).all(axis=0) & (ends[2] > ends[1])]
        if ends.shape[1] > MAX_MARKS:
            ends = ends[:, np.linspace(0, ends.shape[1] - 1, MAX_MARKS).round().astype(int)]
        if ends.size:
            self.axes.vlines(*ends, **style)
            self.drawn.add("bars")

    def band(self, x: Any, low: Any, high: Any, color: str) -> None:
        """Fill between low and high at x, each (n,), where both are finite."""
        low, high = (np.asarray(end, dtype=float) for end in (low, high))
        if (np.isfinite(low) & np.isfinite(high)).sum() > 1:
            self.axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0)
            self.drawn.add("band")


def ramp(n: int) -> list[str]:
    """Return a colour for each of n sizes, smallest first."""
    return [RAMP[i] for i in np.linspace(len(RAMP) - 1 if n == 1 else 0, len(RAMP) - 1, n).round().astype(int)]


def series_styles(ranks: Sequence[int]) -> list[dict[str, Any]]:
    """Return colour and marker of each series by its rank, 0 the best; no colour twice: the others are grey."""
    if len(ranks) <= len(SERIES_COLORS):
        return [series_style(i) for i in range(len(ranks))]
    grey = {"color": MUTED, "marker": "."}
    return [series_style(rank) if rank < len(SERIES_COLORS) else grey for rank in ranks]


def series_style(i: int) -> dict[str, Any]:
    """Return colour and marker of series ``i``; both differ, so that series are distinct without colour vision."""
    return {"color": SERIES_COLORS[i % len(SERIES_COLORS)], "marker": MARKERS[i % len(MARKERS)]}


SIZE_LABEL = "size N (non-embedding parameters)"


def size_axis(axes: Axes, label: str = SIZE_LABEL) -> None:
    """Make x logarithmic with ticks as 1 k, 2 k, 5 k."""
    from matplotlib.ticker import EngFormatter

    axes.set_xscale("log")
    log_ticks(axes.xaxis, *axes.get_xlim(), dense=1000)
    axes.xaxis.set_major_formatter(EngFormatter(sep="\u00a0"))
    axes.set_xlabel(label)


def log_ticks(axis: Axis, low: float, high: float, dense: float = 300, *, few: bool = False) -> None:
    """Place as many ticks on a logarithmic axis from low to high as can be read, at round numbers.

    At powers of ten alone where high is more than ``dense`` times low; ``few`` where the axis is short.
    """
    from matplotlib.axis import YAxis
    from matplotlib.ticker import LogLocator, MaxNLocator

    ratio, beside = high / low, (*SUBS, *Y_SUBS) if isinstance(axis, YAxis) else SUBS
    choices = FEW_SUBS if few else sorted(beside)
    subs = next((subs for most, subs in choices if ratio < min(most, dense)), (1,))
    # As on a linear axis: there would be two, or one.
    linear = MaxNLocator(3 if few else 5, steps=[1, 2, 2.5, 5, 10])
    axis.set_major_locator(linear if ratio < 3 else LogLocator(subs=subs))
    axis.minorticks_off()


def legend_width(labels: Sequence[str], columns: int) -> int:
    """Return the width of a legend in characters; a handle and its gaps take about nine.

    On a phone the page enlarges its text, and every label needs that room.
    """
    shares = np.array_split([len(label) for label in labels], columns)
    return int(sum(ENLARGED * share.max() + 9 for share in shares))


def legend(marks: Marks, title: str | None = None, direct: bool = True) -> None:
    """Label what is drawn: many series at the ends of their lines if ``direct``, the rest in a legend.

    The legend is above the axes, where it hides no data, in as many columns as fit.
    """
    from matplotlib.lines import Line2D

    handles, labels = marks.axes.get_legend_handles_labels()
    ends = [end_of(handle, color_of(handle) or MUTED, label) if direct and isinstance(handle, Line2D) else None
            for handle, label in zip(handles, labels, strict=True)]  # fmt: skip
    line_ends = [end for end in ends if end is not None]
    # Trials, means and fit of one series share its colour: a legend tells them apart.
    if len(line_ends) >= DIRECT_FROM and len({end.color for end in line_ends}) >= DIRECT_FROM:
        label_ends(marks.axes, line_ends)
        if marks.axes.get_xscale() == "log":
            log_ticks(marks.axes.xaxis, *marks.axes.get_xlim(), dense=1000, few=True)
        rest = [i for i, end in enumerate(ends) if end is None]
        handles, labels = [handles[i] for i in rest], [labels[i] for i in rest]
    if not labels:
        return
    columns = next((n for n in range(len(labels), 1, -1) if legend_width(labels, n) <= LEGEND_ROOM), 1)
    marks.axes.legend(handles, labels, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, title=title,
                      alignment="left", columnspacing=_column_gap(labels))  # fmt: skip
    rows = -(-len(labels) // columns) + bool(title)
    marks.figure.set_figheight(marks.figure.get_figheight() + 0.19 * rows)


def _column_gap(labels: Sequence[str]) -> float:
    """Return the gap between columns of a legend in heights of its text; the longest label may grow into it."""
    return 1.5 + (ENLARGED - 1) * CHARACTER * max(map(len, labels))


def cost_axis(axes: Axes, values: pd.Series[float]) -> None:
    """Make x logarithmic where its positive values span more than a factor of four; label its ticks plainly."""
    low, high = float(values.min()), float(values.max())
    if not 0 < low < high / 4:
        return
    axes.set_xscale("log")
    log_ticks(axes.xaxis, low, high)
    axes.xaxis.set_major_formatter(lambda value, _: tick(value))


def finish(marks: Marks, ylabel: str, log: bool = False) -> None:
    """Label both axes and add the legend; x is the size, y logarithmic if ``log``."""
    axes = marks.axes
    if log:
        axes.set_yscale("log")
        log_ticks(axes.yaxis, *axes.get_ylim())
        axes.yaxis.set_major_formatter(lambda value, _: tick(value))
    size_axis(axes)
    axes.set_ylabel(ylabel)
    legend(marks)


def color_of(handle: Artist) -> str | None:
    """Return the colour of a line or its marks; None if it is not one of the page's."""
    colors = (str(getattr(handle, f"get_{kind}", lambda: None)()) for kind in ("markeredgecolor", "color"))
    return next((color for color in colors if color in CSS_COLORS), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' warnings (a missing glyph, an overflow in a fit) from the reader."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield


@contextmanager
def canvas(name: str, height: float = 3.7) -> Iterator[Marks]:
    """Yield empty axes in the report's style; drawing inside the block does not depend on global settings."""
    import matplotlib as mpl  # here, as they take seconds to import and sentences and tables do without
    import seaborn as sns
    from matplotlib.figure import Figure

    from scalebench.reporting.layout import OneAxesLayout

    style: Any = {**dict(sns.axes_style("ticks")), **RC, "svg.hashsalt": name}
    with mpl.rc_context(style):
        figure = Figure(figsize=(5.6, height), layout=OneAxesLayout())
        axes = figure.subplots()
        sns.despine(ax=axes)
        yield Marks(figure, axes)
