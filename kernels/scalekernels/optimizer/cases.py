"""Cases of optimizer steps for comparisons, their inputs, exact results and costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from scalekernels.cost import Cost
from scalekernels.optimizer.kernels import QUANTUM
from scalekernels.optimizer.reference import reference
from scalekernels.providers import Unsupported

# Adagrad's sum starts at a number that bfloat16 has: state kept in it must not start elsewhere than the oracle's.
OPTIONS: Mapping[str, dict[str, Any]] = {
    "adamw": {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1},
    "adam": {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.01},
    "sgd": {"lr": 1e-2, "momentum": 0.9, "nesterov": True, "weight_decay": 1e-4},
    "adagrad": {"lr": 1e-2, "lr_decay": 1e-4, "initial_accumulator_value": 0.125},
    "rmsprop": {"lr": 1e-3, "alpha": 0.99, "weight_decay": 1e-4},
    "lion": {"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.1},
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
        """The optimizer's arguments, by torch's names."""
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
    """Return the parameters after one step from an empty state, in float64. Raises ``Unsupported`` for a backward."""
    forward_only(backward)
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
    """Return the cost of a step: parameters and state read and written, gradients read, twice if clipped."""
    forward_only(backward)
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


def forward_only(backward: bool) -> None:
    """Raise ``Unsupported`` for a backward pass."""
    if backward:
        raise Unsupported("an optimizer step has no backward pass")
