"""The Python API beside the rooms' own functions: what the commands do, on paths, tables, results and fits.

Every function takes what a command takes (the path of points, of a results folder or of a fit's JSON), or the objects
that the others return, and gives back a plain value. Wrong types get a sentence.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pandas as pd

from scalebench import store
from scalebench.analysis.fit_warnings import file_warnings, value_warnings
from scalebench.analysis.selected import trial_warnings
from scalebench.errors import InputError, expect, number_of, unknown
from scalebench.laws import Fit, Law
from scalebench.laws import fit as fit_law
from scalebench.laws.columns import positive_columns
from scalebench.points.files import OF_RESULTS, is_fit, is_results, open_results
from scalebench.points.fit_file import fit_points, from_document, open_fit
from scalebench.points.in_memory import POINTS, as_pandas, law_names, law_values, selected_rows, with_numbers
from scalebench.points.roles import find_law
from scalebench.points.warnings import shape_warnings
from scalebench.reporting.plots import Plots

if TYPE_CHECKING:
    from scalebench.advice import Allocation
    from scalebench.advice.design import Design
    from scalebench.advice.multiplier import ComputeMultiplier
    from scalebench.advice.optima import OptimumLaw
    from scalebench.analysis.predictions import SizePrediction

SHOWN = ("study", "status", "family", "params_non_embedding", "seed", "validation_loss_nats", "step_time_median_s")
SHOWN_ROWS = 12
ORDER = ("study", "params_non_embedding", "seed")


class Results(pd.DataFrame):
    """The trials of results folders, one row per trial: a data frame whose parts are plain data frames.

    ``table`` has the main columns, ``fit()`` fits a law to the trials, ``plot.loss()`` and others draw the report's
    figures.
    """

    _metadata: ClassVar[list[str]] = ["results"]
    results: store.Results

    @property
    def _constructor(self) -> Any:
        return pd.DataFrame

    @cached_property
    def plot(self) -> Plots:
        """The figures of a report, and pandas' own plots."""
        return Plots(self)

    @property
    def table(self) -> pd.DataFrame:
        """The main columns of every trial, by study, size and seed."""
        main = pd.DataFrame(self)[[name for name in SHOWN if name in self.columns]]
        return main.sort_values([name for name in ORDER if name in main], kind="stable")

    def fit(self, law: str = "power", where: str | None = None, **options: Any) -> Fit:
        """Fit a law to the valid trials that ended ok; arguments as of ``scalebench.fit``."""
        return fit(self, law, where=where, **options)

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>{self.table.head(SHOWN_ROWS).to_html(index=False, na_rep='', border=0)}"

    def __repr__(self) -> str:
        counts = ", ".join(f"{count} {status}" for status, count in self["status"].value_counts().items())
        studies = ", ".join(map(str, dict.fromkeys(self["study"])))
        return f"Results: {number_of(len(self), 'trial')} of {studies} ({counts}); .table, .fit(), .plot.loss()"


def load_results(*paths: str | Path) -> Results:
    """Return the trials under results folders, one row per trial. Raises ``StoreError``."""
    _check_paths("load_results", paths)
    if not paths:
        raise InputError("load_results: give the path of a results folder, or several, one after another")
    results = store.read_results(*paths)
    loaded = Results(results.frame)
    loaded.results = results
    return loaded


def load_fit(path: str | Path) -> Fit:
    """Return the fit that `scalebench fit POINTS --output FILE` wrote. Raises ``StoreError``."""
    _check_paths("load_fit", [path])
    return from_document(Path(path))[0]


def fit(points: Any, law: str = "power", *, where: str | None = None, **options: Any) -> Fit:
    """Fit a law to points: a path, a table with columns of the law's inputs and response, or results.

    A table with the columns of results (params_non_embedding, tokens_seen, validation_loss_nats) needs no renaming.
    ``options`` are those of ``scalebench.laws.fit``: loss, delta, space, weights, fixed. Raises ``InputError`` or
    ``FitRefused``.
    """
    expect(law, str | Law, "fit: the law is a name or a Law")
    expect(where, str | None, "fit: where is an expression in a text")
    if isinstance(points, str | Path):
        fitted, read = fit_points(Path(points), law, {}, where, options)
        _warn(file_warnings(Path(points), fitted, read, where))
        return fitted
    form = find_law(law) if isinstance(law, str) else law
    loaded = points.results if isinstance(points, Results) else None
    chosen = selected_rows("fit", _valid(points) if isinstance(points, Results) else points, where)
    values = law_values(chosen, form)
    fitted = fit_law(values, form, **options)
    if loaded is None:
        _warn(value_warnings({role: values[role] for role in (*form.inputs, form.response)}, fitted))
    else:
        mixed = trial_warnings(Path("the results"), loaded, where, law_names(chosen, form).values())
        _warn([*mixed, *shape_warnings(fitted)])
    return fitted


