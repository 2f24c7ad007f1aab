"""The command ``status --watch``: progress of studies that drivers are running, line by line."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scalebench import store
from scalebench.cli.output import duration, say
from scalebench.running.claims import Observer
from scalebench.store.plans import planned_flops, planned_ids

LOOK_EVERY_S = 2.0
IDLE_LOOKS = 15  # how often to look again where a driver runs no trial: it starts, or is between two


@dataclass(frozen=True)
class StudyProgress:
    """How far a study is: numbers of trials, trials per hour of those that run at a time, and seconds left."""

    done: int
    running: int
    failed: int
    planned: int
    per_hour: float | None
    left_s: float | None

    def line(self, name: str) -> str:
        """Return it in words."""
        parts = [f"{self.done}/{self.planned} done", f"{self.running} running", f"{self.failed} failed"]
        if self.per_hour is not None:
            parts.append(f"{self.per_hour:.3g} trials/h")
        if self.left_s:  # not where every trial has ended
            parts.append(f"about {duration(self.left_s)} left")
        return f"{name}: " + ", ".join(parts)


def watch_studies(results: Path, tell: Callable[[str], None] = say) -> None:
    """Print a line per study whenever its progress changes, until no driver is left, or none has run a trial for long.

    A driver has no trial while it starts and between two trials. ``tell`` prints a line.
    """
    printed: dict[str, str] = {}
    idle = 0
    observers = {folder: Observer(folder) for folder in store.study_dirs(results)}
    while True:
        stored = store.read_results(results)
        progress = {folder.name: study_progress(stored, folder, observer) for folder, observer in observers.items()}
        for name, state in progress.items():
            if printed.get(name) != (line := state.line(name)):
                printed[name] = line
                tell(line)
        idle = 0 if any(state.running for state in progress.values()) else idle + 1
        if idle and (idle > IDLE_LOOKS or not any(_driven(*each) for each in observers.items())):
            return
        time.sleep(LOOK_EVERY_S)


def _driven(study_dir: Path, observer: Observer) -> bool:
    """Return whether a driver of a study is alive."""
    return any(observer.alive(path.stem) for path in (study_dir / "drivers").glob("*.json"))


def running_trials(study_dir: Path, observer: Observer, ids: tuple[str, ...]) -> list[Path]:
    """Return the attempts of planned trials that a driver is running."""
    if not any((study_dir / "drivers").glob("*.json")):
        return []
    attempts = (observer.running(study_dir / "trials" / trial_id) for trial_id in ids)
    return [attempt for attempt in attempts if attempt is not None]


def study_progress(stored: store.Results, study_dir: Path, observer: Observer) -> StudyProgress:
    """Return how far a study is; the time left is that of the trials that have no record, at the fitted cost."""
    study = stored.studies.get(study_dir.name, {})
    ids = planned_ids(study)
    recorded = {*stored.recorded.get(study_dir.name, ())}
    rows = stored.frame[stored.frame["trial_id"].isin(recorded.intersection(ids))]
    # Another study's row of a trial counts only where it is the record of this one: where this folder is a copy.
    frame = rows[rows["study"].eq(study_dir.name) | ~rows["trial_id"].duplicated(keep=False)]
    running = running_trials(study_dir, observer, ids)
    flops = planned_flops(study)
    left = time_left_s(frame, [flops[name] for name in ids if name not in recorded])
    workers = max(1, len(running))
    times = durations_s(frame).dropna()
    return StudyProgress(
        done=int((frame["status"] == "ok").sum()),
        running=len(running),
        failed=int((frame["status"] != "ok").sum()),
        planned=len(ids),
        per_hour=3600 * len(running) / float(times.mean()) if running and len(times) else None,
        left_s=None if left is None else left / workers,
    )


def durations_s(frame: Any) -> Any:
    """Return how long each trial took, together with others if they were trained together; NaN if unknown."""
    from scalebench.analysis.trials import numeric  # imports pandas: `status` of a folder that is not there does not

    wall, shared = numeric(frame, "wall_time_s"), numeric(frame, "ensemble_time_s")
    return wall.fillna(shared)


def time_left_s(frame: Any, missing: list[float | None]) -> float | None:
    """Return the seconds that trials of these FLOPs take one after another; None if that cannot be estimated.

    The cost of a trial is fitted as a + b FLOPs, both at least 0, to the wall times of the finished ones; without a
    plan's FLOPs it is their mean.
    """
    if not missing:
        return 0.0
    if (done := frame[durations_s(frame).notna()]).empty:
        return None
    times = durations_s(done).to_numpy(float)
    work = _flops(done)
    if work is None or any(flops is None for flops in missing) or len(set(work)) < 2:
        return float(times.mean()) * len(missing)
    slope = max(0.0, float(np.polyfit(work, times, 1)[0]))
    start = max(0.0, float((times - slope * work).mean()))
    return sum(start + slope * float(flops or 0) for flops in missing)


def _flops(done: Mapping[str, Any]) -> Any:
    """Return the FLOPs of finished training trials."""
    if "flops_per_step" not in done or done["flops_per_step"].isna().any():
        return None
    return (done["flops_per_step"] * done["steps"]).to_numpy(float)
