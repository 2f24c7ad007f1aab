"""Providers of an optimizer step: torch's, those of other packages, and ours."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scalekernels.cost import Cost
from scalekernels.device import unavailable_reason
from scalekernels.optimizer import algorithms as fused
from scalekernels.optimizer.base import FusedOptimizer
from scalekernels.optimizer.cases import OPTIONS, SHORT, Case, cost, forward_only
from scalekernels.optimizer.reference import reference
from scalekernels.providers import Provider, Unsupported

TORCH: Mapping[str, type[Optimizer]] = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
    "adagrad": torch.optim.Adagrad,
    "rmsprop": torch.optim.RMSprop,
}
OURS: Mapping[str, type[FusedOptimizer]] = {
    "adamw": fused.AdamW,
    "adam": fused.Adam,
    "sgd": fused.SGD,
    "adagrad": fused.Adagrad,
    "rmsprop": fused.RMSprop,
    "lion": fused.Lion,
}

Make = Callable[[Case, list[Tensor]], Optimizer]
READING = ("adamw", "adam", "lion")  # steps of these only read gradients, in torch as here: all can share one copy


def _prepare(
    make: Make, own_clipping: bool = False, compiled: bool = False
) -> Callable[..., Callable[[], Mapping[str, Tensor]]]:
    def prepare(case: Case, given: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
        forward_only(backward)
        shared = case.algorithm in READING and (case.max_grad_norm is None or own_clipping)
        params: list[Tensor] = []
        for place in range(len(case.shapes)):
            params.append(torch.nn.Parameter(given[f"param_{place:03}"].clone()))
            grad = given[f"grad_{place:03}"]
            params[-1].grad = grad if shared else grad.clone()
        optimizer = make(case, params)
        step: Callable[[], Any] = torch.compile(optimizer.step) if compiled else optimizer.step
        # The parameters themselves: after the first call they hold the results, after later ones those of more steps.
        after = {f"param_{place:03}": param.detach() for place, param in enumerate(params)}

        def call() -> Mapping[str, Tensor]:
            if case.max_grad_norm is not None and not own_clipping:
                torch.nn.utils.clip_grad_norm_(params, case.max_grad_norm)
            step()
            return after

        return call

    return prepare


def _step(
    summary: str, make: Make, state: torch.dtype | None = None, own_clipping: bool = False, compiled: bool = False
) -> Provider:
    """Return a provider of successive steps; ``state_dtype`` None means the parameters' dtype."""

    def own_cost(case: Case, backward: bool) -> Cost:
        return cost(dataclasses.replace(case, state_dtype=case.dtype if state is None else state), backward)

    return Provider(summary, _prepare(make, own_clipping, compiled), repeatable=False, cost=own_cost)


def _torch(**flags: Any) -> Make:
    def make(case: Case, params: list[Tensor]) -> Optimizer:
        if case.algorithm not in TORCH:
            raise Unsupported(f"torch.optim has no {case.algorithm}")
        chosen = dict(flags)
        if "capturable" in inspect.signature(TORCH[case.algorithm]).parameters and params[0].device.type == "cuda":
            chosen["capturable"] = True  # keeps the number of steps on the device, so that CUDA graphs can hold a step
        try:
            return TORCH[case.algorithm](params, **case.options, **chosen)
        except (RuntimeError, TypeError) as error:
            raise Unsupported(f"torch.optim.{TORCH[case.algorithm].__name__}: {error}") from error

    return make


def _ours(state_dtype: torch.dtype) -> Make:
    def make(case: Case, params: list[Tensor]) -> Optimizer:
        if reason := unavailable_reason():
            raise Unsupported(reason)
        if case.state_dtype not in (torch.float32, state_dtype):
            raise Unsupported(
                f"keeps {SHORT[state_dtype]} state; this case counts the bytes of {SHORT[case.state_dtype]}"
            )
        if case.options.get("centered") and state_dtype != torch.float32:
            raise Unsupported(f"a centered variance needs float32 state, not {SHORT[state_dtype]}")
        return OURS[case.algorithm](
            params,
            **case.options,
            state_dtype=state_dtype,
            max_grad_norm=case.max_grad_norm,
            stochastic_rounding=False,  # as torch rounds: a random choice of two neighbours errs up to twice as far
        )

    return make


def _elsewhere(module: str, names: Mapping[str, str]) -> Make:
    def make(case: Case, params: list[Tensor]) -> Optimizer:
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            raise Unsupported(f"{module.partition('.')[0]} is not installed")
        if case.algorithm not in names:
            raise Unsupported(f"{module} has no {case.algorithm} that is compared here")
        try:
            found: Callable[..., Optimizer] = getattr(importlib.import_module(module), names[case.algorithm])
        except (ImportError, AttributeError) as error:
            raise Unsupported(f"{module}.{names[case.algorithm]}: {error}") from error
        return found(params, **case.options)

    return make


def _loop(case: Case, params: list[Tensor]) -> Optimizer:
    if case.algorithm == "lion":
        return _LionLoop(params, OPTIONS["lion"])
    return _torch(foreach=False)(case, params)


class _LionLoop(Optimizer):
    """Lion in plain torch, tensor by tensor, since torch has none."""

    def __init__(self, params: Iterable[Tensor], options: dict[str, Any]) -> None:
        super().__init__(params, options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update every parameter by its gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                new = reference("lion", param, param.grad, state, **OPTIONS["lion"])
                param.copy_(new.pop("param"))
                state.update(new)
        return closure


def providers() -> dict[str, Provider]:
    """Return all implementations by name; torch's keep their state in the dtype of the parameters."""
    return {
        "eager": _step("torch.optim, a loop over tensors", _loop),
        "foreach": _step("torch.optim with foreach=True", _torch(foreach=True)),
        "fused": _step("torch.optim with fused=True", _torch(fused=True)),
        "compiled": _step("torch.compile of the foreach step", _torch(foreach=True), compiled=True),
        "apex": _step("NVIDIA apex", _elsewhere("apex.optimizers", {"adamw": "FusedAdam", "sgd": "FusedSGD"})),
        "bitsandbytes": _step(
            "bitsandbytes, 8-bit state",
            _elsewhere("bitsandbytes.optim", {"adamw": "AdamW8bit", "adam": "Adam8bit"}),
            torch.int8,
        ),
        "torchao": _step(
            "torchao, 8-bit state",
            _elsewhere("torchao.optim", {"adamw": "AdamW8bit", "adam": "Adam8bit"}),
            torch.int8,
        ),
        **{
            f"triton{suffix}": _step(f"ours, {name} state", _ours(dtype), dtype, own_clipping=True)
            for suffix, name, dtype in (
                ("", "float32", torch.float32),
                ("-bf16-state", "bfloat16", torch.bfloat16),
                ("-int8-state", "8-bit", torch.int8),
            )
        },
    }
