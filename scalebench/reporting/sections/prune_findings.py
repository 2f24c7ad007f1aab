"""The law of sparse models in a sentence, and the published findings on pruning that a study tests."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from scalebench.analysis.pruning import (
    FEWEST_DENSITIES,
    TOLERATED_NATS,
    against_control,
    against_dense,
    pruned,
    slope,
    sparsity_fits,
    tolerated,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.laws import Fit, FitRefused
from scalebench.reporting.figures.pruning import main_group
from scalebench.reporting.outcomes import Finding, Outcome
from scalebench.reporting.quantities import bounded, formula, symbol


def law_sentence(label: str, fitted: Fit | str) -> str:
    """Return the fitted law of sparse models with its parameters, or why there is none."""
    if isinstance(fitted, str):
        return f"{label}: the law of sparse models is not fitted: {fitted}."
    parts = [f"{symbol(name)} = {value} ({ends})" for name, value, ends in parameters(fitted)]
    return f"{label}: the fitted law is {formula(fitted.law.formula)} with {', '.join(parts)}."


def parameters(fitted: Fit) -> Iterator[tuple[str, str, str]]:
    """Yield each parameter of a fit with its value and 95 % interval, as printed."""
    for name, value in fitted.parameters.items():
        try:
            low, high = fitted.interval(name)
        except FitRefused:
            low = high = float("nan")
        text, ends = bounded(value, low, high)
        yield name, text, f"{ends}, at its bound" if name in fitted.bounds_hit else ends


def outcome(study: StudyAnalysis) -> Outcome:
    """Return what the study measured, the law of its main method, and the published findings that it tests."""
    trials = pruned(study.trials)
    if trials.empty:
        return Outcome("loss, bytes and time after pruning", "refused: no trial was pruned")
    label, part = main_group(trials)
    fits = [fitted for name, fitted in sparsity_fits(study).items() if label.startswith(name)]
    fitted = fits[0] if fits else "only the control was run"
    law = law_sentence(label, fitted) if isinstance(fitted, Fit) else f"refused: {fitted}"
    return Outcome("loss added, density, bytes, time", law, tuple(findings(trials, label, part)))


def findings(trials: pd.DataFrame, label: str, part: pd.DataFrame) -> Iterator[Finding]:
    """Yield the findings on size, on the choice of the weights, and on bytes, each for one main group of trials."""
    yield _size_finding(label, part)
    compared = dict(against_control(trials, str(part["method"].iloc[0])))
    if compared:
        density, more = next(iter(compared.items()))
        yield Finding(
            "weights chosen by magnitude cost less than random ones", "Han et al. 2015, arXiv:1506.02626",
            f"{label}, loss added at random minus by magnitude at density {density:g}", more.value, more.low, more.high,
            seeds=more.n, each="model", unit="nats",
        )  # fmt: skip
    excess = dict(against_dense(part))
    if excess:
        density = min(excess, key=lambda each: abs(each - 0.5))
        each = excess[density]
        yield Finding(
            "a pruned large model beats a dense small one of equal size", "Zhu & Gupta 2017, arXiv:1710.01878",
            f"{label}, loss of dense models of equal bytes minus that of pruned ones at density {density:g}",
            -each.value, -each.high, -each.low, seeds=each.n, unit="nats",
        )  # fmt: skip


def _size_finding(label: str, part: pd.DataFrame) -> Finding:
    published, source = "larger models tolerate more pruning", "Li et al. 2020, arXiv:2002.11794"
    points = tolerated(part)
    if part["density"].nunique() < FEWEST_DENSITIES or points["density"].isna().any():
        reason = f"{label}: not every model loses {TOLERATED_NATS:g} nats within {FEWEST_DENSITIES} or more densities"
        return Finding(published, source, reason=reason)
    change = slope(points["size"], points["density"])
    if change is None:
        return Finding(published, source, reason="models of one size")
    effect = f"{label}, decrease of the density at which {TOLERATED_NATS:g} nats are lost, per doubling of size"
    return Finding(published, source, effect, -change.value, -change.high, -change.low, seeds=change.n, each="model")
