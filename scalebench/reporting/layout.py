"""Where the axes of a figure lie: as large as their labels and legend leave room for."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from numpy.typing import NDArray

PAD_INCHES = 3 / 72  # at every edge
WHOLE = (0.0, 0.0, 1.0, 1.0)


class OneAxesLayout(LayoutEngine):
    """Fit the one axes of a figure into ``rect`` (left, bottom, width, height, in shares of the figure).

    Matplotlib's constrained layout gives the same to half a pixel for twice the time: it measures all labels twice,
    which is needed only where the new size of the axes has other ticks.
    """

    _adjust_compatible = True
    _colorbar_gridspec = False

    def __init__(self, rect: tuple[float, float, float, float] = WHOLE) -> None:
        super().__init__()
        self.rect = rect

    def set(self, **parameters: Any) -> None:
        """Set ``rect``."""
        self.rect = parameters["rect"]

    def execute(self, fig: Figure) -> None:
        """Place the axes; called when the figure is drawn."""
        axes = fig.axes[0]
        ticks = _ticks(axes)
        self._place(fig, axes)
        if any(not np.array_equal(old, new) for old, new in zip(ticks, _ticks(axes), strict=True)):
            self._place(fig, axes)

    def _place(self, fig: Figure, axes: Axes) -> None:
        drawn = axes.get_tightbbox(for_layout_only=True)
        if drawn is None:
            return
        inside, outside = axes.get_position(), drawn.transformed(fig.transFigure.inverted())
        pad = PAD_INCHES / fig.get_size_inches()
        left, bottom, width, height = self.rect
        low = np.array([left, bottom]) + pad + np.maximum(np.subtract(inside.min, outside.min), 0)
        high = np.array([left + width, bottom + height]) - pad - np.maximum(np.subtract(outside.max, inside.max), 0)
        if (high > low).all():
            axes.set_position((*low, *(high - low)))


def _ticks(axes: Axes) -> list[NDArray[np.float64]]:
    return [np.asarray(axis.get_majorticklocs()) for axis in (axes.xaxis, axes.yaxis)]
