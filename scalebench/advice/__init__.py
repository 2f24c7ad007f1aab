"""What fitted laws are for: sizes for a compute budget, the next trial, tuned optima, what a change was worth.

`isoflop`, `envelope`, `parametric` and `conventions` give compute-optimal sizes, `data_constrained_optimum` those of
repeated data, `next_trial` and `best_set` the trials that most narrow a prediction, `optimum_law` the learning rate or
batch size by model size, and `compute_multiplier` the compute that a change saves.
"""

from scalebench.advice.allocation import Allocation, Counting
from scalebench.advice.closed_form import conventions, parametric
from scalebench.advice.compute_optimal import isoflop
from scalebench.advice.data_constrained import data_constrained_optimum
from scalebench.advice.design import best_set, next_trial
from scalebench.advice.envelope import envelope
from scalebench.advice.multiplier import compute_multiplier
from scalebench.advice.optima import optimum_law, optimum_laws

__all__ = [
    "Allocation",
    "Counting",
    "best_set",
    "compute_multiplier",
    "conventions",
    "data_constrained_optimum",
    "envelope",
    "isoflop",
    "next_trial",
    "optimum_law",
    "optimum_laws",
    "parametric",
]
