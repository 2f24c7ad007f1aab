"""Distillation: the best teacher of each student, against supervised training, and when a teacher is repaid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scalebench.analysis.distillation import FEWEST_SEEDS, Difference, Student, distillation_law, students_of
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, LOSS_SE, STEP_TIME
from scalebench.reporting.figures.costs import MEMORY, STEP_TIMES
from scalebench.reporting.figures.distilled import BREAK_EVEN, BY_TEACHER, label_of, saved_of
from scalebench.reporting.figures.runs import CURVES
from scalebench.reporting.outcomes import Finding, Outcome, law_text
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of

BUSBRIDGE = "Busbridge et al. 2025, arXiv:2502.08606"


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield the best teacher of each student, its distance from supervised training, and the break-even."""
    students = students_of(study)
    for student in students:
        name = label_of(student, students)
        yield best_sentence(student, name)
        if student.reason:
            yield f"Nothing to compare with: {student.reason}."
        elif len(student.best.by_seed) >= FEWEST_SEEDS:
            yield f"{supervised_sentence(student, name)} {break_even_sentence(student, name)}"
    if students and (law := distillation_law(study)).fit is None:
        yield f"No law of distillation: {law.reason}."


def best_sentence(student: Student, name: str) -> str:
    """Return the best teacher of a student, and those that are as good within noise."""
    best = student.best
    loss, teacher = uncertain(best.loss, best.error), quantity(best.teacher)
    budget = quantity(student.flops, "FLOP")
    lead = f"the student of {name} has" if budget in name else f"At {budget} in all, the student of {name} has"
    lead = lead[0].upper() + lead[1:]
    if len(student.teachers) == 1:
        return f"{lead} a loss of {loss} nats with its only teacher, of {teacher} parameters."
    lead = f"{lead} its lowest loss, {loss} nats, with the teacher of {teacher} parameters"
    if best.seeds < FEWEST_SEEDS:
        return f"{lead}; {best.seeds} seed{'s are' if best.seeds != 1 else ' is'} too few to tell teachers apart."
    if student.tied:
        others = " and ".join(quantity(each.teacher) for each in student.tied)
        return f"{lead}; {others} do not differ from it significantly."
    return f"{lead}, below all others beyond noise."


def supervised_sentence(student: Student, name: str) -> str:
    """Return how far the best student ends from supervised training at equal FLOPs, with the chain, on equal data."""
    best = student.best
    each = (
        ("at equal FLOPs", best.equal_flops),
        ("at equal FLOPs with the teacher's training counted", best.equal_chain),
        ("on equal data", best.equal_data),
    )
    parts = [f"{_beside(difference)} {where}" for where, difference in each if np.isfinite(difference.value)]
    if not parts:
        return f"No supervised run of {name} is as long as its distillation."
    return f"Beside supervised training the student of {name} ends {', '.join(parts)} ({best.seeds} seeds)."


def _beside(difference: Difference) -> str:
    """Return a difference from supervised training in nats: above, below or within noise."""
    side = difference.side()
    if not side:
        value, interval = bounded(difference.value, difference.low, difference.high)
        return f"within noise ({value} nats, {interval})"
    low, high = sorted((side * difference.low, side * difference.high))
    value, interval = bounded(side * difference.value, low, high)
    return f"{value} nats {'above' if side > 0 else 'below'} ({interval})"


def break_even_sentence(student: Student, name: str) -> str:
    """Return the compute that supervised training needs to the same loss, and how many students repay a teacher."""
    best = student.best
    if np.isnan(best.saved.value):
        return f"Supervised runs of {name} do not span the loss of its best student, so there is no break-even."
    ratio, chain = (bounded(*_ends(saved_of(best, whole=whole))) for whole in (False, True))
    lead = (f"Supervised training reaches that loss with {ratio[0]} times the compute ({ratio[1]}), "
            f"{chain[0]} times with the teacher's training counted")  # fmt: skip
    if student.repays_after is None:
        return f"{lead}: it is not shown that a student saves compute, so no number of students repays the teacher."
    return f"{lead}: {quantity(np.ceil(student.repays_after))} such students repay the teacher's training."


