"""Cases of rotary positions: shapes, inputs, what they cost, and every other way to compute them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from scalekernels.cost import Cost
from scalekernels.providers import Provider

TABLES = ("cos", "sin")


@dataclass(frozen=True)
class Case:
    """``batch`` sequences of ``length`` tokens from place ``start`` on; ``rotate`` False: split and join alone."""

    batch: int
    length: int
    heads: int
    head_dimension: int
    dtype: torch.dtype
    rotate: bool = True
    start: int = 0

    @property
    def label(self) -> str:
        """What tells this case from the others."""
        dtype = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}[self.dtype]
        place = f" from {self.start}" if self.start else ""
        return (
            f"B{self.batch} T{self.length} H{self.heads} D{self.head_dimension} "
            f"{dtype}{place}{' plain' * (not self.rotate)}"
        )


def cost(case: Case, backward: bool) -> Cost:
    """Two products and a sum per number turned; q and k, backward v too, across the bus once each way."""
    part = case.batch * case.length * case.heads * case.head_dimension
    size, tables = case.dtype.itemsize, 4 * case.length * case.head_dimension * case.rotate
    moved = size * part * (3 if backward else 2 * case.rotate)
    return Cost(6 * part * case.rotate, moved + tables, moved)


def angles(head_dimension: int, places: int, device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Return cosines and sines (places, D) in float32, both halves alike, as models keep them."""
    frequency = 10_000.0 ** -(torch.arange(0, head_dimension, 2, device=device) / head_dimension)
    angle = torch.arange(places, device=device)[:, None] * frequency
    return angle.cos().repeat(1, 2), angle.sin().repeat(1, 2)


def inputs(case: Case, device: str = "cpu", seed: int = 0) -> dict[str, Tensor]:
    """qkv (B, T, 3, H, D), the tables cos and sin, and the gradients that come in: grad_q, grad_k, grad_v."""
    generator = torch.Generator(device).manual_seed(seed)
    shape = (case.batch, case.length, case.heads, case.head_dimension)
    packed = (*shape[:2], 3, *shape[2:])
    shapes = {"qkv": packed, "grad_q": shape, "grad_k": shape, "grad_v": shape}
    drawn = {
        name: torch.randn(size, generator=generator, device=device, dtype=case.dtype) for name, size in shapes.items()
    }
    tables = angles(case.head_dimension, case.start + case.length, device)
    return drawn | (dict(zip(TABLES, tables, strict=True)) if case.rotate else {})


Function = Callable[..., Mapping[str, Tensor]]


def evaluation(
    function: Function, case: Case, inputs: Mapping[str, Tensor], backward: bool
) -> Callable[[], dict[str, Tensor]]:
    """Return what a call of ``function``, or with ``backward`` the gradient of a call made here, amounts to."""
    qkv = inputs["qkv"].detach()
    tables = {name: inputs[name] for name in TABLES if name in inputs}
    if not backward:
        return lambda: dict(function(qkv, **tables, start=case.start))
    outputs = function(qkv.requires_grad_(), **tables, start=case.start)
    grads = [inputs[f"grad_{name}"] for name in outputs]
    return lambda: {"qkv": torch.autograd.grad(list(outputs.values()), qkv, grads, retain_graph=True)[0]}


def _torch(qkv: Tensor, cos: Tensor | None = None, sin: Tensor | None = None, start: int = 0) -> dict[str, Tensor]:
    """In float32, rounded once, as a model under autocast computes it."""
    q, k, v = qkv.unbind(2)
    if cos is None or sin is None:
        return {"q": q, "k": k, "v": v}
    places = slice(start, start + qkv.shape[1])

    def turn(x: Tensor) -> Tensor:
        first, second = x.float().chunk(2, dim=-1)
        across = torch.cat((-second, first), dim=-1)
        return (x.float() * cos[places, None] + across * sin[places, None]).to(x.dtype)

    return {"q": turn(q), "k": turn(k), "v": v}


def alternatives() -> dict[str, Provider]:
    """Return what else computes a ``Case``: q, k and v forward, the gradient of qkv backward."""
    return {
        "eager": Provider("written out in torch", _prepare_eager),
        "compiled": Provider("torch.compile of the same", _prepare_compiled),
    }


def _prepare_eager(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    return evaluation(_torch, case, inputs, backward)


def _prepare_compiled(case: Case, inputs: Mapping[str, Tensor], backward: bool) -> Callable[[], Mapping[str, Tensor]]:
    run = evaluation(torch.compile(_torch, fullgraph=True), case, inputs, backward)
    run()  # compiles
    return run


# Every head dimension, turned and not, so that the check on a GPU launches every configuration.
CASES = (
    Case(2, 7, 3, 16, torch.float32),
    Case(1, 131, 5, 16, torch.float16, rotate=False),
    Case(3, 33, 1, 32, torch.float16, start=5),
    Case(2, 5, 9, 32, torch.float32, rotate=False),
    Case(2, 37, 5, 64, torch.float16, start=17),
    Case(1, 17, 4, 64, torch.float32),
    Case(3, 16, 2, 64, torch.float16, rotate=False),
    Case(2, 9, 7, 128, torch.float32, start=1),
    Case(1, 8, 16, 128, torch.float16),
    Case(2, 3, 1, 128, torch.float32, rotate=False),
    Case(1, 6, 3, 256, torch.float16, start=2),
    Case(1, 1, 2, 256, torch.float32, rotate=False),
)
LARGER = (Case(2, 1000, 12, 64, torch.bfloat16, start=24),)
LADDER = tuple(
    Case(32768 // length, length, width // dimension, dimension, torch.bfloat16)
    for length, width, dimension in (
        (1024, 768, 64), (1024, 1024, 64), (1024, 2048, 64), (2048, 2048, 128), (2048, 4096, 128), (2048, 8192, 128),
    )
)  # fmt: skip
# Where speed is judged: what GPT with 124M and with 1.3B parameters trains with.
GOALS = (Case(32, 1024, 12, 64, torch.bfloat16), Case(16, 2048, 16, 128, torch.bfloat16))
