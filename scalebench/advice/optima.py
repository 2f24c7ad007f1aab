"""Optima along a swept axis, and laws for how they move with size: learning rate, batch size, isoFLOP minima.

Each group of runs (a size, a compute budget) gives an optimum: the vertex of a parabola of loss in ln x. A weighted
log-log regression of the vertices on size gives the law x* = constant * size^exponent. A group whose best value is at
an edge of its grid has no vertex; in the law its optimum counts as beyond that edge (see `censored`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.advice.censored import Beyond, censored
from scalebench.advice.regression import LinearFit, regress, vertex_variances
from scalebench.advice.vertex import AtEdge, Optimum, joint_optimum
from scalebench.laws.columns import Columns, positive_columns
from scalebench.laws.forms import Array, FitRefused

Without = list[tuple[dict[str, float], FitRefused]]  # groups without an optimum, and why
Found = list[tuple[dict[str, float], tuple[Optimum, ...]]]  # groups with the joint optimum of the swept columns


@dataclass(frozen=True)
class Edge:
    """The best value of `column` lies "above" or "below" (`side`) `limit`, a value of that column."""

    column: str
    side: str
    limit: float


@dataclass(frozen=True)
class Refused:
    """A group without an optimum: its values by column, why, and the `edge` beyond which the optimum lies, if any.

    `counted` is whether a line counts the optimum as beyond that edge.
    """

    group: dict[str, float]
    reason: str
    edge: Edge | None
    counted: bool = False

    @property
    def use(self) -> str:
        """What the line makes of the group."""
        return "counted as beyond its edge" if self.counted else "left out"

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe: the fields by name."""
        return asdict(self)


@dataclass(frozen=True, repr=False)
class OptimumLaw:
    """optimised* = constant * product of size^exponent, with Student-t intervals from the scatter about the line.

    Intervals of constant and predictions reach as much farther as the parabolas are off by the `skew` of their losses.
    `optima` are the groups with their optimum, `refused` those without one, with the reason and, if their optimum lies
    beyond an edge, the value that the line counts it above or below.
    """

    optimised: str
    constant: float
    exponents: dict[str, float]
    optima: tuple[tuple[dict[str, float], Optimum], ...]
    refused: tuple[Refused, ...]
    regression: LinearFit = field(compare=False)

    def __repr__(self) -> str:
        """Return one line: the law, and how many sweeps it comes from."""
        law = " ".join(f"{name}^{exponent:.4g}" for name, exponent in self.exponents.items())
        sweeps = f"{len(self.optima)} sweeps" + (f", {len(self.refused)} without an optimum" if self.refused else "")
        return f"OptimumLaw: {self.optimised}* = {self.constant:.4g} {law}, from {sweeps}"

    def predict(self, **sizes: float) -> float:
        """The optimum at sizes by name, in the unit of the swept column."""
        return float(np.exp(self._row(sizes) @ self.regression.coefficients))

    def prediction_interval(self, level: float = 0.95, **sizes: float) -> tuple[float, float]:
        """Interval of the line at sizes by name (not of the vertex of a new sweep)."""
        low, high = self._despite_skew(*self.regression.interval(self._row(sizes), level))
        return float(np.exp(low)), float(np.exp(high))

    def _despite_skew(self, low: float, high: float) -> tuple[float, float]:
        """Ends in logs, the one extended towards which the minima of cubics lie: of all sweeps, their median."""
        skew = float(np.median([optimum.skew for _, optimum in self.optima]))
        return low + min(skew, 0.0), high + max(skew, 0.0)

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of "constant" or of the exponent of a size by name."""
        names = ["constant", *self.exponents]
        if name not in names:
            raise FitRefused(f"{name!r} is not a parameter; those of the {self.optimised} law are {', '.join(names)}")
        low, high = self.regression.interval(np.eye(len(names))[names.index(name)], level)
        if name != "constant":
            return low, high
        low, high = self._despite_skew(low, high)
        return float(np.exp(low)), float(np.exp(high))

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe summary with 95 % intervals."""
        return {
            "optimised": self.optimised,
            "constant": self.constant,
            "exponents": dict(self.exponents),
            "intervals": {name: list(self.interval(name)) for name in ("constant", *self.exponents)},
            "degrees_of_freedom": self.regression.degrees_of_freedom,
            "optima": [{**group, **optimum.to_dict()} for group, optimum in self.optima],
            "refused": [refused.to_dict() for refused in self.refused],
        }

    def _row(self, sizes: Mapping[str, float]) -> Array:
        if set(sizes) != set(self.exponents):
            raise FitRefused(f"sizes given: {', '.join(sizes) or 'none'}; needed: {', '.join(self.exponents)}")
        if wrong := [f"{name} {size:g}" for name, size in sizes.items() if not 0 < size < np.inf]:
            raise FitRefused(f"{', '.join(wrong)}: a positive finite number is needed")
        return np.array([1.0, *(np.log(sizes[name]) for name in self.exponents)])


