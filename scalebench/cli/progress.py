"""How a run goes: a bar on a terminal, a plain line every half minute elsewhere, JSON lines for machines."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from scalebench.running.engines.base import last_step, waits_for_gpu

LINE_EVERY_S = 30.0
LOOK_EVERY_S = 0.5


@dataclass
class RunProgress:
    """Follows the trials of a run. ``weights`` are each attempt's expected seconds and steps, by trial id."""

    weights: dict[str, tuple[float, int]]
    quiet: bool = False
    console: Console = field(default_factory=lambda: Console(stderr=True))
    finished: int = 0
    _begun: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _said: float = field(default_factory=time.monotonic)
    _done_s: float = 0.0

    def __enter__(self) -> RunProgress:
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Progress(TextColumn("trials"), *columns, TextColumn("{task.fields[at]}"), console=self.console)
        self._task = self._bar.add_task("trials", total=len(self.weights), at="")
        if self.console.is_terminal and not self.quiet:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tick(self, running: Sequence[Path]) -> None:
        """Look at the running attempts' heartbeats, twice a second, and show or say how far they are."""
        now = time.monotonic()
        if self.quiet or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        if self.console.is_terminal:
            self._bar.update(self._task, completed=self._fraction(running) * len(self.weights), at=self._at(running))
        elif now - self._said >= LINE_EVERY_S:
            self._said = now
            self.console.print(f"{self._line(running)}", highlight=False, soft_wrap=True)

    def _fraction(self, running: Sequence[Path]) -> float:
        """Return the share of the expected work that is done, running trials by their steps."""
        partial = 0.0
        for attempt in running:
            seconds, steps = self.weights[attempt.parent.name]
            partial += seconds * (last_step(attempt) or 0) / steps
        return (self._done_s + partial) / max(1e-9, sum(seconds for seconds, _ in self.weights.values()))

    def _at(self, running: Sequence[Path]) -> str:
        steps = [
            "waiting for the GPU"
            if waits_for_gpu(attempt)
            else f"{last_step(attempt) or 0}/{self.weights[attempt.parent.name][1]}"
            for attempt in running
        ]
        return "steps " + " ".join(steps) if steps else ""

    def _line(self, running: Sequence[Path]) -> str:
        elapsed, fraction = time.monotonic() - self._begun, self._fraction(running)
        left = f", about {elapsed * (1 - fraction) / fraction:.0f} s left" if fraction > 0.02 else ""
        return f"{self.finished}/{len(self.weights)} trials done after {elapsed:.0f} s{left} ({self._at(running)})"

    def trial(self, row: dict[str, Any], *, as_json: bool) -> None:
        """Take note of a finished trial; say so when it did not end well, or as a JSON line."""
        self.finished += 1
        self._done_s += self.weights[row["trial_id"]][0]
        if as_json:
            kept = ("trial_id", "status", "error_class", "error_message", "params", "validation_loss_nats")
            print(json.dumps({"event": "trial"} | {name: row.get(name) for name in kept}), flush=True)
        elif row["status"] != "ok" and not self.quiet:
            text = f"{row['trial_id']} {row['status']}: {row['error_message'] or row['error_class']}"
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        sys.stderr.flush()