def _ends(difference: Difference) -> tuple[float, float, float]:
    return difference.value, difference.low, difference.high


def outcome(study: StudyAnalysis) -> Outcome:
    """Return the study's row on a page of several, with what Busbridge et al. found about teachers and compute."""
    students = students_of(study)
    findings = (*_findings(students[-1], label_of(students[-1], students)),) if students else ()
    return Outcome("loss by student and teacher at equal FLOPs", law_text(distillation_law(study)), findings)


def _findings(student: Student, name: str) -> Iterator[Finding]:
    """Yield the published findings beside what the largest student showed."""
    best, reason = student.best, student.reason or "no supervised run is as long"
    claims = (
        ("a single student is better trained without a teacher, if the teacher has to be trained for it", 1,
         best.equal_chain,
         "loss minus that of supervised training, the teacher's training counted"),
        ("with an existing teacher, distillation beats supervised training at small budgets", -1,
         best.equal_flops, "loss of supervised training at the same FLOPs minus that of the best teacher"),
    )  # fmt: skip
    for published, sign, difference, effect in claims:
        if np.isnan(difference.value):
            yield Finding(published, BUSBRIDGE, reason=reason)
            continue
        low, high = sorted((sign * difference.low, sign * difference.high))
        yield Finding(published, BUSBRIDGE, f"{effect}, student of {name}", sign * difference.value, low, high,
                      seeds=best.seeds, unit="nats")  # fmt: skip
    yield _gap_finding(student, name)


def _gap_finding(student: Student, name: str) -> Finding:
    """Return the finding on the capacity gap: the gain from the largest teacher beside that from a smaller one."""
    published = "the largest teacher does not make the best student (capacity gap)"
    if len(student.teachers) == 1:
        return Finding(
            published, BUSBRIDGE, reason="there are no two teachers at the same FLOPs; set flops to compare them"
        )
    if np.isnan((gap := student.capacity_gap).value):
        return Finding(published, BUSBRIDGE, reason=student.reason or "no supervised run has as much data")
    effect = f"gain on as much data with the best smaller teacher minus with the largest, student of {name}"
    return Finding(published, BUSBRIDGE, effect, *_ends(gap), seeds=student.teachers[-1].seeds, unit="nats")


METHODS = (
    "Every student is trained from initial weights on λ T² KL(teacher ‖ student) + (1 − λ) cross-entropy. Total FLOPs "
    "are its training steps and its teacher's forward passes; the teacher's own training is counted only where stated. "
    "At one budget a larger teacher leaves less data. Losses are in nats on the same held-out sample; the standard "
    "error of a mean pools the spread between seeds over the study.",
    "Supervised training is that of the same size, data, batch size and sequence length among the other studies; its "
    "loss between two lengths is a monotone cubic in the log of the data, with nothing beyond them. Intervals are "
    "Welch's t and hold for all teachers of a student together at 95 % (Bonferroni).",
    DRAWN_WITH,
)  # fmt: skip
COLUMNS = (
    Column("teacher", "teacher_params_non_embedding"),
    Column("λ", "soft_weight"),
    Column("T", "temperature"),
    Column("top k", "top_k"),
    Column("teacher's loss (nats)", "loss_before_nats", digits=5),
    Column("loss (nats)", LOSS, digits=5),
    Column("± (validation)", LOSS_SE, digits=2),
    Column("total", "total_flops", "FLOP"),
    Column("of it the teacher's", "teacher_flops", "FLOP"),
    Column("the chain before", "parent_flops", "FLOP"),
    Column("stored", "stored_bytes", "B"),
    Column("weights", "weight_bytes", "B"),
    Column("latency against the teacher's", "latency_ratio"),
    Column("step time", STEP_TIME, "s"),
    *RESOURCES,
)
SECTION = StudySection(
    shows=lambda study: workload_of(study) == "distill",
    sentences=sentences,
    figures=lambda _: (BY_TEACHER, BREAK_EVEN, STEP_TIMES, MEMORY, CURVES),
    columns=lambda _: COLUMNS,
    methods=METHODS,
    outcome=outcome,
)