def optimum_law(
    points: Columns,
    optimised: str = "learning_rate",
    against: Sequence[str] = ("params",),
    neighbours: int | None = 2,
) -> OptimumLaw:
    """Law of the best `optimised` (a column such as learning_rate or batch_size) against the columns `against`.

    Rows with equal `against` are one sweep; `loss` may be in any unit. Sweeps whose optimum is at an edge are listed in
    `refused`; the line counts their optimum as beyond it, unless it lies so far from the line of the others that noise
    cannot have brought it there. Raises FitRefused if too few sweeps remain for the line and its interval.
    Form: Kaplan et al. 2020 (2001.08361), equation D.1; Porian et al. 2024 (2406.19146), section 4.
    """
    return optimum_laws(points, (optimised,), against, neighbours)[0]


def optimum_laws(
    points: Columns, optimised: Sequence[str], against: Sequence[str] = ("params",), neighbours: int | None = 2
) -> tuple[OptimumLaw, ...]:
    """Laws of the joint optimum of the columns `optimised`, which are swept together; see `optimum_law`."""
    columns = positive_columns(points, (*against, *optimised, "loss"))
    by_group, without = sweep_optima(columns, optimised, against, neighbours)
    if len(by_group) <= len(against) + 1:
        why = f" (one was refused: {without[0][1]})" if without else ""
        raise FitRefused(
            f"{len(by_group)} of {len(by_group) + len(without)} sweeps of {' and '.join(optimised)} have an interior "
            f"optimum; the line and its interval need {len(against) + 2}: add sizes or widen the sweeps{why}"
        )
    lines, refused = lines_through(by_group, without, optimised, against)
    laws = []
    for i, (name, line) in enumerate(zip(optimised, lines, strict=True)):
        exponents = dict(zip(against, map(float, line.coefficients[1:]), strict=True))
        pairs = tuple((group, joint[i]) for group, joint in by_group)
        laws.append(OptimumLaw(name, float(np.exp(line.coefficients[0])), exponents, pairs, refused, line))
    return tuple(laws)


def lines_through(
    by_group: Found, without: Without, optimised: Sequence[str], against: Sequence[str], *, weighted: bool = True
) -> tuple[list[LinearFit], tuple[Refused, ...]]:
    """The line of each column `optimised` through its optima, and the groups without one with the reason.

    A line counts the optimum of a group that is at an edge as beyond it where noise can have brought it there, as its
    reason then says. `weighted=False` gives every group the same weight.
    """
    design = np.array([_row(group, against) for group, _ in by_group])
    lines, refused = [], dict(enumerate(_refused(*each, optimised) for each in without))
    for i, name in enumerate(optimised):
        optima = [joint[i] for _, joint in by_group]
        variances = vertex_variances(optima, design) if weighted else np.ones(len(optima))
        line, counted = _line(design, optima, variances, _edges(without, against, i))
        lines.append(line)
        for k, edge in counted.items():
            reason = f"{edge}. The line counts the best {name} as {edge.beyond}"
            refused[k] = replace(refused[k], reason=reason, counted=True)
    return lines, tuple(refused.values())


