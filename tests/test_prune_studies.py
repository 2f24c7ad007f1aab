"""The studies of pruning that ship, planned from what their parents' studies would train."""

from __future__ import annotations

from pathlib import Path

import pytest

from scalebench.running.parents import ParentTrial
from scalebench.running.planning import load_study, plan, resolve
from scalebench.study import Parent


@pytest.mark.parametrize(
    ("name", "parents", "trials"),
    [
        ("prune", "lifecycle-base", 7), ("prune-units", "lifecycle-base", 5), ("prune-recovery", "lifecycle-base", 4),
        ("prune-heads", "lifecycle-heads", 3),
        ("prune-gpu", "lifecycle-base-gpu", 13), ("prune-recovery-gpu", "lifecycle-base-gpu", 4),
    ],
)  # fmt: skip
def test_the_studies_that_ship_can_be_planned_from_the_smallest_and_the_largest_model(
    name: str, parents: str, trials: int
) -> None:
    study, identity = load_study(name), Parent(weights_sha256="0" * 64, state_sha256=None)
    assert study.parents is not None
    assert study.parents.study == parents
    sizes = {each.counts.non_embedding: each for each in plan(load_study(parents))}
    assert len(sizes) >= 3
    for each in (sizes[min(sizes)], sizes[max(sizes)]):
        parent = ParentTrial(each.trial_id, parents, each.trial, Path(), identity, each.flops)
        ids = {resolve("prune", point, parent).trial_id for point in study.points()}
        assert len(ids) == trials
