"""Which parameters of a fit the points do not determine, whatever value its optimum has."""

from __future__ import annotations

import re
from collections.abc import Mapping

from scalebench.laws.estimate import Estimate

WHOLE_RANGE = 0.95  # share of an exponent's search range that its interval covers: any exponent would do
WIDEST = 1e6  # ratio of the ends of a coefficient's interval; in practice they differ by up to 1e4 to 1e5
WORD = re.compile(r"\w+")


def undetermined(fit: Estimate, intervals: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Return the parameters that the points do not determine, by name, each with the reason.

    They are the other parameters of a term whose coefficient is zero; exponents whose 95 % interval covers the range in
    which they are searched; coefficients of such an exponent's term; and coefficients whose interval spans `WIDEST`.
    """
    reasons = {name: f"{off} = 0" for off in switched_off(fit) for name in beside(fit, off)}
    for name, low, high in _searched(fit):
        lowest, highest = intervals.get(name, (high, low))
        if name not in reasons and highest - lowest >= WHOLE_RANGE * (high - low):
            reasons[name] = "its 95 % interval covers all values in which it is searched"
            reasons |= {
                other: f"{name} is not"
                for other in beside(fit, name)
                if other in fit.law.coefficients and other not in reasons
            }
    for name in fit.law.coefficients if fit.law.exponents else ():
        low, high = intervals.get(name, (1.0, 1.0))
        if name != fit.law.offset and name not in reasons and high > WIDEST * low > 0:
            reasons[name] = f"the ends of its 95 % interval differ by a factor of {high / low:.0e}"
    return _cut_off(fit, intervals) | reasons


def _cut_off(fit: Estimate, intervals: Mapping[str, tuple[float, float]]) -> dict[str, str]:
    """Exponents whose interval ends where their search does while that of their coefficient begins at about zero."""
    reasons: dict[str, str] = {}
    for name, low, high in _searched(fit) if intervals else ():
        beyond = intervals[name][0] <= low or intervals[name][1] >= high
        absent = [
            other for other in beside(fit, name) if other in fit.law.coefficients and _may_vanish(intervals[other])
        ]
        if beyond and absent:
            reasons |= {name: "its 95 % interval ends where its search does", **dict.fromkeys(absent, f"{name} is not")}
    return reasons


def _may_vanish(interval: tuple[float, float]) -> bool:
    return interval[1] > WIDEST * interval[0]


def switched_off(fit: Estimate) -> list[str]:
    """Return the coefficients that a degenerate fit has at zero."""
    names = fit.bounds_hit if fit.status == "degenerate" else ()
    return [name for name in names if name in fit.law.coefficients and name != fit.law.offset]


def _searched(fit: Estimate) -> list[tuple[str, float, float]]:
    """Return the free exponents that are parameters of the law as they are, with their search ranges."""
    first = len(fit.law.coefficients)
    return [
        (name, float(fit.problem.lower[first + i]), float(fit.problem.upper[first + i]))
        for i, name in enumerate(fit.law.exponents)
        if name in fit.parameters and fit.law.usual_name(name) == name and fit.problem.free[first + i]
    ]


def beside(fit: Estimate, name: str) -> set[str]:
    """Return the other parameters of the terms that contain this one."""
    terms = [{*WORD.findall(term)} for term in fit.law.formula.partition("=")[2].split(" + ")]
    return {other for term in terms if name in term for other in term & {*fit.parameters}} - {name}
