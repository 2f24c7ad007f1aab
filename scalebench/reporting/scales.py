"""What a script needs to draw a figure's axes logarithmic or linear: where values are in the drawing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scalebench.reporting.svg import Marks

if TYPE_CHECKING:
    from matplotlib.axis import Axis

ROOM = 1.05  # between the smallest value and the lower end of a logarithmic axis


def scales_of(marks: Marks) -> list[list[float | bool | None]]:
    """Return the x axis and the y axis of a drawn figure; empty where neither can be both, linear and logarithmic.

    Of each: whether it is logarithmic, the values at its lower and upper end, where these ends are in units of the
    drawing (points), and last the value at its lower end where it is drawn logarithmic; None where it cannot be: of
    names, of values that are not all above zero, or with a second axis that would have to follow.
    """
    axes, (width, height) = marks.axes, 72 * marks.figure.get_size_inches()
    box = axes.get_position()
    x = _scale(axes.xaxis, box.x0 * width, box.x1 * width, axes.get_xlim(), axes.dataLim.x0)
    y = _scale(axes.yaxis, (1 - box.y0) * height, (1 - box.y1) * height, axes.get_ylim(), axes.dataLim.y0)
    if axes.child_axes:
        y[-1] = None
    return [x, y] if x[-1] or y[-1] else []


def _scale(
    axis: Axis, start: float, end: float, limits: tuple[float, float], smallest: float
) -> list[float | bool | None]:
    from matplotlib.ticker import FixedFormatter, NullFormatter

    low, high = limits
    has_names = isinstance(axis.get_major_formatter(), FixedFormatter | NullFormatter)
    least = (
        (low if low > 0 else min(smallest / ROOM, high / 10)) if not has_names and low < high and smallest > 0 else None
    )
    return [
        axis.get_scale() == "log",
        _short(low),
        _short(high),
        round(start, 2),
        round(end, 2),
        least and _short(least),
    ]


def _short(value: float) -> float:
    return float(f"{value:.7g}")
