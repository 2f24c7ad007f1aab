"""The report's figures as matplotlib axes, for notebooks: ``results.plot.loss()``."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pandas.plotting import PlotAccessor

from scalebench.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Plots(PlotAccessor):
    """The figures of a report, each drawn into ``ax`` (by default new axes), which it returns; beside pandas' plots."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.trials = data

    def _draw(self, name: str, ax: Axes | None) -> Axes:
        import matplotlib.pyplot as plt

        from scalebench.analysis.study import analyse
        from scalebench.reporting.svg import Marks
        from scalebench.reporting.views import Caption

        module, function = FIGURES[name]
        results = self.trials.results
        studies = list(results.studies)
        if len(studies) != 1:
            raise InputError([f"plot.{name}: {len(studies)} studies here; load one: load_results('RESULTS/<study>')"])
        axes = plt.subplots(layout="constrained")[1] if ax is None else ax
        draw = getattr(import_module(f"scalebench.reporting.figures.{module}"), function)
        figure: Any = axes.figure
        drawn = draw(Marks(figure, axes), analyse(results, studies[0]))
        if not isinstance(drawn, Caption):
            raise InputError([f"plot.{name}: {drawn or 'nothing of it was measured'}"])
        return axes

    def loss(self, ax: Axes | None = None) -> Axes:
        """Validation loss against size, with the fitted law."""
        return self._draw("loss", ax)

    def time(self, ax: Axes | None = None) -> Axes:
        """Time of a training step against size."""
        return self._draw("time", ax)

    def memory(self, ax: Axes | None = None) -> Axes:
        """Memory against size."""
        return self._draw("memory", ax)

    def curves(self, ax: Axes | None = None) -> Axes:
        """Training loss over the steps."""
        return self._draw("curves", ax)

    def residuals(self, ax: Axes | None = None) -> Axes:
        """Residuals of the law of the loss."""
        return self._draw("residuals", ax)


FIGURES = {
    "loss": ("loss", "loss_figure"),
    "time": ("costs", "step_time_figure"),
    "memory": ("costs", "memory_figure"),
    "curves": ("runs", "curves_figure"),
    "residuals": ("laws", "residuals_figure"),
}
