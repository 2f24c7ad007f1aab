"""Distillation against supervised training: planted differences and break-even points, the law, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from law_support import DISTILLED
from transfer_support import from_scratch

from scalebench.analysis.distillation import Distilled, Student, distillation_law, students_of
from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.laws import LAWS, fit
from scalebench.reporting.outcomes import AGREES, DISAGREES, OPEN, UNTESTED
from scalebench.reporting.sections.distill import SECTION, outcome, sentences
from scalebench.reporting.svg import canvas
from scalebench.store import Results

SIZES, TEACHERS, BUDGET = (4e3, 8e3), (4e3, 8e3, 16e3, 32e3), 3e10
LENGTHS = (5e4, 1e5, 4e5, 1.6e6, 6.4e6)
SHARED = {
    "status": "ok", "invalid_reason": None, "family": "gpt", "batch_size": 16, "sequence_length": 64,
    "optimizer": "adamw", "precision": "float32", "data_sha256": "py", "learning_rate": 0.01, "schedule": "wsd",
}  # fmt: skip


def tokens_of(size: float, teacher: float) -> float:
    """Data at the budget: 6 N FLOPs a token for the student, 2 N for its teacher."""
    return BUDGET / (6 * size + 2 * teacher)


@cache  # for tests that only read it
def study(
    gain: float = 0.1,
    noise: float = 0.0,
    seeds: int = 3,
    teacher_steps: float = 1e5,
    lengths: Any = LENGTHS,
    draw: int = 3,
    constant: bool = False,
    gains: tuple[float, ...] = (),
    teachers: Sequence[float] = TEACHERS,
    **changes: Any,
) -> StudyAnalysis:
    """Students that end ``gain`` nats (by teacher: ``gains``) below supervised training on as much data, beside it."""
    by_teacher = dict(zip(teachers, gains or [gain] * len(teachers), strict=True))
    rng = np.random.default_rng(draw)

    def row(name: str, size: float, tokens: float, seed: int, loss: float, **other: Any) -> dict[str, Any]:
        return SHARED | {"study": name, "params_non_embedding": size, "tokens_seen": tokens, "seed": seed, **other,
                         "trial_id": f"{name}{size}{tokens}{seed}",
                         "validation_loss_nats": loss + noise * rng.standard_normal()}  # fmt: skip

    rows = [
        row("taught", size, tokens, seed, from_scratch(size, tokens) - by_teacher[teacher],
            workload="distill", soft_weight=0.7, temperature=1.0, parent_trial_id="t",
            total_flops=BUDGET, teacher_flops=2 * teacher * tokens,
            parent_flops=6 * teacher * teacher_steps, teacher_params_non_embedding=teacher,
            loss_before_nats=from_scratch(teacher, 1e6))
        for size in SIZES for teacher in teachers for tokens in [tokens_of(size, teacher)] for seed in range(seeds)
    ] + [
        row("plain", size, tokens, seed, from_scratch(size, tokens), workload="training",
            parent_trial_id=None) | changes
        for size in SIZES for tokens in lengths for seed in range(seeds)
    ] + [
        row("constant", size, tokens, 0, 1 + from_scratch(size, tokens), workload="training", parent_trial_id=None,
            schedule="constant")
        for size in SIZES for tokens in lengths if constant
    ]  # fmt: skip
    return analyse(Results(pd.DataFrame(rows), (), {"taught": {}, "plain": {}, "constant": {}}), "taught")


def test_supervised_runs_of_another_schedule_are_not_compared() -> None:
    assert students_of(study(constant=True, noise=0.01)) == students_of(study(noise=0.01))


def test_planted_differences_from_supervised_training_are_recovered() -> None:
    students = students_of(study())
    assert [student.size for student in students] == list(SIZES)
    for student in students:
        assert [each.teacher for each in student.teachers] == list(TEACHERS)
        for each in student.teachers:
            alone = BUDGET / (6 * student.size)  # data of supervised training at the same FLOPs
            assert each.equal_data.value == pytest.approx(-0.1, abs=1e-9)
            assert each.equal_flops.value == pytest.approx(each.loss - from_scratch(student.size, alone), abs=1e-9)
            whole = (BUDGET + 6 * each.teacher * 1e5) / (6 * student.size)
            assert each.equal_chain.value == pytest.approx(each.loss - from_scratch(student.size, whole), abs=1e-9)
            # 0.1 nats are a factor e^(1/3) of data.
            assert each.saved.value == pytest.approx(np.exp(1 / 3) * each.tokens / alone, rel=1e-9)
        assert student.best.teacher == min(TEACHERS)  # every teacher helps alike, and the smallest costs least


def test_a_teacher_is_repaid_by_the_compute_that_its_students_save() -> None:
    student = students_of(study(gain=0.3, noise=1e-4))[0]
    best = student.best
    assert best.saved.side(1.0) == 1
    saved = best.saved.value * BUDGET - BUDGET
    assert student.repays_after == pytest.approx(6 * best.teacher * 1e5 / saved)
    assert students_of(study(gain=0.0, noise=1e-4))[0].repays_after is None
    assert students_of(study(gain=0.3, seeds=1))[0].repays_after is None


@pytest.mark.parametrize(("noise", "tied"), [(1e-3, 0), (0.5, 3)])
def test_teachers_are_told_apart_only_beyond_the_noise_between_seeds(noise: float, tied: int) -> None:
    assert len(students_of(study(noise=noise))[0].tied) == tied


def test_learning_rates_of_a_student_are_no_seeds_of_one_another() -> None:
    made = study(noise=1e-3)
    other = made.rows.assign(learning_rate=0.1, validation_loss_nats=made.rows["validation_loss_nats"] + 0.3,
                             trial_id=made.rows["trial_id"] + "-b")  # fmt: skip
    both = pd.concat([made.rows, other], ignore_index=True)
    definition = {"axes": {"learning_rate": [0.01, 0.1]}}
    apart = students_of(replace(made, rows=both, definition=definition))
    assert [student.settings for student in apart] == ["learning_rate 0.01", "learning_rate 0.1"] * len(SIZES)
    best = students_of(replace(made, rows=both, definition=definition | {"fit": {"best_over": ["learning_rate"]}}))
    assert [each.loss for student in best for each in student.teachers] == pytest.approx(
        [each.loss for student in students_of(made) for each in student.teachers]
    )


def test_of_many_equal_teachers_few_are_said_to_differ_from_the_best() -> None:
    """The best of twelve is the luckiest of them: with eleven comparisons counted, one study in seven was wrong."""
    rng, apart = np.random.default_rng(0), 0
    for _ in range(200):
        losses = rng.standard_normal((12, 3))
        error = float(np.sqrt(losses.var(axis=1, ddof=1).mean() / 3))
        teachers = tuple(
            Distilled(float(i), 1.0, 1.0, 1.0, 1.0, 1.0, float(each.mean()), error, 3, 24, tuple(each))
            for i, each in enumerate(losses)
        )
        apart += len(Student(1.0, "", 1.0, teachers).tied) < 11
    assert apart <= 14


@pytest.mark.slow
def test_intervals_of_all_teachers_together_hold_the_planted_differences() -> None:
    students = [student for repeat in range(12) for student in students_of(study(noise=0.02, draw=repeat))]
    held = [
        all(each.equal_data.low <= -0.1 <= each.equal_data.high for each in student.teachers) for student in students
    ]
    assert sum(held) >= 20  # of 24, at 95 %


def test_without_supervised_runs_nothing_is_compared_and_the_reason_is_given() -> None:
    alone = study(data_sha256="other")
    for student in students_of(alone):
        assert "no supervised run has this size" in student.reason
        assert np.isnan(student.best.equal_flops.value)
    text = " ".join(sentences(alone))
    assert "Nothing to compare with" in text
    assert all(finding.verdict == UNTESTED for finding in outcome(alone).findings[:2])
    assert distillation_law(alone).fit is None


def test_losses_beyond_the_supervised_runs_have_no_break_even() -> None:
    for student in students_of(study(lengths=(2e6, 4e6))):
        assert all(np.isnan(each.saved.value) for each in student.teachers)
    assert "there is no break-even" in " ".join(sentences(study(lengths=(2e6, 4e6))))


def test_one_seed_makes_no_claim() -> None:
    text = " ".join(sentences(study(seeds=1)))
    assert "1 seed is too few to tell teachers apart" in text
    assert "Beside supervised training" not in text
    assert {finding.verdict for finding in outcome(study(seeds=1)).findings} <= {OPEN, UNTESTED}


def test_findings_are_judged_by_the_largest_student() -> None:
    findings = outcome(study(noise=1e-3)).findings
    chain, small, gap = findings
    assert chain.value is not None
    assert chain.value == pytest.approx(students_of(study(noise=1e-3))[-1].best.equal_chain.value)
    assert small.value == pytest.approx(-students_of(study(noise=1e-3))[-1].best.equal_flops.value)
    assert gap.value == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(("largest", "verdict"), [(0.1, OPEN), (0.05, AGREES), (0.15, DISAGREES)])
def test_a_capacity_gap_is_a_smaller_gain_on_as_much_data(largest: float, verdict: str) -> None:
    """At equal FLOPs the largest teacher's student is always the worst here, as it has the least data."""
    planted = study(noise=1e-3, gains=(0.1, 0.1, 0.1, largest))
    *_, gap = outcome(planted).findings
    assert gap.value == pytest.approx(0.1 - largest, abs=0.01)
    assert gap.verdict == verdict
    for student in students_of(planted):
        assert student.above_best(student.teachers[-1]).side() == 1


