"""Numbers with their first and second derivatives by several variables: forward differentiation of NumPy expressions.

The rules are those of second-order Taylor polynomials (jets; Griewank and Walther 2008, "Evaluating Derivatives",
chapter 13). Only derivatives that are not zero by the form of the expression are stored and computed: of the 36 second
derivatives of a law of eight exponents, ten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Pair = tuple[int, int]  # of variables, the larger first
IMAGINARY_STEP = 1e-30  # of the first derivative by a complex step, exact to machine precision
REAL_STEP = 1e-5  # of central differences of that: second derivatives to about 1e-10


def _log1p(x: Any) -> tuple[Any, Any, Any]:
    slope = 1 / (1 + x)
    return np.log1p(x), slope, -slope * slope


def _log(x: Any) -> tuple[Any, Any, Any]:
    slope = 1 / x
    return np.log(x), slope, -slope * slope


def _exp(x: Any) -> tuple[Any, Any, Any]:
    value = np.exp(x)
    return value, value, value


def _expm1(x: Any) -> tuple[Any, Any, Any]:
    slope = np.exp(x)
    return np.expm1(x), slope, slope


# Value, first and second derivative of functions of one number.
UNARY: dict[Any, Callable[[Any], tuple[Any, Any, Any]]] = {
    np.exp: _exp, np.expm1: _expm1, np.log: _log, np.log1p: _log1p,
    np.reciprocal: lambda x: (1 / x, -1 / x**2, 2 / x**3),
    np.square: lambda x: (x * x, 2 * x, 2.0),
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Jet:
    """A ``value`` (number or array) with its ``first`` derivatives by variable and ``second`` by pair of variables.

    A derivative that is absent is zero. Arithmetic, NumPy functions of one argument, ``np.power`` and ``np.where``
    work on jets; ``real`` is the plain value, for comparisons.
    """

    value: Any
    first: dict[int, Any] = field(default_factory=dict)
    second: dict[Pair, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, number: Any) -> Jet:
        """Return a constant as a jet, a jet as it is."""
        return number if isinstance(number, Jet) else cls(number)

    @property
    def real(self) -> Any:
        """The plain value."""
        return self.value

    def __neg__(self) -> Jet:
        return self * -1.0

    def __add__(self, other: Any) -> Jet:
        other = Jet.of(other)
        first, second = _sum(self.first, other.first), _sum(self.second, other.second)
        return Jet(self.value + other.value, first, second)

    def __sub__(self, other: Any) -> Jet:
        return self + -other

    def __rsub__(self, other: Any) -> Jet:
        return -self + other

    def __mul__(self, other: Any) -> Jet:
        if not isinstance(other, Jet):
            return Jet(self.value * other, _times(self.first, other), _times(self.second, other))
        a, b = self, other
        first = _sum(_times(a.first, b.value), _times(b.first, a.value))
        second = _sum(_times(a.second, b.value), _times(b.second, a.value))
        for i, along_a in a.first.items():
            for j, along_b in b.first.items():
                both = along_a * along_b
                _add(second, (max(i, j), min(i, j)), 2 * both if i == j else both)
        return Jet(a.value * b.value, first, second)

    def __truediv__(self, other: Any) -> Jet:
        return self * (other.function(np.reciprocal) if isinstance(other, Jet) else 1.0 / other)

    def __rtruediv__(self, other: Any) -> Jet:
        return self.function(np.reciprocal) * other

    def __pow__(self, exponent: Any) -> Jet:
        return (self.function(np.log) * exponent).function(np.exp)

    def __rpow__(self, base: Any) -> Jet:
        return (self * np.log(base)).function(np.exp)

    __radd__, __rmul__ = __add__, __mul__

    def __array_ufunc__(self, function: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Differentiate a NumPy function of one jet, or arithmetic of an array with a jet."""
        if method != "__call__" or options:
            return NotImplemented
        if len(inputs) == 1:
            return self.function(function)
        operation = BINARY.get(function)
        return NotImplemented if operation is None else operation(Jet.of(inputs[0]), inputs[1])

    def __array_function__(self, function: Any, _types: Any, arguments: Any, _options: Any) -> Any:
        """Choose between jets by a condition, and take the plain value."""
        if function is np.real:
            return self.value
        if function is np.where and len(arguments) == 3:
            return _where(arguments[0], Jet.of(arguments[1]), Jet.of(arguments[2]))
        return NotImplemented

    def function(self, function: Any) -> Jet:
        """A NumPy function of this jet."""
        value, slope, bend = UNARY.get(function, _by_steps(function))(self.value)
        first, second = _times(self.first, slope), _times(self.second, slope)
        for i, along_i in self.first.items():
            bent = bend * along_i
            for j, along_j in self.first.items():
                if j <= i:
                    _add(second, (i, j), bent * along_j)
        return Jet(value, first, second)


BINARY: dict[Any, Callable[[Jet, Any], Jet]] = {
    np.add: Jet.__add__, np.subtract: Jet.__sub__, np.multiply: Jet.__mul__, np.true_divide: Jet.__truediv__,
    np.power: Jet.__pow__,
}  # fmt: skip


def _by_steps(function: Any) -> Callable[[Any], tuple[Any, Any, Any]]:
    """Derivatives of any analytic function: by a complex step, and central differences of it."""

    def slope(x: Any) -> Any:
        return function(x + 1j * IMAGINARY_STEP).imag / IMAGINARY_STEP

    return lambda x: (function(x), slope(x), (slope(x + REAL_STEP) - slope(x - REAL_STEP)) / (2 * REAL_STEP))


def _times(derivatives: dict[Any, Any], factor: Any) -> dict[Any, Any]:
    return {key: value * factor for key, value in derivatives.items()}


def _sum(ones: dict[Any, Any], others: dict[Any, Any]) -> dict[Any, Any]:
    total = dict(ones)
    for key, value in others.items():
        _add(total, key, value)
    return total


def _add(total: dict[Any, Any], key: Any, value: Any) -> None:
    total[key] = total[key] + value if key in total else value


def _where(condition: Any, yes: Jet, no: Jet) -> Jet:
    """The jets of one or the other by place."""

    def chosen(ones: dict[Any, Any], others: dict[Any, Any]) -> dict[Any, Any]:
        return {key: np.where(condition, ones.get(key, 0.0), others.get(key, 0.0)) for key in ones | others}

    value = np.where(condition, yes.value, no.value)
    return Jet(value, chosen(yes.first, no.first), chosen(yes.second, no.second))
