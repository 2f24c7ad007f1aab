"""What a comparison of optimizer steps needs: cases, inputs and exact results, cost, and the alternatives."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from scalekernels.cost import Cost
from scalekernels.device import unavailable_reason
from scalekernels.optimizer import algorithms as fused
from scalekernels.optimizer.base import FusedOptimizer
from scalekernels.optimizer.kernels import QUANTUM
from scalekernels.optimizer.reference import reference
from scalekernels.providers import Provider, Unavailable

# Adagrad's sum starts at a number that bfloat16 has: state kept in it must not start elsewhere than the oracle's.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    "adam": {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "adagrad": {"lr": 1e-2, "lr_decay": 1e-4, "initial_accumulator_value": 0.125},
    "rmsprop": {"lr": 1e-3, "alpha": 0.99, "weight_decay": 1e-4},
    "lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1},
}
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
STATES = {"adamw": 2, "adam": 2, "sgd": 1, "adagrad": 1, "rmsprop": 1, "lion": 1}
# Per element, with OPTIONS: a multiply-add as two, a square root or division as one; 8-bit codes are not counted.
FLOPS = {"adamw": 15, "adam": 16, "sgd": 9, "adagrad": 8, "rmsprop": 11, "lion": 10}
# Options that take another kernel: by name what they change, the states they add, and the FLOPs.
VARIANTS: Mapping[str, tuple[dict[str, Any], int, int]] = {
    "": ({}, 0, 0),
    "plain": ({"momentum": 0.0, "nesterov": False}, -1, -5),
    "momentum": ({"momentum": 0.9}, 1, 2),
    "centered": ({"centered": True}, 1, 5),
    "momentum centered": ({"momentum": 0.9, "centered": True}, 2, 7),
}
SHORT = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.int8: "int8"}


@dataclass(frozen=True)
class Case:
    """Parameters of the given shapes, and how they are updated. ``state_dtype`` is what the bytes of ``cost`` count.

    Without ``shapes`` they are those of the model called ``name`` in ``SIZES``: 124M, 350M, 760M or 1.3B. ``variant``
    names options beside the algorithm's in ``OPTIONS``: "plain" of sgd; "momentum", "centered" and both of rmsprop.
    Raises ``ValueError`` for an unknown name.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...] = ()
    algorithm: str = "adamw"
    dtype: torch.dtype = torch.float32
    state_dtype: torch.dtype = torch.float32
    max_grad_norm: float | None = None
    variant: str = ""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise ValueError(f"variant is {self.variant!r}; known: {', '.join(map(repr, VARIANTS))}")
        if self.shapes:
            return
        if self.name not in SIZES:
            raise ValueError(f"name is {self.name!r}; sizes known by name: {', '.join(SIZES)}; or give shapes")
        object.__setattr__(self, "shapes", SIZES[self.name])

    @property
    def params(self) -> int:
        """Number of elements over all tensors."""
        return sum(prod(shape) for shape in self.shapes)

    @property
    def label(self) -> str:
        """Algorithm, name and number of tensors, dtypes of parameters and state, clipping."""
        clip = "" if self.max_grad_norm is None else " clip"
        dtypes = f"{SHORT[self.dtype]}/{SHORT[self.state_dtype]}"
        algorithm = f"{self.algorithm} {self.variant}".strip()
        return f"{algorithm} {self.name} {len(self.shapes)}t {dtypes}{clip}"

    @property
    def options(self) -> dict[str, Any]:
        """What the optimizer is given, in torch's names."""
        return OPTIONS[self.algorithm] | VARIANTS[self.variant][0]


def gpt_shapes(depth: int, width: int, vocabulary: int = 50257, positions: int = 1024) -> tuple[tuple[int, ...], ...]:
    """Return the shapes of GPT-2's parameters (tied embedding): 4 + 12 per layer, 148 tensors at depth 12."""
    wide, narrow = (4 * width,), (width,)
    layer: tuple[tuple[int, ...], ...] = (
        narrow, narrow, (3 * width, width), (3 * width,), (width, width), narrow,
        narrow, narrow, (4 * width, width), wide, (width, 4 * width), narrow,
    )  # fmt: skip
    return ((vocabulary, width), (positions, width), *layer * depth, narrow, narrow)


SIZES = {
    "124M": gpt_shapes(12, 768),
    "350M": gpt_shapes(24, 1024),
    "760M": gpt_shapes(24, 1536),
    "1.3B": gpt_shapes(24, 2048),
}
ODD = ((), (0,), (1,), (63,), (3, 5, 7), (41, 25), (8193,))
CASES = (
    *(Case("odd", ODD, algorithm) for algorithm in OPTIONS),
    Case("odd", ODD, "adamw", max_grad_norm=1.0),
    Case("odd", ODD, "sgd", torch.float16, max_grad_norm=1.0),
    Case("odd", ODD, "lion", torch.float16),  # not AdamW: torch's own state in float16 underflows to 0 / 0
    Case("odd", ODD, "adamw", torch.bfloat16),
    Case("odd", ODD, "adamw", torch.float32, torch.bfloat16),
    Case("odd", ODD, "adamw", torch.float32, torch.int8),
)
LADDER = (
    *(Case(name, shapes) for name, shapes in SIZES.items()),
    *(
        Case(name, SIZES[name], "adamw", dtype, state_dtype)
        for name in ("124M", "1.3B")
        for dtype, state_dtype in (
            (torch.bfloat16, torch.float32),
            (torch.bfloat16, torch.bfloat16),
            (torch.bfloat16, torch.int8),
            (torch.float32, torch.int8),
        )
    ),
)

