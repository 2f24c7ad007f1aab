"""scalebench: scaling studies by measurement.

The steps in Python, each result a plain value::

    study = scalebench.load_study("study.toml")
    trials = scalebench.plan(study)
    scalebench.run(study, "results")
    frame = scalebench.load_results("results")
    points = frame[["params_non_embedding", "validation_loss_nats"]].set_axis(["params", "loss"], axis=1)
    fit = scalebench.fit(points, law="power")
    scalebench.report(["results"], "report.html")

``scalebench.compare("attention")`` compares the implementations of an operation.
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

# Delayed imports, here and everywhere: a package that offers names of its modules without importing them has a table
# and `__getattr__` (Scientific Python SPEC 1); a function that needs a heavy library imports it in its body. So neither
# `import scalebench` nor `report`, `status`, `fit` or any `--help` waits for torch.
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
    """Import the module of a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'scalebench' has no attribute {name!r}; known: {', '.join(_HOME)}")
    return getattr(import_module(_HOME[name]), name)