def _refused(group: dict[str, float], reason: FitRefused, optimised: Sequence[str]) -> Refused:
    edge = None
    if isinstance(reason, AtEdge):
        edge = Edge(optimised[reason.column], "above" if reason.side > 0 else "below", float(np.exp(reason.limit)))
    return Refused(group, str(reason), edge)


def _row(group: Mapping[str, float], against: Sequence[str]) -> Array:
    """The regressors of a group: 1 and the logs of its sizes."""
    return np.array([1.0, *np.log([group[name] for name in against])])


def _edges(without: Without, against: Sequence[str], column: int) -> dict[int, tuple[Array, AtEdge]]:
    """Sweeps with the optimum of this column at an edge, by their number: regressors and edge."""
    edges = {k: (_row(group, against), reason) for k, (group, reason) in enumerate(without)}
    return {k: (row, edge) for k, (row, edge) in edges.items() if isinstance(edge, AtEdge) and edge.column == column}


def _line(
    design: Array, optima: Sequence[Optimum], variances: Array, edges: Mapping[int, tuple[Array, AtEdge]]
) -> tuple[LinearFit, dict[int, AtEdge]]:
    """The line through optima on `design` [n, k], and which of the other sweeps it counts as beyond their edges."""
    target = np.log([optimum.x for optimum in optima])
    line, typical = regress(design, target, variances), float(np.median(variances))
    counted = {k: edge for k, (row, edge) in edges.items() if _near(line, typical, row, edge)}
    if not counted:
        return line, {}
    limits, sides = np.array([[edge.limit, edge.side] for edge in counted.values()]).T
    rows = np.array([edges[k][0] for k in counted])
    likeliest = censored(design, target, variances, Beyond(rows, limits, sides, np.full(len(rows), typical)))
    if likeliest is None:
        return line, {}
    coefficients, covariance = likeliest
    return replace(line, coefficients=coefficients, inverse=covariance / line.scatter), counted


def _near(line: LinearFit, typical: float, row: Array, edge: AtEdge) -> bool:
    """Whether, by the line of the others, a sweep of this relative variance can lie beyond its edge, at 99 %.

    If not, something else has brought it there: diverged runs, or losses with a second minimum.
    """
    from scipy.special import stdtrit  # lazily: slow to import

    inside = edge.side * (edge.limit - row @ line.coefficients)
    spread = np.sqrt(row @ line.covariance @ row + line.scatter * typical)
    return bool(inside <= stdtrit(line.degrees_of_freedom, 0.99) * spread)


def sweep_optima(
    columns: Mapping[str, Array], swept: Sequence[str], against: Sequence[str], neighbours: int | None
) -> tuple[Found, Without]:
    """Joint optimum of each group of rows with equal `against`, and the groups without one with the reason."""
    by_group: Found = []
    without: Without = []
    x = np.stack([columns[name] for name in swept], axis=1)
    for group, rows in groups(columns, against):
        try:
            by_group.append((group, joint_optimum(x[rows], columns["loss"][rows], swept, neighbours)))
        except FitRefused as reason:
            without.append((group, reason))
    return by_group, without


def groups(columns: Mapping[str, Array], names: Sequence[str]) -> list[tuple[dict[str, float], NDArray[np.bool_]]]:
    """The values of `names` and the rows of each group, in ascending order."""
    keys = np.stack([columns[name] for name in names], axis=1)
    unique, member = np.unique(keys, axis=0, return_inverse=True)
    member = member.reshape(-1)
    return [(dict(zip(names, map(float, key), strict=True)), member == i) for i, key in enumerate(unique)]
