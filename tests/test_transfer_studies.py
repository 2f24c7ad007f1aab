"""The studies of fine-tuning and of decay branches that ship: planned from what their parents' studies would train."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from scalebench.running import planning
from scalebench.running.chain import ancestors
from scalebench.running.parents import ParentTrial
from scalebench.running.planning import PlannedTrial, load_study, plan
from scalebench.study import Parent

MINUTES = 1.3e12  # FLOPs of a study that takes less than three minutes on two cores
FROM_BASE = {"finetune": "lifecycle-base", "finetune-classes": "lifecycle-base", "finetune-bert": "lifecycle-bert"}
BRANCHED = "decay-branches"


@cache
def planned(name: str) -> list[PlannedTrial]:
    """Plan a study as if its parents' trials were done; several tests read the plan of most."""
    study = load_study(name)
    if study.parents is None:
        return plan(study)
    assert study.start is not None
    steps, state = study.start.step or (None,), "1" * 64 if study.start.continues else None
    identity = Parent(weights_sha256="0" * 64, state_sha256=state)
    parents = [
        ParentTrial(each.trial_id, str(study.parents.study), each.trial, Path("nowhere"), identity, each.flops, step)
        for each in planned(str(study.parents.study))
        for step in steps
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning, "find_parents", lambda *_: parents)
        return plan(study)


@pytest.mark.parametrize("suffix", ["", "-gpu"])
@pytest.mark.parametrize("name", [*FROM_BASE, BRANCHED, "finetune-scratch", "decay-scratch", "decay-trunk"])
def test_each_has_a_study_for_two_cores_and_one_for_a_gpu(name: str, suffix: str) -> None:
    trials = planned(f"{name}{suffix}")
    assert {trial.trial.family for trial in trials} == {"bert" if name == "finetune-bert" else "gpt"}
    assert len({trial.trial.spec.seed for trial in trials}) >= 3
    assert len({trial.counts.non_embedding for trial in trials}) >= 2
    if suffix:
        assert {trial.trial.device_kind for trial in trials} == {"cuda"}
        assert {trial.trial.spec.precision for trial in trials} == {"bfloat16"}
        assert max(trial.memory_bytes for trial in trials) < 70e9
        assert max(trial.counts.non_embedding for trial in trials) > 1e7
    else:
        assert sum(trial.flops for trial in trials) < MINUTES
    chain = [study.name for study in ancestors(load_study(f"{name}{suffix}"))]
    assert chain == [f"{base}{suffix}" for base in _bases(name)]


def _bases(name: str) -> list[str]:
    if name == BRANCHED:
        return ["decay-trunk"]
    return [FROM_BASE[name]] if name in FROM_BASE else []


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_the_design_supports_the_law_of_transfer(suffix: str) -> None:
    """Sizes and amounts span more than a factor of three, and each size is trained from scratch, on more data too."""
    tuned, scratch = (planned(f"{name}{suffix}") for name in ("finetune", "finetune-scratch"))
    full = [trial for trial in tuned if trial.trial.spec.method == "full"]
    sizes = {trial.counts.non_embedding for trial in full}
    assert sizes == {trial.counts.non_embedding for trial in scratch}
    assert max(sizes) / min(sizes) > 3
    amounts = {trial.steps for trial in full}
    assert max(amounts) / min(amounts) > 3
    assert max(trial.steps for trial in scratch) >= 4 * max(amounts)
    for name in ("batch_size", "sequence_length", "optimizer", "precision"):
        assert len({getattr(trial.trial.spec, name) for trial in (*full, *scratch)}) == 1
    assert len({trial.trial.data.sha256 for trial in (*tuned, *scratch)}) == 1
    assert len({trial.trial.data.validation_samples for trial in (*tuned, *scratch)}) == 1


@pytest.mark.parametrize("suffix", ["", "-gpu"])
def test_branches_have_the_lengths_and_schedule_of_their_runs_from_scratch(suffix: str) -> None:
    branches, scratch = (planned(f"{name}{suffix}") for name in (BRANCHED, "decay-scratch"))
    lengths = {
        trial.parent.branch_step + trial.steps for trial in branches if trial.parent and trial.parent.branch_step
    }
    assert lengths == {trial.steps for trial in scratch}
    assert len(lengths) == 3
    for name in (
        "batch_size",
        "sequence_length",
        "optimizer",
        "precision",
        "schedule",
        "decay_fraction",
        "warmup_steps",
    ):
        assert len({getattr(trial.trial.spec, name) for trial in (*branches, *scratch)}) == 1
    seeds = [{trial.trial.spec.seed for trial in trials} for trials in (branches, scratch)]
    assert seeds[0] & seeds[1]
    assert min(len(side - (seeds[0] & seeds[1])) for side in seeds) >= 2