# For the check on a GPU: what else changes the machine code.
LARGER = (
    Case("odd", ODD, "sgd", variant="plain"),
    *(Case("odd", ODD, "rmsprop", variant=variant) for variant in ("momentum", "centered", "momentum centered")),
    *(Case("odd", ODD, algorithm, max_grad_norm=1.0) for algorithm in ("adagrad", "rmsprop", "lion")),
)
# Where speed is judged.
GOALS = (
    Case("124M", SIZES["124M"]),
    Case("124M", SIZES["124M"], "adamw", torch.bfloat16),
    Case("124M", SIZES["124M"], "adamw", torch.bfloat16, torch.int8),
)


def inputs(case: Case, device: str | torch.device = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """Return parameters ``param_000`` … and gradients ``grad_000`` … drawn from the normal distribution."""
    generator = torch.Generator(device).manual_seed(seed)
    return {
        f"{kind}_{place:03}": torch.randn(shape, device=device, generator=generator).to(case.dtype)
        for kind in ("param", "grad")
        for place, shape in enumerate(case.shapes)
    }


def results(case: Case, given: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """Return the parameters after one step from an empty state, in float64. Raises ``Unavailable`` for a backward."""
    _forward_only(backward)
    factor: Tensor | float = 1.0
    if case.max_grad_norm is not None:
        squares = [given[f"grad_{place:03}"].double().square().sum() for place in range(len(case.shapes))]
        factor = (case.max_grad_norm / (torch.stack(squares).sum().sqrt() + 1e-6)).clamp(max=1.0)

    def after(place: int) -> Tensor:
        param, grad = (given[f"{kind}_{place:03}"].double() for kind in ("param", "grad"))
        return reference(case.algorithm, param, grad * factor, {}, **case.options)["param"]

    # One tensor at a time: of 1.3B parameters only the results are held in float64, 10.5 GB.
    return {f"param_{place:03}": after(place) for place in range(len(case.shapes))}


def cost(case: Case, backward: bool = False) -> Cost:
    """Return what a step must do: parameters and state read and written, gradients read, twice if they are clipped."""
    _forward_only(backward)
    n, states = case.params, STATES[case.algorithm] + VARIANTS[case.variant][1]
    state = states * n * case.state_dtype.itemsize
    if case.state_dtype == torch.int8:
        state += states * 4 * sum(-(-prod(shape) // QUANTUM.value) for shape in case.shapes)
    grads = n * case.dtype.itemsize * (1 if case.max_grad_norm is None else 2)
    weights = n * case.dtype.itemsize
    clip = 0 if case.max_grad_norm is None else 3 * n
    return Cost(
        (FLOPS[case.algorithm] + VARIANTS[case.variant][2]) * n + clip, weights + grads + state, weights + state
    )


def _forward_only(backward: bool) -> None:
    if backward:
        raise Unavailable("an optimizer step has no backward pass")


Make = Callable[[Case, list[Tensor]], Optimizer]
READING = ("adamw", "adam", "lion")  # steps of these only read gradients, in torch as here: all can share one copy


def _prepare(
    make: Make, own_clipping: bool = False, compiled: bool = False
) -> Callable[..., Callable[[], Mapping[str, Tensor]]]:
    def prepare(case: Case, given: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
        _forward_only(backward)
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
    """Return a provider of steps, each from where the one before ended; its state has the parameters' dtype if None."""

    def own_cost(case: Case, backward: bool) -> Cost:
        return cost(dataclasses.replace(case, state_dtype=case.dtype if state is None else state), backward)

    return Provider(summary, _prepare(make, own_clipping, compiled), repeatable=False, cost=own_cost)


def _torch(**flags: Any) -> Make:
    def make(case: Case, params: list[Tensor]) -> Optimizer:
        if case.algorithm not in TORCH:
            raise Unavailable(f"torch.optim has no {case.algorithm}")
        chosen = dict(flags)
        if "capturable" in inspect.signature(TORCH[case.algorithm]).parameters and params[0].device.type == "cuda":
            chosen["capturable"] = True  # keeps the number of steps on the device, so that CUDA graphs can hold a step
        try:
            return TORCH[case.algorithm](params, **case.options, **chosen)
        except (RuntimeError, TypeError) as error:
            raise Unavailable(f"torch.optim.{TORCH[case.algorithm].__name__}: {error}") from error

    return make


def _ours(state_dtype: torch.dtype) -> Make:
    def make(case: Case, params: list[Tensor]) -> Optimizer:
        if reason := unavailable_reason():
            raise Unavailable(reason)
        if case.state_dtype not in (torch.float32, state_dtype):
            raise Unavailable(
                f"keeps {SHORT[state_dtype]} state; this case counts the bytes of {SHORT[case.state_dtype]}"
            )
        if case.options.get("centered") and state_dtype != torch.float32:
            raise Unavailable(f"a centered variance needs float32 state, not {SHORT[state_dtype]}")
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
            raise Unavailable(f"{module.partition('.')[0]} is not installed")
        if case.algorithm not in names:
            raise Unavailable(f"{module} has no {case.algorithm} that is compared here")
        try:
            found: Callable[..., Optimizer] = getattr(importlib.import_module(module), names[case.algorithm])
        except (ImportError, AttributeError) as error:
            raise Unavailable(f"{module}.{names[case.algorithm]}: {error}") from error
        return found(params, **case.options)

    return make


def _loop(case: Case, params: list[Tensor]) -> Optimizer:
    if case.algorithm == "lion":
        return _LionLoop(params, OPTIONS["lion"])
    return _torch(foreach=False)(case, params)


class _LionLoop(Optimizer):
    """Lion in plain torch, tensor by tensor: what stands beside the kernel, as torch has none."""

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
    """Return every way to take the step; torch's keep their state in the dtype of the parameters."""
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
