"""The step "after training": what is done with a trained model, once each, by the studies in ``after_training/``.

A model is trained, then pruned (2:4 on the kernels for it), quantised (bfloat16, int8, int4), fine-tuned (all weights,
LoRA) and distilled. Its rows are in train.parquet with all others.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from session import ProgramFailedError, Session
from session_measures import output_of, together

STUDIES = Path(__file__).with_name("after_training")
BASE = "base"
CHILDREN = ("prune", "quantize", "int4", "finetune", "distill")
ENDED = re.compile(r"[0-9a-f]{16} (unsupported|failed|oom|diverged|timeout|killed): ")  # a trial that is not ok


def after_training(session: Session) -> str:
    """Train the model, then start all from it at once; they take turns on the GPU.

    Raises ``RuntimeError`` with a line for each study if one failed: without torchao those that need it do.
    """
    base = together(session, {BASE: partial(run, session, BASE)})
    return f"{base}; " + together(session, {name: partial(run, session, name) for name in CHILDREN})


def run(session: Session, name: str) -> str:
    """Run one of the studies and return how its trials ended; ``RuntimeError`` with why any are not ok."""
    try:
        printed = output_of(session, str(STUDIES / f"{name}.toml"), 1)
    except ProgramFailedError as error:
        reasons = [line.partition(" ")[2] for line in error.output.splitlines() if ENDED.match(line)]
        raise RuntimeError("; ".join(dict.fromkeys(reasons)) or str(error)) from None
    return next(line for line in printed.splitlines() if " executed in " in line)