def test_a_student_of_one_teacher_has_no_best_one() -> None:
    alone = study(teachers=TEACHERS[:1])
    text = " ".join(sentences(alone))
    assert "with its only teacher, of 4,000 parameters" in text
    assert "lowest loss" not in text
    assert outcome(alone).findings[-1].verdict == UNTESTED


def test_the_law_is_refused_for_few_students_and_for_students_better_than_their_teachers() -> None:
    assert "8 configurations for 9 free parameters" in distillation_law(study(gain=-1.0)).reason
    better = study(gain=5.0)
    assert "no worse than their teacher" in distillation_law(better).reason


@pytest.mark.slow
def test_planted_parameters_of_the_law_are_recovered() -> None:
    inputs, parameters = DISTILLED
    loss = LAWS["distillation"].predict(parameters, {name: np.log(values) for name, values in inputs.items()})[0]
    fitted = fit({**inputs, "loss_added": loss}, "distillation")
    assert fitted.status == "converged"
    assert fitted.parameters == pytest.approx(parameters, rel=1e-6)


def test_the_law_is_the_published_formula() -> None:
    p = DISTILLED[1]
    N, D, T, S = 3e8, 2e10, 2.4, 2.2
    expected = (
        T ** -p["c0"]
        * (1 + (T / (S * p["d1"])) ** (1 / p["f1"])) ** (-p["c1"] * p["f1"])
        * (p["A"] / N ** p["alpha"] + p["B"] / D ** p["beta"]) ** p["gamma"]
    )
    logs = {"params": N, "tokens": D, "teacher_loss": T, "supervised_loss": S}
    at = {name: np.log([value]) for name, value in logs.items()}
    assert LAWS["distillation"].predict(p, at)[0, 0] == pytest.approx(expected, rel=1e-12)


