"""Everything that needs a GPU, in two commands for a machine that is available for minutes and has no network.

    python kernels/tools/gpu_session.py first  --out OUT --seconds 250 [--carried .gpu-session]
    python kernels/tools/gpu_session.py second --out OUT --seconds 420 [--carried .gpu-session]

``first`` checks the kernels. After the assembler canary with every ptxas, processes without a CUDA context compile
what the checks will launch and the carried cache lacks, while ceilings on random data and PyTorch's attention are
measured on the device. Then it checks every shipped configuration against float64, and a short training run of every
implementation, and finds the fastest tiles. ``second`` measures: operations at the shapes of the goals, training from
124M to 1.3B parameters, profiles, a law of loss on one GPU.

After every step the results so far are in OUT, so that being killed loses only the current step. OUT has at most eight
files and no folders: summary.md, check.json, tune.json, compare.parquet, train.parquet, results.tar.gz (for
``scalebench report``), log.txt, cache.tar.xz (compiled kernels for the next session).

``--carried`` is a folder prepared by ``make gpu-carry``: ``wheels/`` of missing packages, ``ptxas.xz`` (a newer
assembler), and ``previous/`` with the files of an earlier session. Exit status 0: every step succeeded, and every
shipped configuration was launched and passed; 1: otherwise; 3: interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import session_steps
from scalekernels import OPERATIONS
from session import Session, Step, run_steps

PHASES: dict[str, Callable[[], Sequence[Step]]] = {
    "first": session_steps.first,
    "second": session_steps.second,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one phase until its deadline."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=tuple(PHASES))
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--seconds", type=float, default=280.0, help="time limit for the whole session")
    parser.add_argument("--carried", type=Path, help="wheels, ptxas.xz and an earlier session's files")
    parser.add_argument("--work", type=Path, default=Path("/tmp/scalebench-session"), help="scratch folder")  # noqa: S108
    parser.add_argument("--workers", type=int, default=14, help="number of check processes")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: rehearsal in the interpreter")
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="operations to check, joined by commas")
    parser.add_argument("--only", default="", help="steps to run, joined by commas (default: all)")
    parser.add_argument("--most", default="", help="shorter limits of steps in seconds, such as training=80,law=60")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    session = Session.begin(
        phase=options.phase, out=options.out, work=options.work, carried=options.carried, workers=options.workers,
        device=options.device, operations=tuple(options.operations.split(",")),
        deadline=time.monotonic() + options.seconds,
    )  # fmt: skip
    steps = chosen(PHASES[options.phase](), options.only, options.most)
    try:
        run_steps(session, steps)
    except KeyboardInterrupt:
        session.write()
        return 3
    print(session.summary())
    return 0 if session.good else 1


def chosen(steps: Sequence[Step], only: str, most: str) -> list[Step]:
    """Return the steps named in ``only`` (all if it is empty), with the limits of ``most`` ("training=80,law=60").

    Raises ``SystemExit`` for a name that no step has.
    """
    limits = {name: float(seconds) for name, _, seconds in (part.partition("=") for part in most.split(",") if part)}
    names = only.split(",") if only else [step.name for step in steps]
    if unknown := {*names, *limits} - {step.name for step in steps}:
        raise SystemExit(f"no step {', '.join(sorted(unknown))}; the steps: {', '.join(step.name for step in steps)}")
    return [replace(step, most_s=limits.get(step.name, step.most_s)) for step in steps if step.name in names]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
