"""A study to be disturbed by a fault, the command that runs it, and the oracle: what an undisturbed run gives."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from drivers import Driver, Drivers
from support import run_here

from scalebench import store
from scalebench.running.planning import load_study, plan

STUDY = """
schema = 1
name = "tiny"
[model]
family = "mlp"
params = 200
depth = 1
[train]
steps = 40
batch_size = 8
weight_decay = 0.0
seed = %s
[data]
validation_samples = 32
[run]
checkpoint_every_steps = 10
"""
RETRY = "--retry=failed,killed,timeout,oom,diverged"
RUN = ("run", "tiny.toml", "--jobs", "2", "--json")


class Unavailable(Exception):  # noqa: N818 - the reason why a fault is skipped
    """What a fault needs is not here."""


@dataclass
class Case:
    """A study in a folder of its own, to be disturbed. ``reference`` has each trial's losses, as undisturbed."""

    folder: Path
    text: str
    drivers: Drivers
    injected: int = 0
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Write the study and run it undisturbed."""
        (self.folder / "tiny.toml").write_text(self.text)
        study = load_study(self.folder / "tiny.toml")
        if plan(study)[0].cost.processes > 1:
            self.finish("undisturbed", retry=False)
            rows = {row["trial_id"]: row for row in store.load_results(self.folder / "undisturbed").to_dict("records")}
        else:
            rows = run_here(study, self.folder / "undisturbed")
        self.reference = {name: losses_of(row) for name, row in rows.items()}

    def start(self, *words: str, before: str = "", results: str = "results", **variables: str) -> Driver:
        """Start a driver in a process group of its own, with Python code to run ``before`` the command."""
        return self.drivers.start(self.folder, [*RUN, "--results", results, *words], before, **variables)

    def finish(self, results: str = "results", *, retry: bool = True) -> None:
        """Run what is left; without ``retry`` also trials that did not end ok stay as they are."""
        driver = self.start(*[RETRY] * retry, results=results)
        if driver.wait(600) not in (0, 1):
            self.notes.append(f"the last driver ended with {driver.returncode}")

    def errors(self) -> str:
        """Return what all drivers have written to stderr."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(".driver-*/stderr.log"))

    def records(self, results: str = "results") -> list[Path]:
        """Return the records so far."""
        return list((self.folder / results).glob("*/trials/*/attempt-*/record.json"))

    def wait(self, condition: Callable[[], object], driver: Any, within_s: float = 120.0) -> bool:
        """Wait until a condition holds or the driver has ended; whether it holds."""
        deadline = time.monotonic() + within_s
        while not (holds := condition()) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(holds)


def losses_of(row: dict[str, Any]) -> tuple[Any, ...]:
    """Return the losses of a trial: validation, and of every step."""
    return row["validation_loss_nats"], *store.read_steps(row["attempt_dir"])["train_loss_nats"]


def judge(case: Case, results: str = "results") -> dict[str, int]:
    """Count what is not as it would be undisturbed."""
    read = store.read_results(case.folder / results)
    rows = {row["trial_id"]: row for row in read.frame.to_dict("records") if row["status"] == "ok"}
    ok: dict[str, int] = {}
    for path in case.records(results):
        row = store.read_json(path)
        ok[row["trial_id"]] = ok.get(row["trial_id"], 0) + (row["status"] == "ok")
    return {
        "lost": len(case.reference.keys() - rows.keys()),
        "other losses": sum(losses_of(rows[name]) != case.reference[name] for name in rows.keys() & {*case.reference}),
        "twice": sum(number > 1 for number in ok.values()) + len(rows.keys() - case.reference.keys()),
        "unreadable": len(read.damaged) + len(read.incomplete) + unreadable(case.folder / results),
    }


def unreadable(results: Path) -> int:
    """Count the files that cannot be read, and temporary files that were left behind in finished attempts."""
    wrong = 0
    for path in results.rglob("*"):
        try:
            if path.suffix == ".json":
                store.read_json(path)
            elif path.suffix == ".parquet":
                pd.read_parquet(path)
        except (OSError, ValueError):
            wrong += 1
    return wrong
