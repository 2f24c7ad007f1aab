"""Which of the trials to run are trained together (``[run] ensemble``), and what the worker of a batch needs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TYPE_CHECKING

from scalebench.errors import number_of
from scalebench.running.engines.base import Resources
from scalebench.workloads.ensemble import shared_by, why_alone

if TYPE_CHECKING:
    from scalebench.running.planning import PlannedTrial
    from scalebench.study import Study

NO_OTHER = "no other trial to run differs from it in seed, learning rate or weight decay only"


@dataclass
class Grouping:
    """How trials are run: each batch of their ids by one worker, in the order of their first trials.

    ``alone`` counts the trials that are run one by one though the study sets ``run.ensemble``, by reason.
    """

    batches: list[list[str]] = field(default_factory=list)
    alone: Counter[str] = field(default_factory=Counter)

    def sentences(self) -> list[str]:
        """Return sentences on how many trials are trained together, how many are not, and why."""
        sizes = [len(batch) for batch in self.batches if len(batch) > 1]
        each = f"{min(sizes)} to {max(sizes)}" if len(set(sizes)) > 1 else f"{max(sizes, default=0)}"
        batches = number_of(len(sizes), "batch")
        many = f"{sum(sizes)} trials in {batches} of {each}; their times and memory are not measured"
        alone = [f"one by one, {count}: {reason}" for reason, count in self.alone.most_common()]
        return [f"trained together (run.ensemble): {many if sizes else 'no trials'}", *alone]


def grouped(planned: Iterable[PlannedTrial], study: Study, engine: str = "local") -> Grouping:
    """Group trials that differ only in seed, learning rate or weight decay, at most ``run.ensemble`` in a batch.

    A group of more is divided evenly. A trial that cannot be in an ensemble is a batch by itself.
    """
    grouping, most = Grouping(), study.run.ensemble
    if most is None:
        return Grouping([[trial.trial_id] for trial in planned])
    groups: dict[str, list[str]] = {}
    for trial in planned:
        reason = f"the engine {engine} starts a worker for each trial" if engine != "local" else None
        reason = reason or why_alone(trial.trial, trial.counts.total, study.run)
        grouping.alone.update([reason] if reason else [])
        groups.setdefault(trial.trial_id if reason else shared_by(trial.trial), []).append(trial.trial_id)
    for key, ids in groups.items():
        parts = ceil(len(ids) / most)
        grouping.batches += [ids[part::parts] for part in range(parts)]
        grouping.alone.update([NO_OTHER] if len(ids) == 1 and key != ids[0] else [])
    return grouping


def together(needs: Sequence[Resources]) -> Resources:
    """Return what the worker of a batch needs: memory and time of all its trials, the cores of one.

    The time limit stays that of each trial.
    """
    return replace(
        needs[0],
        memory_bytes=sum(each.memory_bytes for each in needs),
        expected_s=sum(each.expected_s for each in needs),
    )
