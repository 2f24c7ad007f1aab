"""Scaling laws: named forms, a fit that reaches its optimum, and intervals for it.

`fit(points, law="power")` returns a `Fit`; `forms` says what a law is and how to add one, `catalogue` holds the named
ones, `fit` says how one is fitted, and `uncertainty` where intervals, prediction intervals and backtests come from.
NumPy and SciPy's special functions only, and every draw is seeded.
"""

from scalebench.laws.catalogue import LAWS
from scalebench.laws.fit import Fit, fit
from scalebench.laws.forms import FitRefused, Law
from scalebench.laws.uncertainty import Bootstrap, Holdout

__all__ = ["LAWS", "Bootstrap", "Fit", "FitRefused", "Holdout", "Law", "fit"]
