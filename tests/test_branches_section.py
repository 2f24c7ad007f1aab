"""Decay branches against runs from scratch: agreement, what it is measured by, and the compute saved."""

from __future__ import annotations

import html
from typing import Any

import numpy as np
import pandas as pd
import pytest

from scalebench.analysis.branches import branch_law, branches_of
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.reporting import conclusions, sections
from scalebench.reporting.page import render_page
from scalebench.reporting.sections import branches
from scalebench.store import Results

SIZES, LENGTHS = (4000, 16_000), (100, 200, 400)
SHARED = {
    "status": "ok", "invalid_reason": None, "family": "gpt", "batch_size": 16, "sequence_length": 64,
    "optimizer": "adamw", "precision": "float32", "data_sha256": "py", "schedule": "wsd", "decay_fraction": 0.2,
    "warmup_steps": 20, "workload": "training", "implementation": "sdpa", "device_name": "a processor",
}  # fmt: skip


def loss(size: int, steps: int, seed: int) -> float:
    return 2 + 20 * size**-0.5 + 5 * steps**-0.5 + 0.01 * np.random.default_rng([size, steps, seed]).standard_normal()


def row(study: str, size: int, steps: int, seed: int, **other: Any) -> dict[str, Any]:
    return SHARED | {
        "study": study, "trial_id": f"{study}-{size}-{steps}-{seed}", "params_non_embedding": size, "params": size,
        "seed": seed, "steps": steps, "first_step": 0, "samples_seen": 16 * steps, "tokens_seen": 1024 * steps,
        "flops_per_step": 6000 * size, "parent_trial_id": None, "parent_flops": None, "step_time_median_s": 1e-3,
        "validation_loss_nats": loss(size, steps, seed), "validation_loss_se_nats": 0.01,
    } | other  # fmt: skip


def study(*, shift: float = 0.0, scratch: bool = True, scratch_seeds: tuple[int, ...] = (0, 3, 4),
          lengths: tuple[int, ...] = LENGTHS) -> StudyAnalysis:  # fmt: skip
    """Branches of seeds 0, 1 and 2, whose losses are ``shift`` nats off those of runs from scratch."""
    rows = [
        row("branches", n, steps // 5, seed, first_step=steps - steps // 5, tokens_seen=1024 * steps,
            parent_trial_id=f"trunk-{n}-{seed}", parent_flops=6000 * n * (steps - steps // 5),
            validation_loss_nats=loss(n, steps, seed) + shift)
        for n in SIZES for steps in lengths for seed in (0, 1, 2)
    ]  # fmt: skip
    if scratch:
        rows += [row("scratch", n, steps, seed) for n in SIZES for steps in LENGTHS for seed in scratch_seeds]
    return analyse(Results(pd.DataFrame(rows), (), {"branches": {}, "scratch": {}}), "branches")


def test_equal_branches_agree_exactly_and_within_noise() -> None:
    branches = branches_of(study())
    assert [(place.size, place.steps) for place in branches.places] == [(n, s) for n in SIZES for s in LENGTHS]
    assert [(place.equal, place.pairs) for place in branches.places] == [(0.0, 1)] * 6
    assert sum(place.within_noise for place in branches.places) >= 5
    first = branches.places[0]
    ours, theirs = ([loss(4000, 100, seed) for seed in seeds] for seeds in ((1, 2), (3, 4)))
    assert first.difference == pytest.approx(np.mean(ours) - np.mean(theirs))
    sides = ([loss(4000, 100, 0), *ours], [loss(4000, 100, 0), *theirs])
    half = 2.7764451 * np.sqrt(np.mean([np.var(side, ddof=1) for side in sides]))  # t of 4 degrees; 1/2 + 1/2 = 1
    assert (first.low, first.high) == pytest.approx((first.difference - half, first.difference + half))


def test_branches_that_end_elsewhere_do_not_agree() -> None:
    branches = branches_of(study(shift=0.2))
    assert not any(place.within_noise for place in branches.places)
    assert all(place.equal == pytest.approx(0.2) for place in branches.places)
    assert "do not agree everywhere" in " ".join(conclusions(study(shift=0.2)))


def test_what_is_saved_counts_the_run_that_is_branched_from_once() -> None:
    """Per size and seed 320 steps of the trunk and 140 of the branches, for 700 from scratch."""
    assert branches_of(study()).share == pytest.approx((320 + 20 + 40 + 80) / 700)
    assert branches_of(study(scratch=False)).share == pytest.approx(460 / 700)


@pytest.mark.slow
def test_the_law_of_the_branches_takes_each_run_as_one_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sizes give any exponent of size, so the law is refused; with a third it has its parameters."""
    assert branches.outcome(study()).law.startswith("refused: the points do not separate the parameters of chinchilla")
    short = branches.outcome(study(lengths=(100, 200), scratch=False)).law
    assert short.startswith("refused: 4 configurations for 5 free parameters")
    monkeypatch.setitem(globals(), "SIZES", (4000, 16_000, 64_000))
    law = branch_law(study(scratch=False))
    assert law.fit is not None
    assert (law.fit.law.name, law.fit.n_configurations) == ("chinchilla", 9)
    assert branches.outcome(study(scratch=False)).law.startswith("L = E + A·N^−α + B·D^−β: E = ")


def test_the_section_says_all_of_it() -> None:
    analysed = study()
    assert sections.section_for(analysed) is branches.SECTION
    text = " ".join(conclusions(analysed)).replace("\u00a0", " ")
    assert "The branches agree with runs from scratch within the noise of the seeds" in text
    assert "the same loss to the last bit (6 pairs)" in text
    assert "took 65.7 % of the FLOPs that runs from scratch to the same 3 lengths take: 34.3 % saved" in text
    outcome = branches.outcome(analysed).measured
    assert "within noise of runs from scratch at" in outcome
    assert "34.3" in outcome


@pytest.mark.slow
def test_the_page_has_the_table_of_differences() -> None:
    text = html.unescape(render_page([study()]))
    assert "Branches against runs from scratch." in text
    assert "Loss of branches and of runs from scratch" in text
    assert "could not be drawn" not in text


def test_without_runs_from_scratch_the_agreement_is_open() -> None:
    text = " ".join(conclusions(study(scratch=False)))
    assert "There are no runs from scratch of the same lengths" in text
    assert "agree with them is open" in text
    other = study(scratch_seeds=(0,))
    assert all(np.isnan(place.low) and place.pairs == 1 for place in branches_of(other).places)


def test_a_study_of_continued_runs_of_one_length_is_no_study_of_branches() -> None:
    analysed = study(lengths=(100,))
    assert sections.section_for(analysed) is not branches.SECTION
    assert sections.section_for(StudyAnalysis("none", {}, analysed.rows.iloc[:0])) is not branches.SECTION


def test_branches_from_different_steps_are_series_of_their_own() -> None:
    series = study().series
    assert [each.trials["first_step"].unique().tolist() for each in series] == [[80], [160], [320]]
    assert [each.sizes["trials"].tolist() for each in series] == [[3, 3]] * 3
