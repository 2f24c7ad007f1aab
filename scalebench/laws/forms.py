"""The data structure of a scaling law, which the fitter reads without knowing the law.

A law is a sum of positive terms, `prediction = sum_j c_j * b_j(x; exponents)` with every coefficient `c_j >= 0`. A law
is one function that returns `log b_j`, so that terms spanning many orders of magnitude stay finite; exact derivatives
come from calling it with jets. To add a law, write that function and an entry in `catalogue.LAWS`, or pass a `Law`
to `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.jets import Jet, Pair

Array = NDArray[np.float64]
LogTerms = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[Any]]


class FitRefused(ValueError):  # noqa: N818 - expected input, not a bug
    """The points do not support the requested fit, interval or advice; the message has what was given and needed."""


def log_sum(first: Any, second: Any) -> Any:
    """Log of the sum of two exponentials, of numbers of any kind; the larger is taken out lest it overflow."""
    larger = np.maximum(np.real(first), np.real(second))
    return larger + np.log(np.exp(first - larger) + np.exp(second - larger))


def _stacked(by_term: Sequence[Mapping[Any, Any]], shape: tuple[int, int, int]) -> dict[Any, Array]:
    """Derivatives by key of all terms, each of ``shape``, from those of each term."""
    stacked: dict[Any, Array] = {}
    for i, derivatives in enumerate(by_term):
        for key, values in derivatives.items():
            stacked.setdefault(key, np.zeros(shape))[:, i] = values
    return stacked


@dataclass(frozen=True)
class Naming:
    """The published parameters (`names`) of a law that is fitted in other coordinates.

    `usual(coordinates, centre)` converts coordinates, fitted to inputs divided by exp(centre), into the published
    parameters in natural units; `coordinates(usual)` is its inverse at centre 0. Values are numbers or [batch]. `rates`
    are parameters that are 1 / a coordinate, each with that coordinate and its input; infinite where that is 0. `same`
    are parameters that are also coefficients; `logs` maps a coordinate to the parameter whose log it is.
    """

    names: tuple[str, ...]
    usual: Callable[[Mapping[str, Any], Mapping[str, float]], dict[str, Any]]
    coordinates: Callable[[Mapping[str, Any]], dict[str, Any]]
    rates: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    same: tuple[str, ...] = ()
    logs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Law:
    """A named form: `prediction = sum_j coefficients[j] * exp(log_terms(log x, exponents)[j])`.

    `log_terms(logs, exponents)` takes the natural logs of the inputs, shape [n], and the exponents, shape [batch, 1],
    both by name, and returns one array (or number) per coefficient. It may use arithmetic, `np.where`, and any analytic
    NumPy function of one argument, since it is also called with jets of the exponents and with complex ones. It may use
    no `abs` or `max` of them; their plain values, for comparisons, are `exponent.real`.
    `offset` names the coefficient that is an irreducible loss; it is bounded by the lowest measured loss.
    `positions` names the exponents that are logs of an input, and that input: their range is that of the points.
    `same_unit` maps an input to another with the same unit; it need not vary on its own. `narrow` names inputs that
    cannot vary by a large factor, as losses. `by_difference` names inputs in the exponent of e, as bits are: how far
    they vary is their difference, not their ratio. `naming` is for laws whose published parameters are not the
    coefficients and exponents; they are fitted with inputs divided by their geometric means.
    """

    name: str
    formula: str
    units: str
    source: str
    inputs: tuple[str, ...]
    response: str
    coefficients: tuple[str, ...]
    exponents: Mapping[str, tuple[float, float]]  # search range of each, also its bounds
    log_terms: LogTerms
    offset: str | None = None
    positions: Mapping[str, str] = field(default_factory=dict)
    same_unit: Mapping[str, str] = field(default_factory=dict)
    narrow: tuple[str, ...] = ()
    by_difference: tuple[str, ...] = ()
    naming: Naming | None = None

    @property
    def coordinates(self) -> tuple[str, ...]:
        """Names of the coordinates of the fit: coefficients first, then exponents."""
        return (*self.coefficients, *self.exponents)

    @property
    def parameters(self) -> tuple[str, ...]:
        """Usual names of all parameters."""
        return self.naming.names if self.naming else self.coordinates

    @property
    def pinnable(self) -> tuple[str, ...]:
        """Parameters that can be fixed: all, or with `naming` those that are a single coordinate."""
        naming = self.naming
        names = (*self.exponents, self.offset, *naming.rates, *naming.same) if naming else self.coordinates
        return tuple(name for name in self.parameters if name in names)

    def pinned(self, name: str, value: float, centre: Mapping[str, float]) -> tuple[int, float]:
        """Index of the coordinate of a pinned parameter, and its value for inputs divided by exp(centre)."""
        if self.naming and name in self.naming.rates:
            coordinate, source = self.naming.rates[name]
            return self.coordinates.index(coordinate), float(np.exp(centre[source]) / value)
        return self.coordinates.index(name), value

    def usual_name(self, coordinate: str) -> str:
        """The parameter whose value, reciprocal or log a coordinate is; otherwise the coordinate's own name."""
        if not self.naming:
            return coordinate
        rates = {other: name for name, (other, _) in self.naming.rates.items()}
        return {**self.naming.logs, **rates}.get(coordinate, coordinate)

    def terms(self, logs: Mapping[str, Array], exponents: NDArray[Any]) -> NDArray[Any]:
        """Log of each term, [batch, coefficients, n], for exponents [batch, k], real or complex."""
        by_name = {name: exponents[:, i, None] for i, name in enumerate(self.exponents)}
        shape = (len(exponents), next(iter(logs.values())).size)
        return np.stack([np.broadcast_to(term, shape) for term in self.log_terms(logs, by_name)], axis=1)

    def slopes(self, logs: Mapping[str, Array], exponents: Array) -> tuple[dict[int, Array], dict[Pair, Array]]:
        """First and second derivatives of `terms` by index of an exponent and by pair, [batch, coefficients, n] each.

        Those that are absent are zero for every term.
        """
        by_name = {name: Jet(exponents[:, i, None], {i: 1.0}) for i, name in enumerate(self.exponents)}
        terms = [Jet.of(term) for term in self.log_terms(logs, by_name)]
        shape = (len(exponents), len(terms), next(iter(logs.values())).size)
        return _stacked([term.first for term in terms], shape), _stacked([term.second for term in terms], shape)

    def predict(self, parameters: Mapping[str, Any], logs: Mapping[str, Array]) -> Array:
        """Response in its own units, [batch, n], for parameters by name, each a number or [batch]."""
        coordinates = self.naming.coordinates(parameters) if self.naming else parameters
        exponents = np.stack(np.broadcast_arrays(*(np.atleast_1d(coordinates[p]) for p in self.coordinates)), axis=1)
        coefficients, exponents = np.split(exponents, [len(self.coefficients)], axis=1)
        prediction: Array = (coefficients[:, :, None] * np.exp(self.terms(logs, exponents))).sum(axis=1)
        return prediction