def _valid(results: Results) -> pd.DataFrame:
    """Return the trials that laws are fitted to."""
    table = open_results(Path("the results"), results.results)
    return results[results["trial_id"].isin([table.locate(i, "trial_id")[1] for i in range(_rows(table))])]


def _warn(lines: Iterable[str]) -> None:
    """Warn at the line that called ``scalebench.fit`` or ``Results.fit``."""
    for line in lines:
        warnings.warn(line, stacklevel=3)


def _rows(table: Any) -> int:
    return sum(batch.num_rows for batch in table.batches(["trial_id"]))


def predict(
    source: Any, params: float | None = None, tokens: float | None = None, *, where: str | None = None, **inputs: float
) -> SizePrediction:
    """Predict what a model of ``params`` parameters needs and reaches.

    ``source`` is a results folder, the JSON of a fit, a ``Fit``, or a table, to which the law of size alone is fitted;
    ``inputs`` are other inputs of a fitted law.
    """
    from scalebench.analysis.in_use import PREDICTABLE, predict_selected
    from scalebench.analysis.predictions import predict_fit
    from scalebench.analysis.selected import select_study
    from scalebench.running.dials import count_dial

    values = {"params": params, "x": params, "tokens": tokens, **inputs}
    for name, value in values.items():
        expect(value, float | int | np.number | None, f"predict: {name} is a number")
    if isinstance(source, str | Path) and is_results(Path(source)):
        if inputs:
            raise InputError(f"predict: trials are predicted from params and tokens, not {', '.join(inputs)}")
        if params is None:
            raise InputError(["predict: give params, the size to predict"])
        return predict_selected(select_study(Path(source), where, count_dial, PREDICTABLE), params, tokens)
    law = _fit_of("predict", source, "power", where)
    known = {name: float(value) for name, value in values.items() if value is not None}
    missing = [name for name in law.law.inputs if name not in known]
    if missing:
        raise InputError([f"predict: {law.law.name} needs {' and '.join(missing)}"])
    needed = " and ".join(law.law.inputs)
    if wrong := [name for name in inputs if name not in law.law.inputs]:
        raise InputError(f"predict: {law.law.name} predicts from {needed}, not {', '.join(wrong)}")
    if tokens is not None and "tokens" not in law.law.inputs:
        line = f"predict: tokens is not used: {law.law.name} predicts from {needed}"
        warnings.warn(f"{line}; scalebench.fit(points, 'chinchilla') fits both", stacklevel=2)
    chosen = {name: known[name] for name in law.law.inputs}
    return predict_fit(law, chosen, law.law.response)


def optimal(points: Any, *, approach: int = 3, where: str | None = None, **counting: str) -> Allocation:
    """Return the compute-optimal allocation, N*(C) and D*(C), by one of the three approaches.

    ``counting`` is ``params`` (total, non_embedding) and ``flops`` (6ND, exact).
    """
    from scalebench.advice import Counting, envelope, isoflop
    from scalebench.advice.closed_form import Surfaces
    from scalebench.points.roles import read_roles

    if approach not in (1, 2, 3):
        raise InputError([f"optimal: approach {approach!r}: 1 (envelope), 2 (isoFLOP) or 3 (a fitted surface)"])
    if wrong := counting.keys() - {"params", "flops"}:
        raise InputError([f"optimal: {unknown(name, ('params', 'flops'))}" for name in sorted(wrong)])
    convention = Counting(**counting)
    optional = ("tokens", "flops", "params", "params_non_embedding")
    if isinstance(points, str | Path):
        points = read_roles(Path(points), ("loss",), (*optional, "run"), {}, where)
    else:
        points = selected_rows("optimal", points, where)
    columns = with_numbers(points, ("loss", *optional))
    if approach != 3:
        return envelope(columns, convention) if approach == 1 else isoflop(columns, convention)
    return Surfaces(columns).allocation(convention)


