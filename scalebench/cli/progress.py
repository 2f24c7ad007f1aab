"""How far a command is: a bar on a terminal, a plain line every half minute elsewhere, nothing where JSON is wanted."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from scalebench.cli.output import duration, one_line, print_json_line, quantity
from scalebench.running.engines.base import is_waiting, last_beat, last_step

LINE_EVERY_S = 30.0
UPDATE_EVERY_S = 0.5


class Progress:
    """The progress of one task, as a fraction of the expected work; a context manager."""

    def __init__(self, *, quiet: bool = False, console: Console | None = None) -> None:
        self.quiet, self.console = quiet, console or Console(stderr=True)
        self._begun = self._printed = time.monotonic()
        self._printed_now = False
        columns = (TextColumn("{task.description}"), BarColumn(20), TimeElapsedColumn(), TimeRemainingColumn())
        self._bar = Bar(*columns, TextColumn("{task.fields[note]}"), console=self.console)
        self._task = self._bar.add_task("", total=1.0, note="")
        self._parts: dict[str, TaskID] = {}

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
        self._printed_now = False
        if self.console.is_terminal:
            self._bar.update(self._task, completed=fraction, description=done, note=note)
        elif now - self._printed >= LINE_EVERY_S:
            self._printed, elapsed, self._printed_now = now, now - self._begun, True
            left = f", about {duration(elapsed * (1 - fraction) / fraction)} left" if 0.02 < fraction < 1 else ""
            self.line(f"{done} after {duration(elapsed)}{left}{f' ({note})' if note else ''}")

    def parts(self, lines: Mapping[str, tuple[float, str]]) -> None:
        """Show what runs now: a line for each key, with the fraction done and a text; others end.

        In a file they follow the line that ``update`` printed.
        """
        if self.quiet:
            return
        if not self.console.is_terminal:
            if self._printed_now:
                for _, text in lines.values():
                    self.line(f"  {text}")
            return
        for key in set(self._parts) - set(lines):
            self._bar.remove_task(self._parts.pop(key))
        for key, (fraction, text) in lines.items():
            if key not in self._parts:
                self._parts[key] = self._bar.add_task("", total=1.0, note="")
            self._bar.update(self._parts[key], completed=fraction, note=text)

    def line(self, text: str) -> None:
        """Print a line that stays, unless quiet."""
        if not self.quiet:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)


@dataclass(frozen=True)
class TrialLabel:
    """The name of a running trial, and the tokens or samples of one step."""

    text: str
    per_step: int
    unit: str


class SweepProgress:
    """The progress of a sweep. ``expected`` maps trial ids to expected seconds and steps, ``labels`` to names."""

    def __init__(
        self,
        expected: dict[str, tuple[float, int]],
        display: Progress,
        labels: Mapping[str, TrialLabel] = MappingProxyType({}),
    ) -> None:
        self.expected, self.display, self.labels = expected, display, labels
        self._total_s = sum(seconds for seconds, _ in expected.values())
        self._finished, self._finished_s, self._updated = 0, 0.0, 0.0
        self._begun = time.monotonic()
        self._first: dict[Path, tuple[float, float]] = {}  # of each attempt: time and step of its first heartbeat
        self._reasons: Counter[str] = Counter()

    def tick(self, running: Sequence[Path]) -> None:
        """Read the running attempts' heartbeats, at most twice a second, and show how far they are."""
        now = time.monotonic()
        if now - self._updated >= UPDATE_EVERY_S:
            self._updated = now
            done = f"{self._finished}/{len(self.expected)} trials done"
            self.display.update(self._fraction(running), done, self._note(running, now))
            if self.labels:
                self.display.parts({str(attempt): self._line(attempt, now) for attempt in running})

    def _fraction(self, running: Sequence[Path]) -> float:
        """Return the share of the expected work that is done, counting running trials by their steps."""
        partial_s = 0.0
        for attempt in running:
            seconds, steps = self.expected[attempt.parent.name]
            partial_s += seconds * (last_step(attempt) or 0) / max(1, steps)
        return (self._finished_s + partial_s) / max(1e-9, self._total_s)

    def _note(self, running: Sequence[Path], now: float) -> str:
        if self.labels:
            minutes = (now - self._begun) / 60
            return f"{self._finished / minutes:.2g} trials/min" if self._finished and minutes > 0 else ""
        steps = [
            "waiting for its turn"
            if is_waiting(attempt)
            else f"{last_step(attempt) or 0}/{self.expected[attempt.parent.name][1]}"
            for attempt in running
        ]
        return f"steps {' '.join(steps)}" if steps else ""

    def _line(self, attempt: Path, now: float) -> tuple[float, str]:
        """Return how far a running trial is, and its line: what it is, step, loss, rate and memory."""
        label, steps = self.labels[attempt.parent.name], self.expected[attempt.parent.name][1]
        if is_waiting(attempt):
            return 0.0, f"{label.text}: waiting for its turn"
        beat = last_beat(attempt)
        if "step" not in beat:
            return 0.0, f"{label.text}: starting"
        step = float(beat["step"])
        first_time, first_step = self._first.setdefault(attempt, (now, step))
        parts = [f"{label.text}: step {step:.0f}/{steps}"]
        if "loss" in beat:
            parts.append(f"loss {beat['loss']:.4g}")
        if now > first_time and step > first_step:
            parts.append(f"{quantity((step - first_step) / (now - first_time) * label.per_step)} {label.unit}/s")
        if "memory_bytes" in beat:
            parts.append(quantity(beat["memory_bytes"], "B"))
        return step / max(1, steps), ", ".join(parts)

    def finish(self, row: dict[str, Any], *, as_json: bool) -> None:
        """Count a finished trial; print it as a JSON line, or in words if its reason is a new one."""
        self._finished += 1
        self._finished_s += self.expected[row["trial_id"]][0]
        if as_json:
            names = ("trial_id", "status", "error_class", "error_message", "params", "validation_loss_nats")
            print_json_line("run", "trial", {name: row.get(name) for name in names})
        elif row["status"] != "ok":
            reason = f"{row['status']}: {one_line(row['error_message'] or row['error_class'])}"
            self._reasons[reason] += 1
            if self._reasons[reason] == 1:
                self.display.line(f"{row['trial_id']} {reason}")
        sys.stderr.flush()

    def repeated(self) -> list[str]:
        """Return a line for each reason that more than one trial ended with."""
        return [f"{count} trials {reason}" for reason, count in self._reasons.items() if count > 1]


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
