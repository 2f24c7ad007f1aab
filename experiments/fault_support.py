"""A study to be disturbed by a fault, the command that runs it, and the oracle: what an undisturbed run gives."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from drivers import Driver, Drivers
from support import run_here

from scalebench import store
from scalebench.running.planning import load_study, plan

EVERY = 10  # steps between the snapshots of a trial
STUDY = f"""
schema = 1
name = "tiny"
[model]
family = "mlp"
params = 200
depth = 1
[train]
steps = 40
batch_size = 32
weight_decay = 0.0
seed = %s
[data]
validation_samples = 32
[run]
checkpoint_every_steps = {EVERY}
"""
RETRY = "--retry=failed,killed,timeout,oom,diverged"
RUN = ("run", "tiny.toml", "--jobs", "2", "--json")
# Relative difference of a trial's losses when it is trained together with others: the size of a batched product decides
# the order in which float32 values are added, and whoever takes up what a lost worker leaves makes other batches.
TOGETHER = 1e-5


class Unavailable(Exception):  # noqa: N818 - the reason why a fault is skipped
    """What a fault needs is not here."""


@dataclass(frozen=True)
class Ending:
    """How a trial ends: its status, and the losses of its validation and of every step."""

    status: str
    losses: tuple[Any, ...]

    @classmethod
    def of(cls, row: dict[str, Any]) -> Ending:
        """Return how the trial of a record ended."""
        if row["status"] not in ("ok", "diverged"):
            return cls(str(row["status"]), ())
        return cls(
            str(row["status"]), (row["validation_loss_nats"], *store.read_steps(row["attempt_dir"]).train_loss_nats)
        )

    def matches(self, other: Ending, tolerance: float) -> bool:
        """Whether both have the same losses, up to a relative difference; bit for bit if that is 0."""
        ours, theirs = (np.array(ending.losses, dtype=float) for ending in (self, other))
        return ours.shape == theirs.shape and np.allclose(ours, theirs, rtol=tolerance, atol=0.0, equal_nan=True)


@dataclass
class Case:
    """A study in a folder of its own, to be disturbed ``asked`` times.

    ``reference`` has the ending of each trial, as undisturbed. A study that is over before it was disturbed so often is
    run once more in another results folder: ``folders`` has the names of all, the last one is that of now. What went
    against the rules is in ``wrong``.
    """

    folder: Path
    text: str
    drivers: Drivers
    asked: int = 1
    tolerance: float = 0.0
    injected: int = 0
    folders: list[str] = field(default_factory=lambda: ["results"])
    notes: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Write the study and run it undisturbed."""
        (self.folder / "tiny.toml").write_text(self.text)
        study = load_study(self.folder / "tiny.toml")
        if plan(study)[0].cost.processes > 1:
            self.finish("undisturbed", retry=False)
            rows = {row["trial_id"]: row for row in store.load_results(self.folder / "undisturbed").to_dict("records")}
        else:
            rows = run_here(study, self.folder / "undisturbed")
        self.reference = {name: Ending.of(row) for name, row in rows.items()}

    @property
    def results(self) -> Path:
        """The results folder of now."""
        return self.folder / self.folders[-1]

    def start(self, *words: str, before: str = "", results: str = "", **variables: str) -> Driver:
        """Start a driver in a process group of its own, with Python code to run ``before`` the command."""
        command = [*RUN, "--results", results or self.folders[-1], *words]
        return self.drivers.start(self.folder, command, before, **variables)

    def finish(self, results: str = "", *, retry: bool = True) -> None:
        """Run what is left; without ``retry`` also trials that did not end ok stay as they are."""
        driver = self.start(*[RETRY] * retry, results=results)
        if driver.wait(600) not in (0, 1):
            self.wrong.append(f"the last driver ended with {driver.returncode}")

    def another_folder(self) -> None:
        """Finish the study and go on with it in an empty folder."""
        self.finish()
        self.folders.append(f"results-{len(self.folders)}")

    def errors(self) -> str:
        """Return what all drivers have written to stderr."""
        return "".join(path.read_text(errors="replace") for path in self.folder.glob(".driver-*/stderr.log"))

    def files(self, pattern: str, results: str = "") -> list[Path]:
        """Return the files of this name below the folders of trials, in the results folder of now or another."""
        return list((self.folder / results if results else self.results).glob(f"*/trials/*/{pattern}"))

    def records(self, results: str = "") -> list[Path]:
        """Return the records so far."""
        return self.files("attempt-*/record.json", results)

    def ended(self, *statuses: str) -> int:
        """Count the workers that ended so, in all folders; that of a batch is counted once."""
        rows = [store.read_json(path) for name in self.folders for path in self.records(name)]
        lead = [row for row in rows if not str(row.get("error_message")).startswith("trained together with")]
        return sum(row["status"] in statuses for row in lead)

    def wait(self, condition: Callable[[], object], driver: Any, within_s: float = 120.0) -> bool:
        """Wait until a condition holds or the driver has ended; whether it holds."""
        deadline = time.monotonic() + within_s
        while not (holds := condition()) and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        return bool(holds)


def judge(case: Case) -> dict[str, int]:
    """Count what is not as it would be undisturbed, in all folders of a case, and faults that were not injected."""
    counts = Counter({"not injected": max(0, case.asked - case.injected)})
    for name in case.folders:
        counts.update(judge_folder(case, name))
    return dict(counts) | {"wrong": len(case.wrong)}


def judge_folder(case: Case, name: str) -> dict[str, int]:
    """Count what is not as it would be undisturbed in one results folder."""
    read = store.read_results(case.folder / name)
    endings = {row["trial_id"]: Ending.of(row) for row in read.frame.to_dict("records")}
    same = {key for key, ending in case.reference.items() if key in endings and endings[key].status == ending.status}
    ok = Counter(row["trial_id"] for path in case.records(name) if (row := store.read_json(path))["status"] == "ok")
    return {
        "lost": len(case.reference) - len(same),
        "other losses": sum(not endings[key].matches(case.reference[key], case.tolerance) for key in same),
        "twice": sum(number > 1 for number in ok.values()) + len(endings.keys() - case.reference.keys()),
        "unreadable": len(read.damaged) + len(read.incomplete) + unreadable(case.folder / name),
    }


def unreadable(results: Path) -> int:
    """Count the files that cannot be read."""
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
