"""Gradient, Newton matrix and majorant of every law against torch autograd in float64 and finite differences.

Each law is written down a second time, in torch and from its formula, as a function of what the fitter moves:
coefficients of the terms divided by their geometric means, and exponents.
"""

from functools import cache

import numpy as np
import pytest
import torch
from law_support import DISTILLED, PLANTED

from scalebench.laws import LAWS
from scalebench.laws.points import read_points
from scalebench.laws.posing import pose
from scalebench.laws.solver import polish
from scalebench.laws.starts import starts

INPUTS = {name: inputs for name, (inputs, _) in PLANTED.items()} | {
    "power": PLANTED["broken"][0],
    "chinchilla": PLANTED["skaling"][0],
    "offset_linear": PLANTED["offset_power"][0],
    "distillation": DISTILLED[0],
}
TRUTH = {name: parameters for name, (_, parameters) in PLANTED.items()} | {
    "power": {"E": 1.7, "A": 30.0, "alpha": 0.3},
    "chinchilla": {"E": 1.8, "A": 480.0, "alpha": 0.35, "B": 2100.0, "beta": 0.37},
    "offset_linear": {"c0": 0.02, "c1": 1e-9},
    "distillation": DISTILLED[1],
}
NOISE = 0.02
FEW = slice(4)  # of up to 48 starts: any optimum will do
FEW_OF = {"distillation": slice(28, 32)}  # its first ones end where finite differences err


def constrained(x, s):
    """Muennighoff et al. 2023, equations 5 and 6, with A = 1 and B = exp(mix)."""
    N, D, U = x["params"], x["tokens"], x["unique_tokens"]
    G = (s["alpha"] / (s["beta"] * torch.exp(s["mix"]))) ** (1 / (s["alpha"] + s["beta"]))
    U_N = G * (G * U) ** (s["beta"] / s["alpha"])
    worth = U_N + U_N * s["R_N"] * (1 - torch.exp(-(N / U_N - 1) / s["R_N"]))
    N = torch.where(N > U_N, worth, N)
    D = U + U * s["R_D"] * (1 - torch.exp(-(D / U - 1) / s["R_D"]))
    return torch.ones_like(N), N ** -s["alpha"] + torch.exp(s["mix"]) * D ** -s["beta"]


TERMS = {
    "power": lambda x, s: (torch.ones_like(x["params"]), x["params"] ** -s["alpha"]),
    "chinchilla": lambda x, s: (
        torch.ones_like(x["params"]), x["params"] ** -s["alpha"], x["tokens"] ** -s["beta"]
    ),
    "data_constrained": constrained,
    "skaling": lambda x, s: (
        torch.ones_like(x["params"]),
        (x["params"] ** -s["alpha"] + torch.exp(s["mix"]) * x["tokens"] ** -s["beta"]) ** s["k"],
    ),
    "broken": lambda x, s: (
        torch.ones_like(x["params"]),
        x["params"] ** -s["alpha"]
        * (1 + (x["params"] / torch.exp(s["log_break"])) ** (1 / s["f"])) ** (-s["c"] * s["f"]),
    ),
    "kaplan": lambda x, s: (
        (x["params"] ** (-s["alpha_N"] / s["alpha_D"]) + torch.exp(s["mix"]) / x["tokens"]) ** s["alpha_D"],
    ),
    "overtraining": lambda x, s: (
        torch.ones_like(x["params"]),
        (x["tokens"] / x["params"] / (6 * x["params"] * x["tokens"])) ** s["eta"],
        (x["tokens"] / x["params"] * (6 * x["params"] * x["tokens"])) ** -s["eta"],
    ),
    "distillation": lambda x, s: (
        x["teacher_loss"] ** -s["c0"]
        * (1 + (x["teacher_loss"] / (torch.exp(s["log_d1"]) * x["supervised_loss"])) ** (1 / s["f1"]))
        ** (-s["c1"] * s["f1"])
        * (x["params"] ** -s["alpha"] + torch.exp(s["mix"]) * x["tokens"] ** -s["beta"]) ** s["gamma"],
    ),
    "sparsity": lambda x, s: (
        torch.ones_like(x["params"]),
        x["density"] ** s["b"] / x["params"] ** s["alpha"], x["params"] ** -s["alpha"], x["tokens"] ** -s["beta"],
    ),
    "sparsity_one_length": lambda x, s: (
        torch.ones_like(x["params"]), x["density"] ** s["b"] / x["params"] ** s["alpha"], x["params"] ** -s["alpha"],
    ),
    "offset_linear": lambda x, _: (torch.ones_like(x["x"]), x["x"]),
    "offset_power": lambda x, s: (torch.ones_like(x["x"]), x["x"] ** s["p"]),
    "roofline": lambda x, _: (torch.ones_like(x["flops"]), x["flops"], x["bytes"]),
    "precision": lambda x, s: (
        x["tokens"] ** s["gamma_D"] * x["params"] ** -s["gamma_N"] * torch.exp(-x["bits"] / s["gamma"]),
    ),
    "transfer": lambda x, s: (x["tokens"] ** s["a"] * x["params"] ** s["b"],),
}  # fmt: skip


