"""The attempts of a run: what each needs, and its folder, which is made when an engine begins it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from scalebench import store
from scalebench.measure.environment import command_line
from scalebench.measure.hardware import NOMINAL_FLOPS_PER_S
from scalebench.running.batches import MEMBERS, write_members
from scalebench.running.claims import claim_path, take
from scalebench.running.engines.base import Resources, Tick, has_record, no_tick
from scalebench.running.ensembles import together
from scalebench.running.members import close_members
from scalebench.running.planning import PlannedTrial, trial_header
from scalebench.study import Study


def resources_of(planned: PlannedTrial, study: Study) -> Resources:
    """Return what a planned trial needs of the machine that runs it."""
    device_kind, processes = planned.trial.device_kind, planned.cost.processes
    return Resources(
        cpus=processes,
        gpus=processes if device_kind == "cuda" else 0,
        memory_bytes=planned.memory_bytes,
        processes=processes,
        timeout_s=study.run.timeout_s,
        expected_s=planned.seconds(NOMINAL_FLOPS_PER_S[device_kind]),
        share_device=study.run.share_device,
    )


@dataclass
class Attempts:
    """Attempts at trials, each with the number of its claim, by the folders that they will have.

    ``planned`` are all trials of the study. Each process of every trial gets as many threads as there are cores for
    each process of the trial that has the most of them, so that times differ by the number of processes alone.
    """

    study_dir: Path
    study: Study
    planned: Sequence[PlannedTrial]
    driver: str = ""
    keep_order: bool = False
    begun: list[Path] = field(default_factory=list)
    _coming: dict[Path, tuple[PlannedTrial, int, Resources]] = field(default_factory=dict)
    _others: dict[Path, list[Path]] = field(default_factory=dict)
    _orphans: dict[Path, Path] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Find out what is the same for all trials."""
        run = self.study.run
        self._study_wide: Mapping[str, Any] = {
            "precisions": sorted({planned.trial.spec.precision for planned in self.planned}),
            "most_processes": max(planned.cost.processes for planned in self.planned),
            "driver": self.driver,
            "memory_limit_bytes": run.memory_limit_bytes,
            "on_oom": run.on_oom,
        }

    def add(self, planned: PlannedTrial, claim: int, orphan: Path | None = None) -> Path:
        """Add an attempt at a trial and return the folder that it will have.

        ``orphan`` is the attempt of a driver that has ended, which may still be running: of Slurm's queue, or one that
        outlived its driver.
        """
        attempt = store.name_attempt(self.study_dir, planned.trial_id)
        if orphan:
            self._orphans[attempt] = orphan
        self._coming[attempt] = (
            planned, claim, replace(resources_of(planned, self.study), keep_order=self.keep_order)
        )  # fmt: skip
        return attempt

    def add_batch(self, batch: Sequence[tuple[PlannedTrial, int] | tuple[PlannedTrial, int, Path | None]]) -> None:
        """Add attempts at trials that one worker runs, that of the first: the engine places it alone."""
        lead, *self._others[lead] = [self.add(*free) for free in batch]

    def begin(self, attempt: Path) -> bool:
        """Make the folder of an attempt, and those that its worker runs beside it; False if it is not to be started.

        Attempts that another driver claimed first are left out.
        """
        if not self.begin_one(attempt):
            return False
        self._others[attempt] = [other for other in self._others.get(attempt, ()) if self.begin_one(other)]
        if self._others[attempt]:
            write_members(attempt, self._others[attempt])
        return True

    def begin_one(self, attempt: Path) -> bool:
        """Make the folder of an attempt and claim its trial; False if another driver claimed it first.

        Also where the attempt of an ended driver has its record by now: that counts.
        """
        if attempt not in self._coming:  # made by an engine that tries a trial again
            return take(attempt)
        _, number, _ = self._coming[attempt]
        if claim_path(attempt.parent, number).exists() or has_record(self._orphans.get(attempt, attempt)):
            return False
        self.make(attempt)
        if take(attempt):
            self.begun.append(attempt)
            return True
        shutil.rmtree(attempt, ignore_errors=True)
        return False

    def make(self, attempt: Path) -> Path:
        """Make the folder of an attempt with its ``trial.json``."""
        planned, number, resources = self._coming[attempt]
        header = trial_header(self.study, planned, command_line()) | {**self._study_wide, "attempt": attempt.name}
        store.make_attempt(attempt)
        store.write_header(attempt, header | {"resources": asdict(resources), "claim": number})
        return attempt

    def run(self, place: Callable[..., Iterator[Path]], tick: Tick = no_tick) -> Iterator[list[Path]]:
        """Place all attempts and yield those of each worker that has ended; remove the folders of those not started."""
        beside = {other for others in self._others.values() for other in others}
        leads = [attempt for attempt in self._coming if attempt not in beside]

        def tick_all(running: Sequence[Path]) -> None:
            tick([attempt for lead in running for attempt in (lead, *self._others.get(lead, ()))])

        try:
            for lead in place(leads, [self._needs(lead) for lead in leads], begin=self.begin, tick=tick_all):
                others = self._others.get(lead, [])
                close_members(lead, others)
                yield [lead, *others]
        finally:
            for attempt in self.begun:
                if {path.name for path in attempt.glob("*")} <= {"trial.json", MEMBERS}:
                    shutil.rmtree(attempt, ignore_errors=True)

    def _needs(self, lead: Path) -> Resources:
        return together([self._coming[attempt][2] for attempt in (lead, *self._others.get(lead, ()))])
