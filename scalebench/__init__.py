"""scalebench: scaling studies by measurement.

The chain in Python, each step a plain value::

    study = scalebench.load_study("study.toml")
    trials = scalebench.plan(study)
    scalebench.run(study, "results")
    frame = scalebench.load_results("results")
    points = frame[["params_non_embedding", "validation_loss_nats"]].set_axis(["params", "loss"], axis=1)
    fit = scalebench.fit(points, law="power")
    scalebench.report(["results"], "report.html")

and beside it ``scalebench.compare("attention")``: the ways to compute one operation, held against each other.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scalebench.comparison import compare
    from scalebench.laws import fit
    from scalebench.reporting import report
    from scalebench.running.planning import load_study, plan
    from scalebench.running.sweep import run
    from scalebench.store import load_results

__all__ = ["compare", "fit", "load_results", "load_study", "plan", "report", "run"]

# Looked up on first use: `import scalebench` takes no torch, which `report`, `status` and `fit` can do without.
_HOME = {
    "compare": "scalebench.comparison",
    "fit": "scalebench.laws",
    "load_results": "scalebench.store",
    "load_study": "scalebench.running.planning",
    "plan": "scalebench.running.planning",
    "report": "scalebench.reporting",
    "run": "scalebench.running.sweep",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'scalebench' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
