"""What one training step of a GPT must compute and move, kernel by kernel, and how long that takes at given ceilings.

It is the ``fused`` implementation that is modelled: one dtype of two bytes, a float32 gradient sum, AdamW with float32
state. A kernel takes the longer of its arithmetic at the rate of its products and its bytes at the memory's rate; so
the sum is a bound from below at these ceilings, and its parts show what limits a size. Launches, waits and the
allocator are left out.

Legend as in ``families.gpt``, and n tokens of a step, I = H D, P parameters, m micro-batches.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from scalebench.families import gpt
from scalebench.study import Trial
from scalebench.workloads.base import step_flops
from scalebench.workloads.training_spec import TrainSpec


@dataclass(frozen=True)
class Ceilings:
    """Assumed rates of a device: matrix products and attention in FLOP/s, memory in bytes/s."""

    products: float = 700e12
    attention: float = 450e12
    memory: float = 2.8e12


@dataclass(frozen=True)
class Kernel:
    """What all launches of one kernel do in a step; ``rate`` names the ceiling of its arithmetic, if it has one."""

    name: str
    flops: float
    bytes: float
    rate: str = ""

    def seconds(self, ceilings: Ceilings) -> float:
        """Return the time at the ceilings."""
        return max(self._arithmetic_s(ceilings), self.bytes / ceilings.memory)

    def bound(self, ceilings: Ceilings) -> str:
        """Return which ceiling limits it."""
        return self.rate if self._arithmetic_s(ceilings) > self.bytes / ceilings.memory else "memory"

    def _arithmetic_s(self, ceilings: Ceilings) -> float:
        return self.flops / getattr(ceilings, self.rate) if self.rate else 0.0


def has_model(trial: Trial) -> bool:
    """Return whether a trial's steps are modelled here: training of a gpt with the fused kernels in 16 bits."""
    spec = trial.spec
    if trial.family != "gpt" or not isinstance(spec, TrainSpec):
        return False
    return spec.implementation == "fused" and spec.precision != "float32"


def step_kernels(config: gpt.Config, spec: TrainSpec) -> list[Kernel]:
    """Return the kernels of one step: bytes and FLOPs over all layers and micro-batches, forward and backward."""
    return [*_blocks(config, spec), *_ends(config, spec), *_per_parameter(config, spec)]


def _tokens(spec: TrainSpec) -> int:
    assert spec.sequence_length is not None
    return spec.batch_size * spec.sequence_length


def _product(name: str, n: int, ins: int, outs: int, spec: TrainSpec, depth: int = 1) -> Kernel:
    """y = x wᵀ, dx = dy w, dw = dyᵀ x in two bytes; x, y and their gradients cross the bus, w for each micro-batch."""
    rows, weights = 2 * n * (ins + outs), 2 * ins * outs * spec.accumulation
    return Kernel(name, 6.0 * depth * n * ins * outs, 3.0 * depth * (rows + weights), "products")


def _blocks(config: gpt.Config, spec: TrainSpec) -> Iterator[Kernel]:
    n, c, i, f, depth = _tokens(spec), config.width, config.inner, config.hidden, config.depth
    yield _product("qkv product", n, c, 3 * i, spec, depth)
    yield _product("attention's output product", n, i, c, spec, depth)
    yield _product("MLP products", n, c, f, spec, 2 * depth)
    case = import_module("scalekernels.attention.cases").Case(
        spec.batch_size, config.heads, config.heads, spec.sequence_length, spec.sequence_length, config.head_dim, True,
        torch.bfloat16,
    )  # fmt: skip
    for name, backward in (("attention forward", False), ("attention backward", True)):
        cost = import_module("scalekernels.attention.cases").cost(case, backward)
        yield Kernel(name, depth * cost.flops, depth * cost.bytes_moved, "attention")
    norms = import_module("scalekernels.norm.cases")
    norm = norms.Case(config.norm, n, c, True, torch.bfloat16)
    moved = sum(norms.cost(norm, backward).bytes_moved for backward in (False, True))
    yield Kernel("norms with residual", 0, 2 * depth * moved)
    if config.positions == "rotary":  # forward turns q and k; backward turns back and joins q, k and v
        yield Kernel("rotary", 0, depth * n * i * (8 + 12))
    else:
        yield Kernel("q, k, v gradients joined", 0, depth * n * i * 12)
    yield Kernel("GELU", 0, depth * n * f * (4 + 6))
    if config.bias:  # sums over rows of the gradients of four products
        yield Kernel("bias gradients", 0, depth * n * 2 * (3 * i + c + f + c))


def _ends(config: gpt.Config, spec: TrainSpec) -> Iterator[Kernel]:
    n, c, v = _tokens(spec), config.width, config.vocab_size
    yield _product("loss products", n, c, v, spec)
    yield Kernel("loss softmax", 0, 4 * n * v)  # logits read and their gradient written
    tied = 6 * v * c * config.tied * spec.accumulation  # two gradients of one matrix are added
    yield Kernel("embedding", 0, 8 * n * c + 2 * v * c * spec.accumulation + tied)


def _per_parameter(config: gpt.Config, spec: TrainSpec) -> Iterator[Kernel]:
    params = gpt.count(config).total
    # The products write 2 bytes per gradient. Summing ones write 4 at first, then read and write 4.
    summed = config.depth * (4 * config.width * config.inner + 2 * config.width * config.hidden) * spec.gradient_sums
    again = spec.accumulation - 1
    moved = summed * (2 + 6 * again) + (params - summed) * (6 + 10 * again)
    yield Kernel("gradients to float32", 0, moved)
    optimizer = import_module("scalekernels.optimizer.cases")
    case = optimizer.Case("step", ((params,),), max_grad_norm=spec.gradient_clip)
    yield Kernel("AdamW with clipping", 0, optimizer.cost(case).bytes_moved)
    yield Kernel("weights to 16 bits", 0, params * 6)


def summary(config: gpt.Config, spec: TrainSpec, ceilings: Ceilings, peak: float | None) -> dict[str, Any]:
    """Return the table of a step: kernels with their times, tokens per second, utilisation, its bottleneck.

    ``holds_back`` is the slowest kernel other than the matrix products.
    """
    kernels = step_kernels(config, spec)
    times = {kernel.name: kernel.seconds(ceilings) for kernel in kernels}
    total = sum(times.values())
    flops = step_flops(gpt.count(config, spec.sequence_length), spec.batch_size)
    others = {kernel.name: times[kernel.name] for kernel in kernels if kernel.rate != "products"}
    return {
        "kernels": [
            {
                "kernel": kernel.name, "flops": kernel.flops, "bytes": kernel.bytes, "seconds": times[kernel.name],
                "share": times[kernel.name] / total, "bound": kernel.bound(ceilings),
            }
            for kernel in sorted(kernels, key=lambda kernel: -times[kernel.name])
        ],
        "seconds": total,
        "tokens_per_s": _tokens(spec) / total,
        "mfu": flops / total / peak if peak else None,
        "holds_back": max(others, key=lambda name: others[name]),
    }  # fmt: skip
