"""Conventions for counting parameters and FLOPs, and the compute-optimal allocation N*(C), D*(C) with intervals."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from scalebench.advice.optima import Refused
from scalebench.advice.vertex import Optimum
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN, Columns, positive_columns
from scalebench.laws.forms import Array, FitRefused
from scalebench.laws.intervals.bootstrap import tails

WIDEST = 1e4  # ratio of the ends of an interval from which an optimum is not determined
PARAMETER_COLUMNS = {"total": "params", "non_embedding": "params_non_embedding"}


@dataclass(frozen=True)
class Counting:
    """How N and C are counted. `params`: total (column params) or non_embedding (column params_non_embedding).

    `flops`: 6ND with that N, or exact (column flops: training FLOPs as counted by the trainer, including attention).
    """

    params: str = "total"
    flops: str = "6ND"

    def __post_init__(self) -> None:
        for name, known in (("params", tuple(PARAMETER_COLUMNS)), ("flops", ("6ND", "exact"))):
            if getattr(self, name) not in known:
                raise FitRefused(
                    f"counting of {name} {getattr(self, name)!r} is not known; choose {' or '.join(known)}"
                )

    def to_dict(self) -> dict[str, str]:
        """The fields by name."""
        return asdict(self)


def count(points: Columns, counting: Counting) -> dict[str, Array]:
    """Columns params, tokens, flops and loss, each [n], under a convention. Raises FitRefused for a missing column.

    With 6ND, params or tokens may be missing if there is a column `flops`, as in published isoFLOP points: it is then
    flops / 6 over the other.
    """
    present = list(points.keys())
    size = PARAMETER_COLUMNS[counting.params]
    missing = [name for name in (size, "tokens") if name not in present]
    if size in missing and set(PARAMETER_COLUMNS.values()) & set(present):
        positive_columns(points, (size,))  # raises: C / 6D would be the parameters of the other column
    if counting.flops == "exact" or (len(missing) == 1 and "flops" in present):
        needed = [name for name in (size, "tokens") if name not in missing or counting.flops == "exact"]
        columns = positive_columns(points, (*needed, "flops", "loss"))
    else:
        columns = positive_columns(points, (size, "tokens", "loss"))
    for name in missing:
        other = columns["tokens" if name == size else size]
        columns[name] = columns["flops"] / (FLOPS_PER_PARAMETER_TOKEN * other)
    flops = columns["flops"] if "flops" in columns else FLOPS_PER_PARAMETER_TOKEN * columns[size] * columns["tokens"]
    return {"params": columns[size], "tokens": columns["tokens"], "flops": flops, "loss": columns["loss"]}


@dataclass(frozen=True)
class Bias:
    """Systematic error of Approach 2: its result on a noise-free surface of known optimum, at the same points.

    `a` and `b` are its exponents minus the true ones. `tokens_factor` is its D* over the true D* at `flops`, the
    largest budget, `tokens_factor_beyond` at 1000 times that.
    """

    a: float
    b: float
    flops: float
    tokens_factor: float
    tokens_factor_beyond: float

    def to_dict(self) -> dict[str, float]:
        """The fields by name."""
        return asdict(self)


@dataclass(frozen=True, eq=False, repr=False)
class Allocation:
    """N*(C) = params_constant * C^a and D*(C) = tokens_constant * C^b, with C in FLOPs.

    `coefficients` are (ln params_constant, a, ln tokens_constant, b); `draws` [n, 4] repeat them by `method`, and are
    None if `method` is the reason why there is no interval. `optima` are the compute budgets used, `refused` those not
    used, with reasons.
    """

    approach: int
    counting: Counting
    coefficients: Array  # ln params_constant, a, ln tokens_constant, b
    draws: Array | None
    method: str
    notes: tuple[str, ...]
    optima: tuple[tuple[float, Optimum], ...] = ()
    refused: tuple[Refused, ...] = ()
    bias: Bias | None = None

    def __repr__(self) -> str:
        """Return one line: both laws, the approach, how N and C are counted."""
        laws = f"N* = {self.params_constant:.4g} C^{self.a:.4g}, D* = {self.tokens_constant:.4g} C^{self.b:.4g}"
        return f"Allocation of approach {self.approach} (N {self.counting.params}, C {self.counting.flops}): {laws}"

    @property
    def a(self) -> float:
        """Exponent of N*(C)."""
        return float(self.coefficients[1])

    @property
    def b(self) -> float:
        """Exponent of D*(C)."""
        return float(self.coefficients[3])

    @property
    def params_constant(self) -> float:
        """N*(C) / C^a."""
        return float(np.exp(self.coefficients[0]))

    @property
    def tokens_constant(self) -> float:
        """D*(C) / C^b."""
        return float(np.exp(self.coefficients[2]))

    def params(self, flops: ArrayLike) -> Array:
        """Compute-optimal parameters N*, [n], at budgets [n] in FLOPs."""
        return np.asarray(np.exp(self._logs(self.coefficients[None], 0, flops)[0]))

    def tokens(self, flops: ArrayLike) -> Array:
        """Compute-optimal tokens D*, [n], at budgets [n] in FLOPs."""
        return np.asarray(np.exp(self._logs(self.coefficients[None], 2, flops)[0]))

    def params_interval(self, flops: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
        """Lower and upper ends of N*, each [n]. Raises FitRefused without draws."""
        return self._ends(_exp(self._logs(self._drawn(), 0, flops)), level)

    def tokens_interval(self, flops: ArrayLike, level: float = 0.95) -> tuple[Array, Array]:
        """Lower and upper ends of D*, each [n]. Raises FitRefused without draws."""
        return self._ends(_exp(self._logs(self._drawn(), 2, flops)), level)

    def determined(self, flops: ArrayLike) -> Array:
        """Return whether N* and D* are determined at each budget, bool [n]; True without draws.

        They are where both are in their 95 % intervals, whose ends are less than a factor of `WIDEST` apart.
        """
        return self.bands(flops)[0]

    def bands(self, flops: ArrayLike) -> tuple[Array, dict[str, tuple[Array, Array]]]:
        """Return where N* and D* are `determined`, bool [n], and their intervals by name; none without draws."""
        inside = np.ones(np.atleast_1d(flops).shape, dtype=bool)
        if self.draws is None:
            return inside, {}
        ends = {"params": self.params_interval(flops), "tokens": self.tokens_interval(flops)}
        for name, (low, high) in ends.items():
            mid = getattr(self, name)(flops)
            inside &= (low <= mid) & (mid <= high) & (high < WIDEST * low)
        return inside, ends

    def interval(self, name: str, level: float = 0.95) -> tuple[float, float]:
        """Interval of a, b, params_constant or tokens_constant. Raises FitRefused without draws."""
        places = {"params_constant": 0, "a": 1, "tokens_constant": 2, "b": 3}
        if name not in places:
            raise FitRefused(f"{name!r} is not a parameter; those of an allocation are {', '.join(places)}")
        values = self._drawn()[:, places[name]]
        low, high = self._ends(_exp(values) if name.endswith("constant") else values, level)
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """JSON-safe summary with 95 % intervals, None without draws."""
        names = ("a", "b", "params_constant", "tokens_constant")
        return {
            "approach": self.approach,
            "counting": self.counting.to_dict(),
            **{name: getattr(self, name) for name in names},
            "intervals": {name: None if self.draws is None else list(self.interval(name)) for name in names},
            "interval_method": self.method,
            "notes": list(self.notes),
            "optima": [{"flops": flops, **optimum.to_dict()} for flops, optimum in self.optima],
            "refused": [refused.to_dict() for refused in self.refused],
            "bias": None if self.bias is None else self.bias.to_dict(),
        }

    def _drawn(self) -> Array:
        if self.draws is None:
            raise FitRefused(f"approach {self.approach} has no interval: {self.method}")
        return self.draws

    @staticmethod
    def _logs(rows: Array, first: int, flops: ArrayLike) -> Array:
        """Log of N* (first = 0) or D* (first = 2), [rows, n]."""
        log = np.log(np.atleast_1d(np.asarray(flops, dtype=np.float64)))
        return np.asarray(rows[:, first, None] + rows[:, first + 1, None] * log)

    @staticmethod
    def _ends(values: Array, level: float) -> tuple[Array, Array]:
        low, high = np.quantile(values, tails(level), axis=0)
        return low, high


def _exp(logs: Array) -> Array:
    """Numbers [...] from their logs; refits of points that determine no optimum may lie beyond the largest number."""
    return np.exp(np.minimum(logs, np.log(np.finfo(np.float64).max)))
