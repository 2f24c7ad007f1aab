"""Time linear_cross_entropy with gradients by sizes of its workspace, alone on a GPU.

    python kernels/tools/tuning_loss.py --output FILE

By the plan of ``cross_entropy/memory.py`` for 8192 tokens of 50,304 classes in bfloat16: peak memory above the inputs
in GB, returned gradients included, by workspace, and how much more memory the eager path takes (2.47 GB, measured):

    width     gradients    272 MiB, 3 chunks    208 MiB, 4 chunks    bytes that the fourth chunk moves
    768       0.09         0.45  5.5 times      0.37  6.6 times      0.31 GB
    2048      0.24         0.52  4.7            0.45  5.5            0.41
    4096      0.48         0.76  3.2            0.69  3.6            0.82

The first workspace's peaks are those measured. At width 4096 the returned gradients alone are more than a sixth of what
eager takes, whatever the chunks; at 2048 a sixth would need more than the 4 chunks that rounding in bfloat16 allows.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import tuning
from scalekernels.cross_entropy import memory, providers
from scalekernels.cross_entropy.cases import Case, inputs
from tuning_optimizer import write_rows

from scalebench.comparison.cuda_timing import clock_for, side_stream
from scalebench.comparison.timing import Clock, Timer

TOKENS, CLASSES = 8192, 50304
WIDTHS = (768, 2048, 4096)
MIB = 1 << 20
WORKSPACES = (memory.WORKSPACE_BYTES, 208 * MIB)


@contextlib.contextmanager
def workspace_of(size_bytes: int) -> Iterator[None]:
    """Plan with a workspace of this size."""
    shipped = memory.WORKSPACE_BYTES
    memory.WORKSPACE_BYTES = size_bytes
    try:
        yield
    finally:
        memory.WORKSPACE_BYTES = shipped


def measure(case: Case, device: str, clock: Clock) -> list[dict[str, Any]]:
    """Return a row for each workspace: chunks, planned bytes with the gradients, median time of a call in seconds."""
    work = providers()["triton"].prepare(case, inputs(case, device), True)
    rows: list[dict[str, Any]] = []
    timers: dict[int, Timer] = {}
    for size_bytes in WORKSPACES:
        with workspace_of(size_bytes):
            plan = memory.plan(case.tokens, case.width, case.classes, case.dtype)
            work()
            timers[len(rows)] = clock.timer(work, calls=1)
        gradients = case.dtype.itemsize * case.width * (case.tokens + case.classes)
        row = {"kernel": f"linear_cross_entropy {case.label}", "candidate": f"{size_bytes // MIB} MiB"}
        rows.append(row | {"chunks": -(-case.tokens // plan.tokens), "bytes": plan.peak_bytes + gradients})
    for place, samples in tuning.timed(timers).items():
        rows[place] |= {"time_median_s": statistics.median(samples), "samples_s": samples}
    return rows


def measure_all(
    cases: Sequence[Case], device: str, clock: Clock, write: Callable[[list[dict[str, Any]]], None]
) -> None:
    """Measure cases, printing and writing the rows after each."""
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows += measure(case, device, clock)
        write(rows)
        for row in rows[-len(WORKSPACES) :]:
            print(
                f"{row['kernel']}, {row['candidate']}: {1e3 * row['time_median_s']:.3f} ms, {row['bytes'] / 1e9:.3f} GB"
            )


def main(arguments: Sequence[str] | None = None) -> int:
    """Time every width with every workspace."""
    parser = argparse.ArgumentParser(description="time linear_cross_entropy by sizes of its workspace")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    device = torch.device("cuda", torch.cuda.current_device())
    cases = [Case(TOKENS, width, CLASSES, torch.bfloat16) for width in WIDTHS]
    with side_stream(device):
        measure_all(cases, "cuda", clock_for(device), partial(write_rows, options.output))
    return 0


if __name__ == "__main__":
    sys.exit(main())
