"""``scalebench serve``: a trained model among the results, behind HTTP."""

from __future__ import annotations

import sys
from pathlib import Path

import psutil

from scalebench.cli.commands.generate import load_writer
from scalebench.cli.output import quantity, say_exactly, warn
from scalebench.errors import InputError, number_of
from scalebench.running.serving.options import Options

ABILITIES = ("batching",)


def run_serve(results: Path, trial: str | None, options: Options, *, family: str | None = None) -> int:
    """Serve a trial's model until a signal comes; return the exit code. Raises ``InputError`` or ``StoreError``."""
    options.check()
    options.api_key()
    warn(*options.warnings())
    writer = load_writer(results, trial, family, ABILITIES)
    from scalebench.running.serving.completions import Served
    from scalebench.running.serving.scheduler import Scheduler
    from scalebench.running.serving.server import address, bound, server
    from scalebench.workloads.continuous import Batch

    context = int(writer.config.context)
    check_memory(writer.model.cache(1, context).nbytes, options.max_batch)
    served = Served(writer.name, writer.data, context, min(options.max_tokens or context, context))
    scheduler = Scheduler(Batch(writer.model, options.max_batch, context))
    with bound(options) as listening:
        running = server(served, scheduler, options)
        where = address(options, listening)
        say_exactly(f"{writer.name} of family {writer.trial.family} at {where}; Ctrl-C ends it")
        sys.stdout.flush()
        running.run(sockets=[listening])
    scheduler.close()  # also where a second signal has waited for nothing
    say_exactly(f"stopped after {number_of(scheduler.metrics.responses.total(), 'response')}")
    return 0


def check_memory(sequence_bytes: int, max_batch: int) -> None:
    """Raise ``InputError`` for a batch whose keys and values, so many bytes each, do not fit the free memory."""
    needed, free = sequence_bytes * max_batch, psutil.virtual_memory().available
    if needed > free:
        line = (
            f"keys and values of {max_batch} sequences take {quantity(needed, 'B')}, and {quantity(free, 'B')} are free"
        )
        raise InputError(f"--max-batch: {line}; give a smaller number")
