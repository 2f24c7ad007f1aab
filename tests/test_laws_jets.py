"""Jets against torch autograd: every rule of arithmetic, functions with rules of their own and any other."""

import numpy as np
import pytest
import torch

from scalebench.laws.jets import Jet

AT = (1.7, 0.6, 2.3)
EXPRESSIONS = {
    "arithmetic": lambda m, a, b, c: 3 - a * b + (a - b) * 2 / c - (-c + 1.5) / (a * a) + 0.5 * b,
    "constants on either side": lambda m, a, b, c: 2**a + a**3 + 1 / b + a**b,
    "logs and exponentials": lambda m, a, b, c: m.log(a * c) + m.exp(a - b) * m.log1p(b) + m.expm1(-c * b),
    "squares and reciprocals": lambda m, a, b, c: m.square(a * b) + m.reciprocal(c - b),
    "functions without a rule": lambda m, a, b, c: m.tanh(a * b) + m.sqrt(c) * m.sin(a + c),
    "a choice by value": lambda m, a, b, c: m.where(a.real > 1, a * b * b, c) + m.where(a.real > 2, a, c * c),
}


def planes(jet: Jet) -> tuple[np.ndarray, np.ndarray]:
    """Return gradient [3] and Hessian [3, 3]; what is absent is zero."""
    gradient, hessian = np.zeros(3), np.zeros((3, 3))
    for i, value in jet.first.items():
        gradient[i] = value
    for (i, j), value in jet.second.items():
        hessian[i, j] = hessian[j, i] = value
    return gradient, hessian


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_value_and_derivatives_are_those_of_autograd(name):
    jet = EXPRESSIONS[name](np, *(Jet(np.float64(value), {i: 1.0}) for i, value in enumerate(AT)))
    at = torch.tensor(AT, dtype=torch.float64)

    def value(x):
        return EXPRESSIONS[name](torch, *x)

    gradient, hessian = planes(jet)
    assert float(jet.value) == pytest.approx(value(at).item(), rel=1e-14)
    np.testing.assert_allclose(gradient, torch.autograd.functional.jacobian(value, at).numpy(), rtol=1e-13, atol=1e-13)
    # Functions without a rule have second derivatives by central differences.
    rtol = 1e-8 if "without" in name else 1e-13
    np.testing.assert_allclose(hessian, torch.autograd.functional.hessian(value, at).numpy(), rtol=rtol, atol=1e-13)


def test_arrays_and_jets_mix_in_either_order():
    x, logs = Jet(np.array([[2.0], [3.0]]), {0: 1.0}), np.array([1.0, 4.0, 9.0])
    for jet in (logs * x, x * logs, logs - (logs - x * logs)):
        np.testing.assert_array_equal(jet.value, [[2, 8, 18], [3, 12, 27]])
        np.testing.assert_array_equal(np.broadcast_to(jet.first[0], (2, 3)), [[1, 4, 9]] * 2)
        assert not jet.second


def test_what_is_linear_has_no_second_derivative_and_what_is_no_function_of_one_number_is_refused():
    a, b = Jet(2.0, {0: 1.0}), Jet(3.0, {1: 1.0})
    assert not (2 * a - b / 4 + 1).second
    assert set((a * b).second) == {(1, 0)}
    with pytest.raises(TypeError):
        np.maximum(a, b)
