"""Scaling laws: named forms, a fit that reaches its optimum, and intervals for it.

`fit(points, law="power")` returns a `Fit`; `forms` defines what a law is and how to add one, `catalogue` holds the
named ones, `estimate` how one is fitted, `intervals` how far to trust it, and `choose` ranks laws by hold-out error.
NumPy and SciPy only, and every draw is seeded. What fits are for is in `scalebench.advice`.
"""

from scalebench.laws.catalogue import LAWS
from scalebench.laws.choice import Choice, choose
from scalebench.laws.fit import Fit, fit
from scalebench.laws.forms import FitRefused, Law
from scalebench.laws.intervals.backtest import Backtest, Forecast
from scalebench.laws.intervals.bootstrap import DEFAULT_REFITS, Bootstrap, Refits

__all__ = [
    "DEFAULT_REFITS",
    "LAWS",
    "Backtest",
    "Bootstrap",
    "Choice",
    "Fit",
    "FitRefused",
    "Forecast",
    "Law",
    "Refits",
    "choose",
    "fit",
]
