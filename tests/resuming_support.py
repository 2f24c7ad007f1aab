"""Attempts that are run to their end, or stopped between two steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import PLACEMENT as FLOAT32

from scalebench import store
from scalebench.running.worker import run_trial
from scalebench.workloads.training_run import TrainingRun

PLACEMENT = FLOAT32 | {"peaks": dict.fromkeys(("float32", "bfloat16"), FLOAT32["peaks"]["float32"])}


class Killed(BaseException):
    """No error of a trial: what stops a process."""


def finish(attempt: Path, header: dict[str, Any]) -> dict[str, Any]:
    """Run an attempt to its end and return its record."""
    assert run_trial(attempt, header, PLACEMENT) == "ok", (attempt / "record.json").read_text()
    return store.read_record(attempt)


def interrupt(monkeypatch: pytest.MonkeyPatch, attempt: Path, header: dict[str, Any], after: int) -> None:
    """Run an attempt and stop it at the first check of the losses after this many steps, with nothing saved."""
    check = TrainingRun.check

    def killed(self: TrainingRun, done: int) -> None:
        if done > after:
            raise Killed
        check(self, done)

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "check", killed)
        patch.setattr(TrainingRun, "save_samples", lambda _: None)
        with pytest.raises(Killed):
            run_trial(attempt, header, PLACEMENT)
