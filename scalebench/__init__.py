"""scalebench: scaling studies by measurement.

The steps in Python, each result a plain value::

    study = scalebench.load_study("study.toml")
    trials = scalebench.plan(study)
    scalebench.run(study, "results")
    results = scalebench.load_results("results")   # a data frame; results.table, results.plot.loss()
    fit = results.fit("power")
    fit.predict(1e6)
    scalebench.report(["results"], "report.html")

``scalebench.compare("attention")`` compares the implementations of an operation; ``predict``, ``optimal``,
``next_trial``, ``worth`` and ``tune`` do what the commands of these names do; ``plot`` draws what they fit.
"""

from __future__ import annotations

__version__ = "0.1.0"

# As `typing` has it, whose import takes longer than all else before an interrupt ends the program in order (cli.entry).
TYPE_CHECKING = False

if TYPE_CHECKING:
    from typing import Any

    from scalebench.api import fit, load_fit, load_results, next_trial, optimal, predict, tune, worth
    from scalebench.comparison import compare
    from scalebench.reporting.plots import plot
    from scalebench.running.pages import report
    from scalebench.running.planning import load_study, plan
    from scalebench.running.sweep import run

__all__ = [
    "compare", "fit", "load_fit", "load_results", "load_study", "next_trial", "optimal", "plan", "plot", "predict",
    "report", "run", "tune", "worth",
]  # fmt: skip

# Delayed imports, here and everywhere: a package that offers names of its modules without importing them has a table
# and `__getattr__` (Scientific Python SPEC 1); a function that needs a heavy library imports it in its body. So neither
# `import scalebench` nor `report`, `status`, `fit` or any `--help` waits for torch.
_HOME = {
    "compare": "scalebench.comparison",
    "load_study": "scalebench.running.planning",
    "plan": "scalebench.running.planning",
    "plot": "scalebench.reporting.plots",
    "report": "scalebench.running.pages",
    "run": "scalebench.running.sweep",
    **dict.fromkeys(
        ("fit", "load_fit", "load_results", "next_trial", "optimal", "predict", "tune", "worth"), "scalebench.api"
    ),
}


def __getattr__(name: str) -> Any:
    """Import the module of a public name on first use."""
    if name not in _HOME:
        raise AttributeError(f"module 'scalebench' has no attribute {name!r}; known: {', '.join(_HOME)}")
    from importlib import import_module

    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """Return the public names, whether or not their modules are imported."""
    return [*__all__, "__version__"]
