"""A small operation with right, wrong, absent and crashing providers, for tests of the comparison: row sums of squares.

It is loaded by its path, as a user's own operation would be.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from scalekernels.cost import Cost
from scalekernels.providers import Provider, Unsupported
from torch import Tensor

Results = Mapping[str, Tensor]


@dataclass(frozen=True)
class Case:
    rows: int
    columns: int
    dtype: torch.dtype
    power: Literal["square", "cube"] = "square"
    scale: float | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; at least 1")

    @property
    def label(self) -> str:
        return f"{self.rows}x{self.columns} {str(self.dtype).removeprefix('torch.')} {self.power}"


CASES = (Case(7, 33, torch.float32), Case(65, 130, torch.bfloat16))
LADDER = (Case(256, 1024, torch.float32),)


def reference(x: Tensor) -> dict[str, Tensor]:
    return {"total": (x * x).sum(-1)}


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"x": torch.randn(case.rows, case.columns, generator=generator).to(device, case.dtype)}


def results(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Results:
    x = inputs["x"].double()
    return {"x": 2 * x} if backward else reference(x)


def cost(case: Case, backward: bool) -> Cost:
    count, size = case.rows * case.columns, case.dtype.itemsize
    return Cost(2 * count, count * size, case.rows * size)


def _plain(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    if not backward:
        return lambda: reference(inputs["x"])
    x = inputs["x"].detach().requires_grad_()
    total = reference(x)["total"]
    return lambda: {"x": torch.autograd.grad(total, x, torch.ones_like(total), retain_graph=True)[0]}


def _slow(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    def run() -> Results:
        time.sleep(2e-3)
        return reference(inputs["x"])

    return run


def _wrong(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    return lambda: {"total": 1.1 * reference(inputs["x"])["total"]}


def _renamed(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    return lambda: {"sum": reference(inputs["x"])["total"]}


def _absent(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    raise Unsupported("needs a device that is not here")


def _crashing(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    raise ArithmeticError("<b>boom</b>")


def _dying(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Results]:
    return lambda: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[return-value, func-returns-value]


PROVIDERS = {
    "eager": _plain, "again": _plain, "slow": _slow, "wrong": _wrong, "renamed": _renamed, "absent": _absent,
    "crashing": _crashing, "dying": _dying,
}  # fmt: skip


def providers() -> dict[str, Provider]:
    return {name: Provider(f"<i>{name}</i>", prepare) for name, prepare in PROVIDERS.items()}
