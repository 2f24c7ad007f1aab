"""The named laws. Each is one function returning the logs of its terms, and an entry in `LAWS`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.laws.distillation import DISTILLATION
from scalebench.laws.forms import FitRefused, Law, Naming, log_sum
from scalebench.laws.precision import PRECISION
from scalebench.laws.sparsity import SPARSITY, SPARSITY_OF_ONE_LENGTH
from scalebench.laws.transfer import TRANSFER

Values = Mapping[str, Any]
EXPONENT = (0.01, 3.0)
MIX = (-12.0, 12.0)  # log ratio of two terms at the centre of the points: beyond e^12 one of them is negligible


def power(log: Values, shape: Values) -> Sequence[Any]:
    """Loss against parameters, L = E + A * N^-alpha: Kaplan et al. 2020 (2001.08361) with an irreducible loss E."""
    return 0.0, -shape["alpha"] * log["params"]


def chinchilla(log: Values, shape: Values) -> Sequence[Any]:
    """Loss against parameters and tokens, L = E + A * N^-alpha + B * D^-beta: Hoffmann et al. 2022, equation 2."""
    return 0.0, -shape["alpha"] * log["params"], -shape["beta"] * log["tokens"]


def overtraining(log: Values, shape: Values) -> Sequence[Any]:
    """Loss against compute C = 6ND and M = D/N, L = E + (a * M^eta + b * M^-eta) * C^-eta: Gadre et al. 2024."""
    compute, ratio = np.log(FLOPS_PER_PARAMETER_TOKEN) + log["params"] + log["tokens"], log["tokens"] - log["params"]
    return 0.0, shape["eta"] * (ratio - compute), -shape["eta"] * (ratio + compute)


def skaling(log: Values, shape: Values) -> Sequence[Any]:
    """Loss with terms that interact, L = E + (A * N^-alpha + B * D^-beta)^k: arXiv 2608.07222."""
    inner = log_sum(-shape["alpha"] * log["params"], shape["mix"] - shape["beta"] * log["tokens"])
    return 0.0, shape["k"] * inner


def _skaling_usual(c: Values, centre: Mapping[str, float]) -> dict[str, Any]:
    root = c["scale"] ** (1 / c["k"])
    A = root * np.exp(c["alpha"] * centre["params"])
    B = root * np.exp(c["mix"] + c["beta"] * centre["tokens"])
    return {"E": c["E"], "A": A, "alpha": c["alpha"], "B": B, "beta": c["beta"], "k": c["k"]}


def _skaling_coordinates(p: Values) -> dict[str, Any]:
    A = np.asarray(p["A"], dtype=float)
    with np.errstate(divide="ignore", invalid="ignore"):
        mix = np.where(A > 0, np.log(p["B"] / A), 0.0)  # where loss falls with neither both are 0, and so is any mix
    return {**p, "scale": p["A"] ** p["k"], "mix": mix}


def kaplan(log: Values, shape: Values) -> Sequence[Any]:
    """Loss without a floor, L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D: Kaplan et al. 2020, equation 1.5."""
    ratio = shape["alpha_N"] / shape["alpha_D"]
    return (shape["alpha_D"] * log_sum(-ratio * log["params"], shape["mix"] - log["tokens"]),)


def _kaplan_usual(c: Values, centre: Mapping[str, float]) -> dict[str, Any]:
    N_c = np.exp(centre["params"]) * c["scale"] ** (1 / c["alpha_N"])
    D_c = np.exp(c["mix"] + centre["tokens"]) * c["scale"] ** (1 / c["alpha_D"])
    return {"N_c": N_c, "alpha_N": c["alpha_N"], "D_c": D_c, "alpha_D": c["alpha_D"]}


def _kaplan_coordinates(p: Values) -> dict[str, Any]:
    scale = p["N_c"] ** p["alpha_N"]
    return {**p, "scale": scale, "mix": np.log(p["D_c"]) - np.log(scale) / p["alpha_D"]}


def broken(log: Values, shape: Values) -> Sequence[Any]:
    """One smooth break, L = E + A * N^-alpha * (1 + (N / N_b)^(1/f))^(-c * f): Caballero et al. 2022, equation 1.

    The slope in log space goes from -alpha to -(alpha + c) about N_b; f is the width of the bend in log units.
    """
    along = (log["params"] - shape["log_break"]) / shape["f"]
    return 0.0, -shape["alpha"] * log["params"] - shape["c"] * shape["f"] * log_sum(0.0, along)


def _broken_usual(c: Values, centre: Mapping[str, float]) -> dict[str, Any]:
    A = c["A"] * np.exp(c["alpha"] * centre["params"])
    N_b = np.exp(c["log_break"] + centre["params"])
    return {"E": c["E"], "A": A, "alpha": c["alpha"], "c": c["c"], "N_b": N_b, "f": c["f"]}


def _broken_coordinates(p: Values) -> dict[str, Any]:
    return {**p, "log_break": np.log(p["N_b"])}


def data_constrained(log: Values, shape: Values) -> Sequence[Any]:
    """Loss with repeated data, L = E + A * N'^-alpha + B * D'^-beta: Muennighoff et al. 2023, equations 5 and 6.

    D' = U + U * R_D * (1 - exp(-(D/U - 1) / R_D)) for U unique tokens; N' likewise about the parameters that are
    compute-optimal for U tokens, U_N = G * (G * U)^(beta/alpha) with G = (alpha * A / (beta * B))^(1 / (alpha + beta)).
    """
    alpha, beta = shape["alpha"], shape["beta"]
    unique = np.minimum(log["tokens"], log["unique_tokens"])
    log_G = (np.log(alpha / beta) - shape["mix"]) / (alpha + beta)
    base = log_G + (log_G + unique) * beta / alpha
    excess = log["params"] - base
    params = np.where(excess.real > 0, base + _worth(excess, shape["R_N"]), log["params"])
    tokens = unique + _worth(log["tokens"] - unique, shape["R_D"])
    return 0.0, log_sum(-alpha * params, shape["mix"] - beta * tokens)


def _worth(excess: Any, half_life: Any) -> Any:
    """Log of the worth of a quantity in units of its base, for exp(excess) times its base."""
    with np.errstate(over="ignore", invalid="ignore"):  # far below the base, where it is not used
        return np.log1p(-half_life * np.expm1(-np.expm1(excess) / half_life))


def _constrained_usual(c: Values, centre: Mapping[str, float]) -> dict[str, Any]:
    A = c["scale"] * np.exp(c["alpha"] * centre["params"])
    B = c["scale"] * np.exp(c["mix"] + c["beta"] * centre["tokens"])
    decays = {name: c[name] for name in ("R_N", "R_D")}
    return {"E": c["E"], "A": A, "alpha": c["alpha"], "B": B, "beta": c["beta"], **decays}


def _constrained_coordinates(p: Values) -> dict[str, Any]:
    return {**p, "scale": p["A"], "mix": np.log(p["B"] / p["A"])}


def offset_linear(log: Values, _shape: Values) -> Sequence[Any]:
    """A fixed cost and a cost per unit, y = c0 + c1 * x: step time or memory against parameters."""
    return 0.0, log["x"]


def offset_power(log: Values, shape: Values) -> Sequence[Any]:
    """A fixed cost and a cost growing as a power, y = c0 + c1 * x^p: step time or memory against parameters."""
    return 0.0, shape["p"] * log["x"]


def roofline(log: Values, _shape: Values) -> Sequence[Any]:
    """Time of work and traffic that do not overlap, t = t0 + flops / F + bytes / W."""
    return 0.0, log["flops"], log["bytes"]


def _roofline_usual(c: Values, centre: Mapping[str, float]) -> dict[str, Any]:
    # Inputs are divided by exp(centre), so a rate per centred unit is a rate per unit times exp(centre).
    with np.errstate(divide="ignore"):  # a term that is switched off: its rate is infinite
        rates = {name: np.exp(centre[name]) / np.asarray(c[f"s_per_{name}"]) for name in ("flops", "bytes")}
    return {"t0": c["t0"], "F": rates["flops"], "W": rates["bytes"]}


def _roofline_coordinates(p: Values) -> dict[str, Any]:
    return {"t0": p["t0"], "s_per_flops": 1 / p["F"], "s_per_bytes": 1 / p["W"]}


LAWS: dict[str, Law] = {
    "power": Law(
        name="power",
        formula="L = E + A * N^-alpha",
        units="L and E in nats (or any loss), N in parameters, A in loss * parameters^alpha",
        source="Kaplan et al. 2020, arXiv 2001.08361; irreducible loss as in Henighan et al. 2020, arXiv 2010.14701",
        inputs=("params",),
        response="loss",
        coefficients=("E", "A"),
        exponents={"alpha": EXPONENT},
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
        exponents={"alpha": EXPONENT, "beta": EXPONENT},
        log_terms=chinchilla,
        offset="E",
    ),
    "data_constrained": Law(
        name="data_constrained",
        formula="L = E + A * N'^-alpha + B * D'^-beta, D' = U (1 + R_D (1 - exp(-(D/U - 1) / R_D))), N' likewise",
        units="as chinchilla; U in unique tokens; R_D and R_N in repetitions",
        source="Muennighoff et al. 2023, arXiv 2305.16264, equations 5 and 6",
        inputs=("params", "tokens", "unique_tokens"),
        response="loss",
        coefficients=("E", "scale"),
        exponents={"alpha": EXPONENT, "beta": EXPONENT, "mix": MIX, "R_N": (0.1, 1e3), "R_D": (0.1, 1e3)},
        log_terms=data_constrained,
        offset="E",
        same_unit={"unique_tokens": "tokens"},
        naming=Naming(("E", "A", "alpha", "B", "beta", "R_N", "R_D"), _constrained_usual, _constrained_coordinates),
    ),
    "skaling": Law(
        name="skaling",
        formula="L = E + (A * N^-alpha + B * D^-beta)^k",
        units="L and E in nats, N in parameters, D in tokens, A and B in nats^(1/k) * their input^exponent",
        source="arXiv 2608.07222",
        inputs=("params", "tokens"),
        response="loss",
        coefficients=("E", "scale"),
        exponents={"alpha": EXPONENT, "beta": EXPONENT, "k": (0.1, 5.0), "mix": MIX},
        log_terms=skaling,
        offset="E",
        naming=Naming(("E", "A", "alpha", "B", "beta", "k"), _skaling_usual, _skaling_coordinates),
    ),
    "broken": Law(
        name="broken",
        formula="L = E + A * N^-alpha * (1 + (N / N_b)^(1/f))^(-c * f)",
        units="L and E in nats, N and N_b in parameters, A in nats * parameters^alpha",
        source="Caballero et al. 2022, arXiv 2210.14891, equation 1 with one break",
        inputs=("params",),
        response="loss",
        coefficients=("E", "A"),
        exponents={"alpha": (0.0, 3.0), "c": (-3.0, 3.0), "log_break": (-np.inf, np.inf), "f": (0.1, 2.0)},
        log_terms=broken,
        offset="E",
        positions={"log_break": "params"},
        naming=Naming(
            ("E", "A", "alpha", "c", "N_b", "f"), _broken_usual, _broken_coordinates, logs={"log_break": "N_b"}
        ),
    ),
    "kaplan": Law(
        name="kaplan",
        formula="L = ((N_c / N)^(alpha_N / alpha_D) + D_c / D)^alpha_D",
        units="L in nats, N and N_c in parameters, D and D_c in tokens",
        source="Kaplan et al. 2020, arXiv 2001.08361, equation 1.5",
        inputs=("params", "tokens"),
        response="loss",
        coefficients=("scale",),
        exponents={"alpha_N": EXPONENT, "alpha_D": EXPONENT, "mix": MIX},
        log_terms=kaplan,
        naming=Naming(("N_c", "alpha_N", "D_c", "alpha_D"), _kaplan_usual, _kaplan_coordinates),
    ),
    "overtraining": Law(
        name="overtraining",
        formula="L = E + (a * M^eta + b * M^-eta) * C^-eta, C = 6ND, M = D / N",
        units="L and E in nats, N in parameters, D in tokens, C in FLOPs, a and b in nats * FLOPs^eta",
        source="Gadre et al. 2024, arXiv 2403.08540, equation 4",
        inputs=("params", "tokens"),
        response="loss",
        coefficients=("E", "a", "b"),
        exponents={"eta": EXPONENT},
        log_terms=overtraining,
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
    "offset_power": Law(
        name="offset_power",
        formula="y = c0 + c1 * x^p",
        units="c0 in units of y, c1 in units of y per unit of x^p",
        source="a launch floor plus work growing as a power of size",
        inputs=("x",),
        response="y",
        coefficients=("c0", "c1"),
        exponents={"p": (0.05, 4.0)},
        log_terms=offset_power,
    ),
    "roofline": Law(
        name="roofline",
        formula="t = t0 + flops / F + bytes / W",
        units="t and t0 in seconds, F in FLOP/s, W in bytes/s",
        source="Williams et al. 2009 with a launch floor, work and traffic added rather than overlapped",
        inputs=("flops", "bytes"),
        response="time",
        coefficients=("t0", "s_per_flops", "s_per_bytes"),
        exponents={},
        log_terms=roofline,
        naming=Naming(
            ("t0", "F", "W"),
            _roofline_usual,
            _roofline_coordinates,
            rates={"F": ("s_per_flops", "flops"), "W": ("s_per_bytes", "bytes")},
            same=("t0",),
        ),
    ),
    "distillation": DISTILLATION,
    "precision": PRECISION,
    "sparsity": SPARSITY,
    "sparsity_one_length": SPARSITY_OF_ONE_LENGTH,
    "transfer": TRANSFER,
}


def select_law(law: str | Law) -> Law:
    """Return the law of that name, or the `Law` itself."""
    if isinstance(law, Law):
        return law
    if law not in LAWS:
        raise FitRefused(f"law {law!r} is not known; choose one of {', '.join(LAWS)} or pass a Law")
    return LAWS[law]