@cache
def posed(name, space):
    """Problem and coordinates [P] a little off the optimum, with noise so that both branches of Huber's loss occur."""
    logs = {key: np.log(value) for key, value in INPUTS[name].items()}
    clean = LAWS[name].predict(TRUTH[name], logs)[0]
    noisy = clean * np.exp(NOISE * np.random.default_rng(1).standard_normal(clean.size))
    points = read_points(LAWS[name], {**INPUTS[name], LAWS[name].response: noisy})
    problem = pose(LAWS[name], points, space, np.ones(clean.size), {}, "squares")
    theta, values, _ = polish(problem, starts(problem)[FEW_OF.get(name, FEW)], np.inf)
    best = theta[values.argmin()]
    return problem, best * np.linspace(1.01, 1.03, len(best))


def residuals(problem, theta):
    """Prediction minus target, [n], in torch."""
    law = problem.law
    inputs = {key: torch.exp(torch.as_tensor(log)) for key, log in problem.logs.items()}
    exponents = dict(zip(law.exponents, theta[len(law.coefficients) :], strict=True))
    terms = torch.stack(TERMS[law.name](inputs, exponents))
    centred = terms / torch.exp(torch.log(terms).mean(dim=1, keepdim=True))
    prediction = (theta[: len(law.coefficients), None] * centred).sum(dim=0)
    return (torch.log(prediction) if problem.log_space else prediction) - torch.as_tensor(problem.target)


def loss(problem, theta, width):
    errors = residuals(problem, theta)
    size = errors.abs()
    each = (
        torch.where(size <= width, errors**2 / 2, width * (size - width / 2)) if np.isfinite(width) else errors**2 / 2
    )
    return (torch.as_tensor(problem.weights) * each).sum()


def corner(problem, theta):
    """A Huber corner that half of the residuals lie beyond."""
    return float(np.median(np.abs(problem.residuals(theta[None])[0])))


@pytest.mark.parametrize("space", ["log", "raw"])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "distillation" else name for name in LAWS]
)
def test_gradient_and_newton_matrix_are_those_of_autograd(name, space):
    problem, theta = posed(name, space)
    at = torch.tensor(theta, requires_grad=True)
    for width in (np.inf, corner(problem, theta)):
        gradient, newton, _ = (part[0] for part in problem.derivatives(theta[None], width))
        value = loss(problem, at, width)
        assert problem.value(theta[None], width)[0] == pytest.approx(value.item(), rel=1e-10)
        expected = torch.autograd.grad(value, at)[0].numpy()
        hessian = torch.autograd.functional.hessian(lambda t, w=width: loss(problem, t, w), at.detach()).numpy()
        # Coordinates differ in size: compare in units of the curvature that least squares give each of them.
        scale = np.sqrt(np.diag(problem.derivatives(theta[None], np.inf)[2][0]))
        np.testing.assert_allclose(gradient / scale, expected / scale, rtol=1e-9, atol=1e-11)
        units = np.outer(scale, scale)
        np.testing.assert_allclose(newton / units, hessian / units, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", LAWS)
def test_majorant_is_the_reweighted_product_of_autograd_jacobians(name):
    problem, theta = posed(name, "log")
    jacobian = torch.autograd.functional.jacobian(lambda t: residuals(problem, t), torch.tensor(theta)).numpy()
    np.testing.assert_allclose(problem.jacobian(theta[None])[0], jacobian.T, rtol=1e-8, atol=1e-11)
    width = corner(problem, theta)
    weights = problem.weights * np.minimum(1, width / np.abs(problem.residuals(theta[None])[0]))
    expected = jacobian.T @ (weights[:, None] * jacobian)
    np.testing.assert_allclose(problem.derivatives(theta[None], width)[2][0], expected, rtol=1e-8)


@pytest.mark.parametrize("name", LAWS)
def test_gradient_is_that_of_finite_differences(name):
    problem, theta = posed(name, "log")
    width = corner(problem, theta)
    step = 1e-5 * np.abs(theta)
    ahead, behind = (problem.value(theta + sign * np.diag(step), width) for sign in (1, -1))
    scale = np.sqrt(np.diag(problem.derivatives(theta[None], np.inf)[2][0]))
    gradient = problem.derivatives(theta[None], width)[0][0]
    np.testing.assert_allclose(gradient / scale, (ahead - behind) / (2 * step) / scale, rtol=1e-5, atol=1e-7)


def test_every_law_is_written_down_twice():
    assert set(TERMS) == set(LAWS) == set(INPUTS)
