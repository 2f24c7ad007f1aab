"""One step of every algorithm in plain torch, in the precision of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

State = Mapping[str, Tensor]


def reference(algorithm: str, param: Tensor, grad: Tensor, state: State, **options: Any) -> dict[str, Tensor]:
    """Return ``param`` and the new state after one step, without changing the inputs.

    ``state`` is empty at the first step and what this function returned, without ``param``, at later ones. ``options``
    are torch's arguments of the algorithm (``adam``, ``adamw``, ``sgd``, ``adagrad``, ``rmsprop``), or Lion's.
    Raises ``ValueError`` for an unknown algorithm.
    """
    if algorithm not in STEPS:
        raise ValueError(f"algorithm is {algorithm!r}; known: {', '.join(STEPS)}")
    grad = -grad if options.pop("maximize", False) else grad
    step = state["step"] + 1 if "step" in state else torch.ones((), dtype=torch.float64)
    return {"step": step} | STEPS[algorithm](param, grad, state, float(step), **options)


def _decayed(param: Tensor, grad: Tensor, weight_decay: float) -> Tensor:
    return grad + weight_decay * param if weight_decay else grad


def _adam(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    lr: float = 1e-3,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
) -> dict[str, Tensor]:
    """Kingma & Ba 2015, algorithm 1; decoupled decay (Loshchilov & Hutter 2019, algorithm 2) comes first."""
    if decoupled:
        param = param * (1 - lr * weight_decay)
    else:
        grad = _decayed(param, grad, weight_decay)
    first = state.get("exp_avg", torch.zeros_like(param)) * betas[0] + (1 - betas[0]) * grad
    second = state.get("exp_avg_sq", torch.zeros_like(param)) * betas[1] + (1 - betas[1]) * grad * grad
    denominator = (second / (1 - betas[1] ** step)).sqrt() + eps
    param = param - lr / (1 - betas[0] ** step) * first / denominator
    return {"param": param, "exp_avg": first, "exp_avg_sq": second}


def _adamw(param: Tensor, grad: Tensor, state: State, step: float, **options: Any) -> dict[str, Tensor]:
    return _adam(param, grad, state, step, **({"weight_decay": 1e-2} | options), decoupled=True)


def _sgd(
    param: Tensor,
    grad: Tensor,
    state: State,
    _step: float,
    lr: float = 1e-3,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
) -> dict[str, Tensor]:
    """Sutskever et al. 2013 in torch's form: the first buffer is the gradient itself."""
    grad = _decayed(param, grad, weight_decay)
    if not momentum:
        return {"param": param - lr * grad}
    old = state.get("momentum_buffer")
    buffer = grad.clone() if old is None else momentum * old + (1 - dampening) * grad
    return {"param": param - lr * (grad + momentum * buffer if nesterov else buffer), "momentum_buffer": buffer}


def _adagrad(
    param: Tensor,
    grad: Tensor,
    state: State,
    step: float,
    lr: float = 1e-2,
    lr_decay: float = 0.0,
    weight_decay: float = 0.0,
    initial_accumulator_value: float = 0.0,
    eps: float = 1e-10,
) -> dict[str, Tensor]:
    """Duchi et al. 2011, with torch's decay of the learning rate."""
    grad = _decayed(param, grad, weight_decay)
    total = state.get("sum", torch.full_like(param, initial_accumulator_value)) + grad * grad
    return {"param": param - lr / (1 + (step - 1) * lr_decay) * grad / (total.sqrt() + eps), "sum": total}


def _rmsprop(
    param: Tensor,
    grad: Tensor,
    state: State,
    _step: float,
    lr: float = 1e-2,
    alpha: float = 0.99,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
    centered: bool = False,
) -> dict[str, Tensor]:
    """Hinton's lecture 6e; centred as in Graves 2013, equations 38 to 45 (eps outside the root, as in torch)."""
    grad = _decayed(param, grad, weight_decay)
    zero = torch.zeros_like(param)
    new = {"square_avg": alpha * state.get("square_avg", zero) + (1 - alpha) * grad * grad}
    spread = new["square_avg"]
    if centered:
        new["grad_avg"] = alpha * state.get("grad_avg", zero) + (1 - alpha) * grad
        spread = spread - new["grad_avg"] ** 2
    update = grad / (spread.sqrt() + eps)
    if momentum > 0:
        update = new["momentum_buffer"] = momentum * state.get("momentum_buffer", zero) + update
    return {"param": param - lr * update} | new


def _lion(
    param: Tensor,
    grad: Tensor,
    state: State,
    _step: float,
    lr: float = 1e-4,
    betas: tuple[float, float] = (0.9, 0.99),
    weight_decay: float = 0.0,
) -> dict[str, Tensor]:
    """Chen et al. 2023, program 1."""
    first = state.get("exp_avg", torch.zeros_like(param))
    direction = (betas[0] * first + (1 - betas[0]) * grad).sign()
    param = param * (1 - lr * weight_decay) - lr * direction
    return {"param": param, "exp_avg": betas[1] * first + (1 - betas[1]) * grad}


STEPS: Mapping[str, Callable[..., dict[str, Tensor]]] = {
    "adam": _adam,
    "adamw": _adamw,
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "lion": _lion,
}