def test_the_section_draws_its_figures_and_their_tables() -> None:
    whole = study(gain=0.3, noise=1e-3)
    for figure in SECTION.figures(whole)[:2]:
        with canvas("a") as marks:
            caption = figure.draw(marks, whole)
            assert caption is not None
            assert not isinstance(caption, str)
            assert len(caption.table.rows) in (8, 16)
            assert sum(map(len, marks.titles.values())) in (8, 16)
    text = " ".join(sentences(whole))
    assert "repay the teacher" in text
    assert isinstance(students_of(whole)[0], Student)


@pytest.mark.parametrize(
    ("fields", "cost", "noted"),
    [
        ({"flops": [BUDGET]}, 1, True),  # teachers of one seed, as of two learning rates
        ({"flops": [BUDGET]}, 2, True),  # one of them trained for longer
        ({"seed": [0, 1, 2]}, 1, False),  # they may be seeds of one another
        ({"seed": [0, 1, 2]}, 2, True),
    ],
)
def test_teachers_of_one_size_and_seed_that_count_as_replicates_are_named(
    fields: Any, cost: float, noted: bool
) -> None:
    frame = study().trials
    first = frame.assign(parent_trial_id=frame["teacher_params_non_embedding"].map("a{:g}".format))
    second = first.assign(parent_trial_id=first["parent_trial_id"] + "b", trial_id=first["trial_id"] + "b",
                          parent_flops=cost * first["parent_flops"],
                          validation_loss_nats=first["validation_loss_nats"] + 0.1)  # fmt: skip
    definition = {"workload": "distill", "fields": fields}
    both = StudyAnalysis("taught", definition, pd.concat([first, second]))
    alone = StudyAnalysis("taught", definition, first)
    assert {note for series in alone.series for note in series.notes} == set()
    notes = {note for series in both.series for note in series.notes}
    assert [("several teachers" in note, "[distill] teacher" in note) for note in notes] == [(True, True)] * noted
