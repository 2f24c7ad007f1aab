"""Figures as matplotlib axes, for notebooks: the report's, ``results.plot.loss()``, and of fits, ``plot(fit)``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from pandas.plotting import PlotAccessor

from scalebench.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from scalebench.analysis.study import StudyAnalysis
    from scalebench.reporting.svg import Marks


def plot(fitted: Any, ax: Axes | None = None, *, at: float | Sequence[float] = ()) -> Axes:
    """Draw what ``fit``, ``optimal`` or ``tune`` return, with its points, into ``ax`` (new axes), which it returns.

    Several allocations, or laws of swept columns, are drawn together. ``at`` is the compute in FLOPs over which
    allocations are drawn besides that of their own optima, both ends of a range or a budget; or a size to which the
    law of an optimum goes on. Raises ``InputError``.
    """
    import matplotlib.pyplot as plt

    from scalebench.reporting.svg import Marks

    several = list(fitted) if isinstance(fitted, Sequence) else [fitted]
    draw = _figure_of(several, [at] if isinstance(at, int | float) else list(at))
    axes = plt.subplots(layout="constrained")[1] if ax is None else ax
    figure: Any = axes.figure
    draw(Marks(figure, axes))
    return axes


def _figure_of(fitted: Sequence[Any], at: Sequence[float]) -> Callable[[Marks], None]:
    """Return what draws a fit, or allocations or laws of optima together. Raises ``InputError``."""
    from scalebench.advice.allocation import Allocation
    from scalebench.advice.optima import OptimumLaw
    from scalebench.laws import Fit
    from scalebench.reporting.figures.points import allocation_figure, fit_figure, optima_figure

    kinds = {type(each) for each in fitted}
    if kinds == {Fit} and len(fitted) == 1:
        return lambda marks: fit_figure(marks, fitted[0])
    if kinds == {OptimumLaw}:
        return lambda marks: optima_figure(marks, fitted, at[0] if at else None)
    if kinds != {Allocation}:
        names = " and ".join(sorted(kind.__name__ for kind in kinds)) or "nothing"
        raise InputError([f"plot: {names}: expected one fit, or what optimal or tune return"])
    spent = np.array([*at, *(flops for each in fitted for flops, _ in each.optima)])
    if len(np.unique(spent)) < 2:
        raise InputError(
            ["plot: this allocation has no budgets of its own; give the compute in FLOPs: at=(1e18, 1e21)"]
        )
    return lambda marks: allocation_figure(marks, fitted, at, spent)


class Plots(PlotAccessor):
    """The figures of a report, each drawn into ``ax`` (by default new axes), which it returns; beside pandas' plots."""

    def __init__(self, data: Any) -> None:
        super().__init__(data)
        self.trials = data

    @cached_property
    def _analysed(self) -> StudyAnalysis:
        """The study, analysed once for all figures."""
        from scalebench.analysis.study import analyse

        results = self.trials.results
        (study,) = results.studies
        return analyse(results, study)

    def _draw(self, name: str, ax: Axes | None) -> Axes:
        import matplotlib.pyplot as plt

        from scalebench.reporting.svg import Marks
        from scalebench.reporting.views import Caption

        module, function = FIGURES[name]
        studies = list(self.trials.results.studies)
        if len(studies) != 1:
            raise InputError([f"plot.{name}: {len(studies)} studies here; load one: load_results('RESULTS/<study>')"])
        axes = plt.subplots(layout="constrained")[1] if ax is None else ax
        draw = getattr(import_module(f"scalebench.reporting.figures.{module}"), function)
        figure: Any = axes.figure
        drawn = draw(Marks(figure, axes), self._analysed)
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
