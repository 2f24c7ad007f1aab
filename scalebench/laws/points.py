"""The points a law is fitted to: columns read and checked."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalebench.laws.columns import Columns, positive_columns
from scalebench.laws.forms import Array, FitRefused, Law

# Below this ratio of largest to smallest size an exponent and an offset cannot be separated.
MINIMUM_SPREAD = 3.0
NARROW_SPREAD = 1.1  # of an input that cannot vary by much (`Law.narrow`)


@dataclass(frozen=True)
class Points:
    """Validated points: logs of the inputs by name, the response, and three groupings of the rows as ids, each [n].

    Ids are ordered by the measured values, so that seeded draws depend neither on the order of rows nor on labels.
    """

    logs: dict[str, Array]
    response: Array
    configuration: NDArray[np.intp]  # clusters for the bootstrap
    place: NDArray[np.intp]  # rows with equal inputs: replicates
    run: NDArray[np.intp]  # independent measurements: every row, or equal rows as one if points come with weights

    @property
    def n_configurations(self) -> int:
        """Number of independent configurations."""
        return int(self.configuration.max()) + 1

    @property
    def replicated(self) -> bool:
        """Whether some inputs were measured more than once."""
        return int(self.run.max()) > int(self.place.max())

    def merged(self) -> Points:
        """The same points, with equal rows of one configuration counted as one measurement."""
        return replace(self, run=_ids(np.stack([self.place, self.configuration, self.response], axis=1)))

    def means(self) -> tuple[Array, NDArray[np.intp]]:
        """Mean response of rows with equal inputs, and their number, each [places]."""
        rows = np.bincount(self.place)
        return np.bincount(self.place, self.response) / rows, rows

    def highest_offset(self) -> tuple[float, float]:
        """Highest plausible irreducible loss: (if free, if pinned).

        These are the lowest mean over replicates plus 3 of its standard errors, and the minimum of mean plus 3 standard
        errors. Standard errors pool the relative spread of replicates; without replicates they are 0.
        """
        first = np.unique(self.run, return_index=True)[1]
        place, response = self.place[first], self.response[first]
        runs = np.bincount(place)
        mean = np.bincount(place, response) / runs
        spread = response / mean[place] - 1.0
        freedom = len(spread) - len(mean)
        noise = np.sqrt((spread**2).sum() / freedom) if freedom else 0.0
        ceiling = mean * (1.0 + 3.0 * noise / np.sqrt(runs))
        return float(ceiling[mean.argmin()]), float(ceiling.min())


def read_points(law: Law, columns: Columns) -> Points:
    """Check the columns of `law` and return them as `Points`.

    Raises FitRefused for a missing column, values that are not positive finite numbers, and lengths that differ.
    """
    aliases = {law.response: "y"} | ({law.inputs[0]: "x"} if len(law.inputs) == 1 else {})
    values = positive_columns(columns, (*law.inputs, law.response), aliases)
    response = values.pop(law.response)
    logs = {name: np.log(value) for name, value in values.items()}
    inputs = np.stack(list(logs.values()), axis=1)
    if not len(response):
        raise FitRefused(f"no points given; {law.name} needs at least {len(law.parameters)} configurations")
    place = _ids(inputs)
    rank = _ids(np.stack([place, response], axis=1))
    run = _ids(np.stack([rank, np.arange(len(rank))], axis=1))  # the order of equal rows does not matter
    if "config" not in list(columns.keys()):
        return Points(logs, response, place, place, run)
    config = np.asarray(columns["config"]).astype(str)
    if config.shape != response.shape:
        raise FitRefused(
            f"column 'config' has shape {config.shape}; it needs one value for each of {len(response)} rows"
        )
    return Points(logs, response, _ordered(_ids(config), rank), place, run)


def _check_spread(law: Law, name: str, log: NDArray[np.float64]) -> None:
    """Raise FitRefused where an input, given by its logarithms (n,), varies too little for its exponent."""
    least = NARROW_SPREAD if name in law.narrow else MINIMUM_SPREAD
    low, high = np.exp([log.min(), log.max()])
    differs = name in law.by_difference
    spread = float(np.exp(high - low) if differs else high / low)
    if spread > least:
        return
    if np.isclose(low, high):
        varies = f"{name} is {low:.6g} in every point"
    elif differs:
        varies = f"{name} differs by {high - low:.3g} at most ({low:.6g} to {high:.6g})"
    else:
        varies = f"{name} varies by a factor of {spread:.3g} ({low:.6g} to {high:.6g})"
    needed = f"a difference above {np.log(least):.3g}" if differs else f"a factor above {least:g}"
    raise FitRefused(f"{varies}; {law.name} needs {needed}: add points with other values of {name}")


def check_design(law: Law, points: Points, free: int) -> None:
    """Raise FitRefused for designs that do not determine `free` parameters."""
    sizes = min(points.n_configurations, int(points.place.max()) + 1)
    if sizes < free:
        raise FitRefused(
            f"{sizes} configuration{'s' * (sizes != 1)} for {free} free parameters of {law.name}; "
            "add sizes or pin parameters"
        )
    own = {name: log for name, log in points.logs.items() if name not in law.same_unit}
    for name, log in own.items():
        _check_spread(law, name, log)
    logs = np.stack([log - log.mean() for log in own.values()], axis=1)
    # If one input is a power of another, as in tokens = 20 * params, their exponents are not identified separately.
    if np.linalg.svd(logs / np.linalg.norm(logs, axis=0), compute_uv=False)[-1] < 1e-3 and logs.shape[1] > 1:
        raise FitRefused(f"columns {', '.join(own)} lie on one line in log space; vary one at a fixed other")


def _ordered(configuration: NDArray[np.intp], rank: NDArray[np.intp]) -> NDArray[np.intp]:
    """Ids [n] ordered by each configuration's lowest rank, then by its number of rows and other ranks."""
    rows, lowest = np.bincount(configuration), np.full(configuration.max() + 1, len(rank))
    np.minimum.at(lowest, configuration, rank)
    order = np.lexsort((np.bincount(configuration, rank.astype(np.float64) ** 2), rows, lowest))
    return np.asarray(np.argsort(order)[configuration])


def _ids(keys: NDArray[Any]) -> NDArray[np.intp]:
    """Ids 0, 1, … [n] of equal rows of keys [n, k]."""
    inverse: NDArray[np.intp] = np.unique(keys, axis=0, return_inverse=True)[1]
    return inverse.reshape(-1)
