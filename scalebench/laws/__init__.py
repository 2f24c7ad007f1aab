"""Scaling laws: named forms, a fit that reaches its optimum, and intervals for it.

`fit(points, law="power")` returns a `Fit`; `forms` says what a law is and how to add one, `catalogue` holds the named
ones, `fit` says how one is fitted, and `uncertainty` where intervals, prediction intervals and backtests come from.
NumPy and SciPy's special functions only, and every draw is seeded.
What fits are for: `rolling` and `choose` (hold-out error), `isoflop`, `envelope`, `parametric` and `conventions`
(compute-optimal sizes), `data_constrained_optimum`, `optimum_law` (learning rate, batch size), `next_trial`, `best_set`
and `compute_multiplier`.
"""

from scalebench.laws.allocation import Allocation, Counting
from scalebench.laws.backtest import choose, rolling
from scalebench.laws.catalogue import LAWS
from scalebench.laws.compute_optimal import conventions, isoflop, parametric
from scalebench.laws.data_constrained import data_constrained_loss, data_constrained_optimum
from scalebench.laws.design import best_set, next_trial
from scalebench.laws.envelope import envelope
from scalebench.laws.fit import Fit, fit
from scalebench.laws.forms import FitRefused, Law
from scalebench.laws.multiplier import compute_multiplier
from scalebench.laws.optima import optimum_law
from scalebench.laws.uncertainty import UNASKED, Bootstrap, Holdout, Refits

__all__ = [
    "LAWS",
    "UNASKED",
    "Allocation",
    "Bootstrap",
    "Counting",
    "Fit",
    "FitRefused",
    "Holdout",
    "Law",
    "Refits",
    "best_set",
    "choose",
    "compute_multiplier",
    "conventions",
    "data_constrained_loss",
    "data_constrained_optimum",
    "envelope",
    "fit",
    "isoflop",
    "next_trial",
    "optimum_law",
    "parametric",
    "rolling",
]
