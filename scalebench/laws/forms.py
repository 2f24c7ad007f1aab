"""Scaling laws as plain values, and the points they are fitted to.

A law is a sum of positive terms, `prediction = sum_j c_j * b_j(x; exponents)` with every coefficient `c_j >= 0`. A form
is one function that returns `log b_j`, so that terms spanning many orders of magnitude stay finite and the fitter gets
exact gradients by the complex step. To add a law, write that function and an entry in `LAWS`, or pass a `Law` to `fit`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from pandas import DataFrame

Array = NDArray[np.float64]
Columns = "Mapping[str, ArrayLike] | DataFrame"
LogTerms = Callable[[Mapping[str, Any], Mapping[str, Any]], Sequence[Any]]

# Below this ratio of largest to smallest size an exponent cannot be told from an offset.
MINIMUM_SPREAD = 3.0


class FitRefused(ValueError):  # noqa: N818 - not an error of the program: an answer
    """The points cannot carry the fit or the interval asked for; the message says what was given, needed and to do."""


@dataclass(frozen=True)
class Law:
    """A named form: `prediction = sum_j coefficients[j] * exp(log_terms(log x, exponents)[j])`.

    `log_terms(logs, exponents)` takes the natural logs of the inputs, shape [n], and the exponents, shape [batch, 1],
    both by name, and returns one array (or number) per coefficient. It may use any analytic NumPy function, since it is
    also called with complex exponents, but no `abs`, `max` or comparison.
    `offset` names the coefficient that is an irreducible loss: it is bounded by the lowest measured loss.
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

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of all parameters: coefficients first, then exponents."""
        return (*self.coefficients, *self.exponents)

    def terms(self, logs: Mapping[str, Array], exponents: NDArray[Any]) -> NDArray[Any]:
        """Log of each term, [batch, coefficients, n], for exponents [batch, k], real or complex."""
        by_name = {name: exponents[:, i, None] for i, name in enumerate(self.exponents)}
        shape = (len(exponents), next(iter(logs.values())).size)
        return np.stack([np.broadcast_to(term, shape) for term in self.log_terms(logs, by_name)], axis=1)

    def predict(self, parameters: Mapping[str, Any], logs: Mapping[str, Array]) -> Array:
        """Response in its own units, [batch, n], for parameters by name, each a number or [batch]."""
        exponents = np.stack(np.broadcast_arrays(*(np.atleast_1d(parameters[p]) for p in self.parameters)), axis=1)
        coefficients, exponents = np.split(exponents, [len(self.coefficients)], axis=1)
        prediction: Array = (coefficients[:, :, None] * np.exp(self.terms(logs, exponents))).sum(axis=1)
        return prediction


def power(log: Mapping[str, Any], shape: Mapping[str, Any]) -> Sequence[Any]:
    """Loss against parameters, L = E + A * N^-alpha: Kaplan et al. 2020 (2001.08361) with an irreducible loss E."""
    return 0.0, -shape["alpha"] * log["params"]


def chinchilla(log: Mapping[str, Any], shape: Mapping[str, Any]) -> Sequence[Any]:
    """Loss against parameters and tokens, L = E + A * N^-alpha + B * D^-beta: Hoffmann et al. 2022, equation 2."""
    return 0.0, -shape["alpha"] * log["params"], -shape["beta"] * log["tokens"]


def offset_linear(log: Mapping[str, Any], _shape: Mapping[str, Any]) -> Sequence[Any]:
    """A fixed cost and a cost per unit, y = c0 + c1 * x: step time or memory against parameters."""
    return 0.0, log["x"]


LAWS: dict[str, Law] = {
    "power": Law(
        name="power",
        formula="L = E + A * N^-alpha",
        units="L and E in nats (or any loss), N in parameters, A in loss * parameters^alpha",
        source="Kaplan et al. 2020, arXiv 2001.08361; irreducible loss as in Henighan et al. 2020, arXiv 2010.14701",
        inputs=("params",),
        response="loss",
        coefficients=("E", "A"),
        exponents={"alpha": (0.01, 3.0)},
        log_terms=power,
        offset="E",
    ),
    "chinchilla": Law(
        name="chinchilla",
        formula="L = E + A * N^-alpha + B * D^-beta",
        units="L and E in nats, N in parameters, D in tokens, A in nats * parameters^alpha, B in nats * tokens^beta",
        source="Hoffmann et al. 2022, arXiv 2203.15556, Approach 3",
        inputs=("params", "tokens"),
        response="loss",
        coefficients=("E", "A", "B"),
        exponents={"alpha": (0.01, 3.0), "beta": (0.01, 3.0)},
        log_terms=chinchilla,
        offset="E",
    ),
    "offset_linear": Law(
        name="offset_linear",
        formula="y = c0 + c1 * x",
        units="c0 in units of y, c1 in units of y per unit of x",
        source="a launch floor plus work in proportion to size",
        inputs=("x",),
        response="y",
        coefficients=("c0", "c1"),
        exponents={},
        log_terms=offset_linear,
    ),
}


@dataclass(frozen=True)
class Points:
    """Validated points: log inputs by name and the response, each [n]; two groupings of the rows as ids 0, 1, …"""

    logs: dict[str, Array]
    response: Array
    configuration: NDArray[np.intp]  # clusters for the bootstrap
    place: NDArray[np.intp]  # rows with equal inputs: replicates

    @property
    def n_configurations(self) -> int:
        """Number of independent configurations."""
        return int(self.configuration.max()) + 1

    def highest_offset(self) -> tuple[float, float]:
        """Highest believable irreducible loss: (for a free one, for a pinned one).

        Lowest mean over replicates plus 3 standard errors, and the lowest value of mean plus 3 standard errors. The
        standard error pools the relative spread of replicates; it is 0 without replicates.
        """
        runs = np.bincount(self.place)
        mean = np.bincount(self.place, self.response) / runs
        spread = self.response / mean[self.place] - 1.0
        freedom = len(spread) - len(mean)
        noise = np.sqrt((spread**2).sum() / freedom) if freedom else 0.0
        ceiling = mean * (1.0 + 3.0 * noise / np.sqrt(runs))
        return float(ceiling[mean.argmin()]), float(ceiling.min())


def select_law(law: str | Law) -> Law:
    """Return the law of that name, or the `Law` itself."""
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise FitRefused(f"law {law!r} is not known; choose one of {', '.join(LAWS)} or pass a Law")
    return LAWS[law]


def read_inputs(law: Law, columns: Mapping[str, ArrayLike] | DataFrame) -> dict[str, Array]:
    """Natural logs of the law's inputs, each [n]; a law of one input also takes it as `x`."""
    alias = {law.inputs[0]: "x"} if len(law.inputs) == 1 else {}
    values = {name: _column(columns, name, alias.get(name)) for name in law.inputs}
    if len({len(value) for value in values.values()}) > 1:
        raise FitRefused(f"columns differ in length: {', '.join(f'{k} {len(v)}' for k, v in values.items())}")
    return {name: np.log(value) for name, value in values.items()}