def next_trial(
    source: Any, target: Mapping[str, float], *, budget: float | None = None, most: int = 5, reach: float = 1.0
) -> Design:
    """Return the trial, or within a budget of FLOPs the trials, that narrow the prediction at ``target`` most."""
    from scalebench.advice import best_set
    from scalebench.advice import next_trial as choose
    from scalebench.advice.design import candidate_grid

    expect(target, Mapping, "next_trial: the target is a mapping of the law's inputs")
    law = _fit_of("next_trial", source, "chinchilla", None)
    candidates = candidate_grid(law, 9, reach)
    if budget is None:
        return choose(law, candidates, dict(target))
    return best_set(law, candidates, dict(target), budget, most=most)


def worth(baseline: Any, changed: Any, *, law: str = "power", loss: float | None = None) -> ComputeMultiplier:
    """Return how many times less compute ``changed`` needs to reach a loss of ``baseline``.

    Each is a path, a fit, results, or a table of ``flops`` and ``loss``.
    """
    from scalebench.advice import compute_multiplier

    return compute_multiplier(_compute_fit(baseline, law), _compute_fit(changed, law), loss)


def _compute_fit(source: Any, law: str) -> Fit:
    """Return a fit of loss against training FLOPs, or the one given."""
    from scalebench.analysis.compute import open_compute_fit, trials_by_compute

    source = as_pandas(source)
    if isinstance(source, Mapping | pd.DataFrame) and len(find_law(law).inputs) == 1:
        if isinstance(source, Results):
            return fit_law(trials_by_compute(_valid(source), OF_RESULTS["loss"], "worth"), law)
        columns = positive_columns(with_numbers(source, ("flops", "loss")), ("flops", "loss"))
        return fit_law({"x": columns["flops"], "y": columns["loss"]}, law)
    if isinstance(source, Mapping | pd.DataFrame):
        return fit(source, law)
    if isinstance(source, Fit):
        return source
    expect(source, str | Path, f"worth: expected a fit, or {POINTS}")
    return open_compute_fit(Path(source), law, {}, None)


def tune(
    points: Any,
    optimised: str | Sequence[str] = "learning_rate",
    against: str | Iterable[str] = ("params_non_embedding",),
    *,
    replicates: Iterable[str] = ("seed",),
) -> OptimumLaw | tuple[OptimumLaw, ...]:
    """Return the law of the best value of a swept column against size; of several names, a law each of the joint best.

    Raises ``InputError`` for another column that varies within a sweep and is not among ``replicates``.
    """
    from scalebench.advice import optimum_laws
    from scalebench.analysis.sweep import optimum_laws_of, unmodelled_lines

    for argument in (optimised, against, replicates):
        expect(argument, Iterable, "tune: expected the name of a column, or several")
    points = as_pandas(points)
    expect(points, str | Path | Mapping | pd.DataFrame, f"tune: points are {POINTS}")
    names = [against] if isinstance(against, str) else list(against)
    swept = [optimised] if isinstance(optimised, str) else list(optimised)
    if isinstance(points, str | Path):
        laws = optimum_laws_of(Path(points), swept, names, replicates=list(replicates))
    else:
        points = with_numbers(points, (*names, *swept, "loss", OF_RESULTS["loss"]))
        points.setdefault("loss", points.get(OF_RESULTS["loss"]))
        others = points.keys() - {*names, *swept, *replicates, "loss", OF_RESULTS["loss"]}
        settings = {} if OF_RESULTS["loss"] in points else {name: points[name] for name in sorted(others)}
        swept_columns = positive_columns(points, (*names, *swept))
        if lines := unmodelled_lines(swept_columns, settings, swept, names):
            raise InputError([f"tune: {line}" for line in lines])
        laws = optimum_laws(points, swept, names)
    return laws[0] if isinstance(optimised, str) else laws


def _fit_of(function: str, source: Any, law: str, where: str | None) -> Fit:
    if isinstance(source, Fit):
        return source
    source = as_pandas(source)
    if isinstance(source, Mapping | pd.DataFrame):
        return fit(source, law, where=where)
    path = _path(function, source)
    return load_fit(path) if is_fit(path) else open_fit(path, law, {}, where)


def _path(function: str, source: Any) -> Path:
    expect(source, str | Path, f"{function}: expected a path or a fit")
    return Path(source)


def _check_paths(function: str, paths: Iterable[Any]) -> None:
    for path in paths:
        expect(path, str | Path, f"{function}: expected a path")
