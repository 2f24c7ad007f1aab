"""Everything that needs a GPU, in two commands for a machine that is at hand for minutes and has no network.

    python kernels/tools/gpu_session.py first  --out OUT --seconds 250 [--carried .gpu-session]
    python kernels/tools/gpu_session.py second --out OUT --seconds 420 [--carried .gpu-session]

``first`` proves the kernels right: the assembler's witness with every ptxas at hand, every shipped configuration
against float64, a short training run of every implementation, then the fastest tiles. ``second`` measures: operations
at the shapes of the goals, training from 124M to 1.3B parameters, one profile.

After every step the results so far are in OUT, so that a kill at any second loses only the step it hits. OUT is flat
and has at most eight files: summary.md, check.json, tune.json, compare.parquet, train.parquet, results.tar.gz (what
``scalebench report`` reads), log.txt, cache.tar.xz (compiled kernels for the next session).

``--carried`` is a folder brought along: ``wheels/`` of missing packages, ``ptxas.xz`` (a newer assembler), and
``previous/`` with the files of an earlier session. Exit status 0: every step ended well, every shipped configuration
was launched and is right; 1: not so; 3: interrupted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Sequence
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
    parser.add_argument("--out", type=Path, required=True, help="where the eight files go")
    parser.add_argument("--seconds", type=float, default=280.0, help="from now until the last file is written")
    parser.add_argument("--carried", type=Path, help="wheels, ptxas.xz and an earlier session's files")
    parser.add_argument("--work", type=Path, default=Path("/tmp/scalebench-session"), help="scratch: caches, results")  # noqa: S108
    parser.add_argument("--workers", type=int, default=14, help="processes that check at the same time")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu rehearses under the interpreter")
    parser.add_argument("--operations", default=",".join(OPERATIONS), help="what is checked")
    parser.add_argument("--only", default="", help="steps to run, joined by commas; all of the phase by default")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _interrupt)
    session = Session.begin(
        phase=asked.phase, out=asked.out, work=asked.work, carried=asked.carried, workers=asked.workers,
        device=asked.device, operations=tuple(asked.operations.split(",")), deadline=time.monotonic() + asked.seconds,
    )  # fmt: skip
    steps = [step for step in PHASES[asked.phase]() if not asked.only or step.name in asked.only.split(",")]
    try:
        run_steps(session, steps)
    except KeyboardInterrupt:
        session.write()
        return 3
    print(session.summary())
    return 0 if session.good else 1


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
