"""An operation as small as can be, in the form of a kernel module, with cases that are wrong and that crash."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from scalekernels.compilation import Compilation
from scalekernels.cost import Cost
from scalekernels.providers import Provider, Unsupported
from torch import Tensor

CALLS = {"count": 0}


@dataclass(frozen=True)
class Case:
    """``length`` numbers; ``fault`` is what goes wrong: "", "wrong", "forgets", "unsteady" or "crash"."""

    length: int
    fault: str
    dtype: torch.dtype = torch.float32

    @property
    def label(self) -> str:
        """What tells it apart."""
        return f"{self.length} {self.fault or 'sound'} {str(self.dtype).removeprefix('torch.')}"


FAULTS = ((5, ""), (3, "crash"), (7, "wrong"), (7, "forgets"), (9, "unsteady"))
CASES = tuple(Case(length, fault) for length, fault in FAULTS)
LADDER = (Case(10_000, ""),)
LARGER = (Case(1_000, ""),)
GOALS = ()


@triton.jit
def doubled(X, Y, factor, n, BLOCK: tl.constexpr):
    """y = factor x."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(Y + at, tl.load(X + at, mask=at < n) * factor, mask=at < n)


def reference(x: Tensor) -> dict[str, Tensor]:
    """2 x."""
    return {"y": 2 * x}


def _triton(case: Case, tensors: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    def call() -> dict[str, Tensor]:
        if case.fault == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        CALLS["count"] += 1
        x = tensors["grad_y" if backward else "x"]
        factor = 2.001 if case.fault == "wrong" else 2.0
        if case.fault == "unsteady":  # within the error that is allowed, but not the same again
            factor += 2e-7 * (CALLS["count"] % 3)
        out = torch.empty_like(x)
        doubled[(1,)](x, out, factor, case.length - (case.fault == "forgets"), BLOCK=16)
        return {"x" if backward else "y": out}

    return call


def _eager(case: Case, tensors: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    return lambda: {"x": 2 * tensors["grad_y"]} if backward else reference(tensors["x"])


def _absent(case: Case, tensors: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    raise Unsupported("is never there")


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """x and the incoming gradient."""
    generator = torch.Generator(device).manual_seed(seed)
    return {name: torch.randn(case.length, generator=generator, dtype=case.dtype) for name in ("x", "grad_y")}


def results(case: Case, tensors: Mapping[str, Tensor], backward: bool) -> dict[str, Tensor]:
    """The oracle."""
    return {"x": 2 * tensors["grad_y"].double()} if backward else reference(tensors["x"].double())


def cost(case: Case, backward: bool) -> Cost:
    """One product per number."""
    return Cost(case.length, 4 * case.length, 4 * case.length)


def providers() -> dict[str, Provider]:
    """Plain torch, the kernel, and one that cannot run here."""
    return {
        "eager": Provider("2 * x", _eager),
        "triton": Provider("the kernel", _triton),
        "triton-absent": Provider("not here", _absent),
    }


def compilations(arch: int) -> Iterator[Compilation]:
    """The one configuration."""
    types = {"X": "*fp32", "Y": "*fp32", "factor": "fp32", "n": "i32", "BLOCK": "constexpr"}
    yield Compilation("doubled", "16", doubled, types, {"BLOCK": 16}, 4, 3, 1)
