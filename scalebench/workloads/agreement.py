"""Do all implementations train the same model? The same GPT on the same batches, compared by its losses.

``python -m scalebench.workloads.agreement --device cuda`` prints a line for each and exits with 1 if one differs by
more than the precision explains: 16-bit training with torch's operators gives the expected difference from float32.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from scalebench.data import open_source
from scalebench.families import gpt
from scalebench.measure.clock import StepClock
from scalebench.optim.optimizers import build_optimizer
from scalebench.study import DataSpec
from scalebench.workloads.loop import train
from scalebench.workloads.running import Running
from scalebench.workloads.training_spec import TrainSpec

REFERENCE, MEASURE = ("eager", "none"), ("sdpa", "none")
WAYS = (
    ("compile", "blocks"), ("triton", "none"), ("fused", "none"), ("fused", "blocks"), ("fused", "step"),
    ("compile", "model"), ("fused", "model"),
)  # fmt: skip
# Against the measure's own mean distance from float32: two 16-bit runs that round in other places differ by √2 of it on
# average, and the mean over correlated steps scatters.
ALLOWED = 2.0
FLOOR_NATS = 2e-4  # where the measure itself has no noise, as in float32

Losses = NDArray[np.float64]


def spec_of(implementation: str, graph: str, precision: str, steps: int, batch_size: int, length: int) -> TrainSpec:
    """Return the training of one run; all runs differ in implementation, graph and precision alone."""
    return TrainSpec(
        steps=steps, batch_size=batch_size, accumulation=2, checkpointing=False, sequence_length=length,
        optimizer="adamw", learning_rate=2e-3, schedule="wsd", warmup_steps=10, decay_fraction=0.5, weight_decay=0.1,
        beta1=0.9, beta2=0.95, momentum=0.9, gradient_clip=1.0, precision=precision, implementation=implementation,
        graph=graph, gradient_sums=implementation == "fused" and precision != "float32", seed=0,
    )  # fmt: skip


class WatchedClock(StepClock):
    """A clock that calls ``watch`` with the number of each step when its batch is ready."""

    def __init__(self, device: torch.device, watch: Callable[[int], object]) -> None:
        super().__init__(device)
        self.watch, self.step = watch, 0

    def data_ready(self) -> None:
        """Note that the step's batch is at hand."""
        super().data_ready()
        self.watch(self.step)
        self.step += 1


def losses_of(
    config: gpt.Config, spec: TrainSpec, device: torch.device, watch: Callable[[int], object] = lambda _: None
) -> Losses:
    """Train one model and return its losses in nats, (steps,); ``watch`` is called before each step."""
    data = open_source("stdlib")
    about = DataSpec(source="stdlib", validation_fraction=0.2, validation_samples=2, noise_std=None, sha256="")
    task = gpt.task(config, data, about, spec)  # type: ignore[arg-type]  # the standard library is a Corpus
    torch.manual_seed(spec.seed)
    model = gpt.build(config, spec.implementation).to(device)
    optimizer = build_optimizer(model, spec)
    running = Running(model, optimizer, spec)
    losses = torch.zeros(spec.steps, device=device)
    clock = WatchedClock(device, watch)
    with running.attention():
        train(running.compiled, optimizer, task, spec, clock, losses, lambda _: None, running.make_step)
    if device.type == "cuda":
        torch.cuda.set_sync_debug_mode("default")  # reading the losses may wait
    return losses.double().cpu().numpy()


def compare_losses(
    ways: Sequence[tuple[str, str]] = WAYS, steps: int = 200, *, device: str = "cuda", precision: str = "bfloat16",
    depth: int = 4, width: int = 256, head_dim: int = 64, batch_size: int = 16, length: int = 256, form: str = "rotary",
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Train by each way, an (implementation, graph), and return by name its distance from float32 in nats.

    ``mean_nats`` and ``worst_nats`` are over the steps' absolute differences; ``agrees`` is whether the mean is within
    ``ALLOWED`` times that of ``sdpa`` in ``precision``. A way that raises has ``error`` instead.
    """
    where = torch.device(device, 0) if device == "cuda" else torch.device(device)
    config = gpt.explicit(depth, width, vocab_size=256, context=length, head_dim=head_dim)
    if form == "learned":
        config = replace(config, norm="layer", positions="learned", bias=True)
    exact = losses_of(config, spec_of(*REFERENCE, "float32", steps, batch_size, length), where)
    noise = 0.0
    results: dict[str, dict[str, Any]] = {}
    for implementation, graph in (MEASURE, *ways):
        name, started = f"{implementation} {graph}", time.perf_counter()
        try:
            losses = losses_of(config, spec_of(implementation, graph, precision, steps, batch_size, length), where)
        except Exception as error:  # noqa: BLE001 - one way that fails leaves the others
            results[name] = {"agrees": False, "error": f"{type(error).__name__}: {str(error)[:500]}"}
            continue
        apart = np.abs(losses - exact)
        if (implementation, graph) == MEASURE:
            noise = float(apart.mean())
        results[name] = {
            "agrees": bool(apart.mean() <= max(ALLOWED * noise, FLOOR_NATS)),
            "mean_nats": float(apart.mean()), "worst_nats": float(apart.max()), "last_nats": float(losses[-1]),
            "float32_last_nats": float(exact[-1]), "seconds": time.perf_counter() - started,
        }  # fmt: skip
    return results


def unwaiting_steps(implementation: str, graph: str = "none", steps: int = 20) -> int:
    """Train on the GPU with torch's check for synchronisation on in the last half of the steps; return their number.

    Raises ``RuntimeError`` naming the operation that waits.
    """
    config = gpt.explicit(4, 256, vocab_size=256, context=256, head_dim=64)
    begun: list[int] = []

    def watch(step: int) -> None:
        if step == steps // 2:
            torch.cuda.set_sync_debug_mode("error")
        if step >= steps // 2:
            begun.append(step)

    try:
        losses_of(config, spec_of(implementation, graph, "bfloat16", steps, 16, 256), torch.device("cuda", 0), watch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return len(begun)


def waiting(ways: Sequence[tuple[str, str]]) -> dict[str, str]:
    """Train by each way on the GPU and return, by its name, what made the host wait in a step; {} if nothing did."""
    found: dict[str, str] = {}
    for implementation, graph in ways:
        try:
            unwaiting_steps(implementation, graph)
        except Exception as error:  # noqa: BLE001 - the others are still trained
            found[f"{implementation} {graph}"] = f"{type(error).__name__}: {str(error)[:500]}"
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line of JSON for each way; 0 when all agree, and with ``--unwaiting`` no step of them waits."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--precision", default="bfloat16", choices=("bfloat16", "float32"))
    parser.add_argument("--form", default="rotary", choices=("rotary", "learned"))
    known = ",".join(f"{implementation}:{graph}" for implementation, graph in WAYS)
    parser.add_argument("--ways", default=known, help="implementation:graph, joined by commas")
    parser.add_argument("--unwaiting", action="store_true", help="check, too, that no step waits for the GPU")
    options = parser.parse_args(arguments)
    ways = [(way.partition(":")[0], way.partition(":")[2]) for way in options.ways.split(",")]
    results = compare_losses(ways, options.steps, device=options.device, precision=options.precision, form=options.form)
    waits = waiting(ways) if options.unwaiting else {}
    for name, result in results.items():
        print(json.dumps({"way": name, **result} | ({"waits": waits[name]} if name in waits else {})))
    return 0 if all(result["agrees"] for result in results.values()) and not waits else 1


if __name__ == "__main__":
    sys.exit(main())