def read_points(law: Law, columns: Mapping[str, ArrayLike] | DataFrame) -> Points:
    """Check the columns of `law` and return them as `Points`.

    Raises FitRefused for a missing column, values that are not positive finite numbers, and lengths that differ.
    """
    logs = read_inputs(law, columns)
    response = _column(columns, law.response, "y")
    inputs = np.stack(list(logs.values()), axis=1)
    if len(response) != len(inputs):
        raise FitRefused(f"columns differ in length: {law.inputs[0]} {len(inputs)}, {law.response} {len(response)}")
    if not len(response):
        raise FitRefused(f"no points given; {law.name} needs at least {len(law.parameters)} configurations")
    place = _ids(inputs)
    if "config" not in list(columns.keys()):
        return Points(logs, response, place, place)
    config = np.asarray(columns["config"]).astype(str)
    if config.shape != response.shape:
        raise FitRefused(
            f"column 'config' has shape {config.shape}; it needs one value for each of {len(response)} rows"
        )
    return Points(logs, response, _ids(config), place)


def check_design(law: Law, points: Points, free: int) -> None:
    """Refuse designs that cannot tell `free` parameters apart."""
    sizes = min(points.n_configurations, int(points.place.max()) + 1)
    if sizes < free:
        raise FitRefused(
            f"{sizes} configurations for {free} free parameters of {law.name}; add sizes or pin parameters"
        )
    for name, log in points.logs.items():
        spread = float(np.exp(np.ptp(log)))
        if spread <= MINIMUM_SPREAD:
            raise FitRefused(
                f"column {name!r} spans a factor {spread:.3g}; {law.name} needs more than {MINIMUM_SPREAD:g}: widen it"
            )
    logs = np.stack([log - log.mean() for log in points.logs.values()], axis=1)
    # Inputs tied by one power of each other, as in tokens = 20 * params, leave their exponents free to trade places.
    if np.linalg.svd(logs / np.linalg.norm(logs, axis=0), compute_uv=False)[-1] < 1e-3 and logs.shape[1] > 1:
        raise FitRefused(f"columns {', '.join(law.inputs)} lie on one line in log space; vary one at a fixed other")


def _column(columns: Mapping[str, ArrayLike] | DataFrame, name: str, alias: str | None) -> Array:
    """Positive finite values of a column, [n], by its name or its alias."""
    present = list(columns.keys())
    found = next((key for key in (name, alias) if key is not None and key in present), None)
    if found is None:
        raise FitRefused(f"column {name!r} is missing; columns given: {', '.join(map(str, present)) or 'none'}")
    raw: NDArray[Any] = np.atleast_1d(np.asarray(columns[found]))
    if raw.ndim != 1:
        raise FitRefused(f"column {found!r} has {raw.ndim} dimensions (two columns of that name?); it needs one")
    values = np.array([_number(value) for value in raw]) if raw.dtype.kind not in "iuf" else raw.astype(np.float64)
    wrong = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
    if wrong.size:
        row = int(wrong[0])
        raise FitRefused(
            f"column {found!r}, row {row} (counted from 0) is {raw[row]!s}; it needs a positive finite number "
            f"({wrong.size} of {len(raw)} rows are not): drop or correct them"
        )
    return values


def _number(value: Any) -> float:
    """A float, or NaN for what is not a number, which is then refused by row."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return float("nan")


def _ids(keys: NDArray[Any]) -> NDArray[np.intp]:
    """Dense ids 0, 1, … of equal rows."""
    inverse: NDArray[np.intp] = np.unique(keys, axis=0, return_inverse=True)[1]
    return inverse.reshape(-1)
