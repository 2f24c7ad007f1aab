"""How far a command is: a bar on a terminal, a plain line every half minute elsewhere, nothing where JSON is wanted."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scalebench.running.engines.base import is_waiting, last_step

LINE_EVERY_S = 30.0
UPDATE_EVERY_S = 0.5


class Progress:
    """The progress of one task, as a fraction of the expected work; a context manager."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet, self.console = quiet, console or Console(stderr=True)
        self._begun = self._printed = time.monotonic()
        columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=self.console)
        self._task = self._bar.add_task("", total=1.0, note="")

    def __enter__(self) -> Progress:
        if self.console.is_terminal and not self.quiet:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, fraction: float, done: str, note: str = "") -> None:
        """Show the fraction done, in words as ``done``, with what is going on now as ``note``."""
        if self.quiet:
            return
        now = time.monotonic()
        if self.console.is_terminal:
            self._bar.update(self._task, completed=fraction, description=done, note=note)
        elif now - self._printed >= LINE_EVERY_S:
            self._printed, elapsed = now, now - self._begun
            left = f", about {elapsed * (1 - fraction) / fraction:.0f} s left" if fraction > 0.02 else ""
            self.line(f"{done} after {elapsed:.0f} s{left}{f' ({note})' if note else ''}")

    def line(self, text: str) -> None:
        """Print a line that stays, unless quiet."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


class SweepProgress:
    """The progress of a sweep. ``expected`` maps trial ids to expected seconds and steps."""

    def __init__(self, expected: dict[str, tuple[float, int]], display: Progress) -> None:
        self.expected, self.display = expected, display
        self._total_s = sum(seconds for seconds, _ in expected.values())
        self._finished, self._finished_s, self._updated = 0, 0.0, 0.0

    def tick(self, running: Sequence[Path]) -> None:
        """Read the running attempts' heartbeats, at most twice a second, and show how far they are."""
        now = time.monotonic()
        if now - self._updated >= UPDATE_EVERY_S:
            self._updated = now
            done = f"{self._finished}/{len(self.expected)} trials done"
            self.display.update(self._fraction(running), done, self._note(running))

    def _fraction(self, running: Sequence[Path]) -> float:
        """Return the share of the expected work that is done, counting running trials by their steps."""
        partial_s = 0.0
        for attempt in running:
            seconds, steps = self.expected[attempt.parent.name]
            partial_s += seconds * (last_step(attempt) or 0) / max(1, steps)
        return (self._finished_s + partial_s) / max(1e-9, self._total_s)

    def _note(self, running: Sequence[Path]) -> str:
        steps = [
            "waiting for its turn"
            if is_waiting(attempt)
            else f"{last_step(attempt) or 0}/{self.expected[attempt.parent.name][1]}"
            for attempt in running
        ]
        return f"steps {' '.join(steps)}" if steps else ""

    def finish(self, row: dict[str, Any], *, as_json: bool) -> None:
        """Count a finished trial; print it as a JSON line, or in words when it is not ok."""
        self._finished += 1
        self._finished_s += self.expected[row["trial_id"]][0]
        if as_json:
            names = ("trial_id", "status", "error_class", "error_message", "params", "validation_loss_nats")
            print(json.dumps({"event": "trial"} | {name: row.get(name) for name in names}), flush=True)
        elif row["status"] != "ok":
            self.display.line(f"{row['trial_id']} {row['status']}: {row['error_message'] or row['error_class']}")
        sys.stderr.flush()


class ComparisonProgress:
    """The progress of a comparison: the share done, and whether it waits for another measurement on the GPU."""

    def __init__(self, display: Progress) -> None:
        self.display = display
        self._share, self._waited = 0.0, False

    def tick(self, share: float) -> None:
        """Show the share that is done."""
        self._share = share
        self._show("")

    def waiting(self) -> None:
        """Show that another measurement has the GPU; in a file, once."""
        if not self._waited and not self.display.console.is_terminal:
            self.display.line("waiting: another measurement is using the GPU")
        self._waited = True
        self._show("waiting for the GPU")

    def _show(self, note: str) -> None:
        self.display.update(self._share, f"{100 * self._share:.0f} % compared", note)
