"""Time AdamW with 8-bit state and bfloat16 parameters by several launch shapes, beside float32 state, alone on a GPU.

    python kernels/tools/tuning_optimizer.py --output FILE

Rows are written after every shape. Each shape must give bit by bit the parameters of the shipped one, with stochastic
rounding too: random bits depend on the element alone. No shape is adopted by this program.

Compiled for sm_90 (Triton 3.6, ptxas 13.5): instructions per element with stochastic and with nearest rounding,
registers, warps per multiprocessor, bytes that these read at a time.

    shipped             64.4  58.9    72  28  43 KB
    64 registers        65.3  59.5    64  32  49 KB
    blocks of 2048      62.6  56.8   109  16  49 KB
    8 warps             63.4  57.9    98  16  25 KB
    2 stages            70.5  64.0    77  24  37 KB
    3 stages            75.1  69.1    80  24  74 KB

A step moves 10.06 bytes per element. At 124M parameters, on an H200 whose copies reach 4.24 TB/s and whose clock is
1.755 GHz, the bytes take 0.29 ms, and the instructions of nearest rounding 0.25 ms if every scheduler issues one per
cycle; the integer unit, which has half that rate, is busy for three quarters of it. The measured 0.42 ms is neither
bound, and why was not measured; these shapes test fewer instructions and more bytes at a time. Without stages a warp
reads nothing while it computes, and a program waits for its reads in each of 8 rounds; with stages the next block, or
the next two, are copied to shared memory meanwhile. Loads and stores are 16 bytes wide, of state 8, in all of them.
Comparisons round to nearest.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tuning
from scalekernels.optimizer import kernels
from scalekernels.optimizer.algorithms import AdamW
from scalekernels.optimizer.cases import OPTIONS, SIZES
from torch import Tensor

from scalebench.comparison.cuda_timing import clock_for, side_stream
from scalebench.comparison.timing import Clock, Timer

# Changes of the launch of the update kernel, by name.
SHAPES: Mapping[str, Mapping[str, int]] = {
    "shipped": {},
    "64 registers": {"maxnreg": 64},
    "blocks of 2048": {"BLOCK": 2048},
    "8 warps": {"BLOCK": 2048, "num_warps": 8},
    "2 stages": {"STAGES": 2, "maxnreg": 80},
    "3 stages": {"STAGES": 3, "maxnreg": 80},
}


class Changed:
    """A kernel whose launches have some arguments or options replaced."""

    def __init__(self, kernel: Any, changes: Mapping[str, int]) -> None:
        self.kernel, self.changes = kernel, changes

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """Return the function that launches it."""
        return lambda *arguments, **options: self.kernel[grid](*arguments, **(options | dict(self.changes)))


@contextlib.contextmanager
def launching(changes: Mapping[str, int]) -> Iterator[None]:
    """Launch the update kernel with these changes."""
    shipped = kernels.update_kernel
    kernels.update_kernel = Changed(shipped, changes)
    try:
        yield
    finally:
        kernels.update_kernel = shipped


def optimizer(
    shapes: Sequence[tuple[int, ...]], device: str, state: torch.dtype, stochastic: bool = False
) -> tuple[AdamW, list[Tensor]]:
    """Return AdamW and its bfloat16 parameters, drawn with their gradients from one seed."""
    generator = torch.Generator(device).manual_seed(0)

    def draw(shape: tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=generator, device=device).to(torch.bfloat16)

    params = [torch.nn.Parameter(draw(shape)) for shape in shapes]
    for param in params:
        param.grad = draw(tuple(param.shape))
    made = AdamW(params, **OPTIONS["adamw"], state_dtype=state, stochastic_rounding=stochastic)
    return made, [param.detach() for param in params]


def difference(shapes: Sequence[tuple[int, ...]], device: str, changes: Mapping[str, int]) -> str | None:
    """Return how many parameters differ from the shipped shape's after two steps, None if none does."""
    results = []
    for each in ({}, changes):
        made, params = optimizer(shapes, device, torch.int8, stochastic=True)
        with launching(each):
            made.step()
            made.step()
        results.append(torch.cat([param.flatten() for param in params]))
    wrong = int((results[0] != results[1]).sum())
    return f"{wrong} of {results[0].numel()} parameters differ" if wrong else None


def step_of(made: AdamW) -> Mapping[str, Any]:
    """Take a step; it has no results other than the parameters."""
    made.step()
    return {}


def measure(
    shapes: Sequence[tuple[int, ...]], device: str, clock: Clock, write: Callable[[list[dict[str, Any]]], object]
) -> list[dict[str, Any]]:
    """Return a row for float32 state and for each shape: median time of a step in seconds, or the problem."""
    rows: list[dict[str, Any]] = []
    timers: dict[int, Timer] = {}
    kept = []  # a graph holds no reference to the tensors that it reads
    for name, changes in {"float32 state": {}, **SHAPES}.items():
        rows.append({"kernel": "adamw 124M bfloat16 parameters, 8-bit state", "candidate": name, "problem": None})
        try:
            if changes:
                rows[-1]["problem"] = difference(shapes[-16:], device, changes)
            state = torch.float32 if name == "float32 state" else torch.int8
            made, params = optimizer(shapes, device, state)
            kept.append((made, params))
            with launching(changes):
                made.step()
                timers[len(rows) - 1] = clock.timer(partial(step_of, made), calls=1)
        except Exception as error:  # noqa: BLE001 - a shape may fail in any way
            rows[-1]["problem"] = f"{type(error).__name__}: {error}"[:500]
        write(rows)
    for place, samples in tuning.timed(timers).items():
        rows[place] |= {"time_median_s": statistics.median(samples), "samples_s": samples}
    write(rows)
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as JSON."""
    path.write_text(json.dumps(rows, indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every shape and print a line for each."""
    parser = argparse.ArgumentParser(description="time AdamW with 8-bit state by several launch shapes")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    device = torch.device("cuda", torch.cuda.current_device())
    with side_stream(device):
        write = partial(write_rows, options.output)
        rows = measure(SIZES["124M"], "cuda", clock_for(device), write)
    for row in rows:
        time = f"{1e3 * row['time_median_s']:.4f} ms" if "time_median_s" in row else ""
        print(f"{row['candidate']:16} {time} {row['problem'] or ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
