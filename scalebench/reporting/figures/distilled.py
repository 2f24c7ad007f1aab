"""Distillation: the student's loss by its teacher, and the compute that supervised training needs for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scalebench.analysis.distillation import Difference, Distilled, Student, students_of
from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.reporting.svg import MUTED, PAPER, Marks, finish, series_style, size_axis
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

TEACHER_AXIS = "size of the teacher (non-embedding parameters)"


def label_of(student: Student, students: Sequence[Student]) -> str:
    """Return a student's size, with its budget and settings where they vary: "4 k parameters, 30 GFLOP"."""
    parts = [f"{quantity(student.size)} parameters"]
    if any(other.size == student.size and other.flops != student.flops for other in students):
        parts.append(quantity(student.flops, "FLOP"))
    return ", ".join(filter(None, [*parts, student.settings]))


def difference_text(difference: Difference) -> str:
    """Return a difference in nats with its interval, or an em dash."""
    if np.isnan(difference.value):
        return "—"
    value, interval = bounded(difference.value, difference.low, difference.high)
    return f"{value} ({interval})"


def loss_figure(marks: Marks, study: StudyAnalysis) -> Caption | str:
    """Draw the loss of each student against the size of its teacher, and its loss without one at equal FLOPs."""
    students = students_of(study)
    if not students:
        return "No student has a loss and learned of a teacher."
    for i, student in enumerate(students):
        style, name = series_style(i), label_of(student, students)
        x, y = [each.teacher for each in student.teachers], [each.loss for each in student.teachers]
        errors = np.nan_to_num([each.error for each in student.teachers])
        marks.axes.plot(x, y, color=style["color"], linewidth=1)
        marks.bars(x, np.subtract(y, errors), np.add(y, errors), color=style["color"])
        titles = [f"{name}, teacher of {quantity(each.teacher)}: {uncertain(each.loss, each.error)} nats"
                  for each in student.teachers]  # fmt: skip
        marks.draw(x, y, titles, **style, label=name)
        marks.axes.plot(x, [each.loss - each.equal_flops.value for each in student.teachers],
                        color=style["color"], linewidth=1, linestyle="--")  # fmt: skip
    finish(marks, "validation loss (nats)")
    size_axis(marks.axes, TEACHER_AXIS)
    return Caption(
        "Means over seeds with their standard errors. Every student of a line has the same budget: its training and "
        "its teacher's forward passes. Dashed: the same student trained on the labels alone at that budget.",
        table(
            "Students by teacher: loss minus that of supervised training, with its interval.",
            COLUMNS,
            [*_loss_rows(students)],
        ),
    )


COLUMNS = (
    "student", "teacher", "teacher's loss (nats)", "data", "seeds", "loss (nats)", "at equal FLOPs",
    "with the teacher's training", "on equal data",
)  # fmt: skip


def _loss_rows(students: Sequence[Student]) -> Iterator[tuple[Cell, ...]]:
    for student in students:
        for each in student.teachers:
            yield (
                word(label_of(student, students)), number(each.teacher), number(each.teacher_loss, digits=4),
                number(each.tokens), number(each.seeds), (uncertain(each.loss, each.error), each.loss),
                *(word(difference_text(difference))
                  for difference in (each.equal_flops, each.equal_chain, each.equal_data)),
            )  # fmt: skip


def compute_figure(marks: Marks, study: StudyAnalysis) -> Caption | str:
    """Draw the compute of supervised training over that of distillation, at equal loss, with and without the chain."""
    students = students_of(study)
    known = [(i, student) for i, student in enumerate(students) if any(_measured(each) for each in student.teachers)]
    if not known:
        return "No student ends at a loss that the supervised runs of its size span."
    rows: list[Sequence[Cell]] = []
    for i, student in known:
        for whole in (False, True):
            rows += _ratios(marks, student, label_of(student, students), i, whole=whole)
    marks.axes.axhline(1, color=MUTED, linewidth=1, linestyle="--")
    finish(marks, "supervised over distilled compute", log=True)
    size_axis(marks.axes, TEACHER_AXIS)
    return Caption(
        "FLOPs that supervised training of the same student needs to the same loss, over the FLOPs of distillation: "
        "above 1 distillation saves compute. Hollow marks and dotted lines count the teacher's training too. Bars are "
        "intervals over seeds that hold for all teachers of a student together (95 %); losses and ends beyond the "
        "supervised runs are left out.",
        table("Compute at equal loss.", ("student", "teacher", "teacher's training", "ratio (95 % interval)"), rows),
    )


def _ratios(marks: Marks, student: Student, name: str, i: int, *, whole: bool) -> Iterator[tuple[Cell, ...]]:
    """Draw a student's ratios of compute and yield the rows of the table."""
    style, teachers = series_style(i), [each for each in student.teachers if _measured(each)]
    ratios = [saved_of(each, whole=whole) for each in teachers]
    hollow = {"markerfacecolor": PAPER, "markeredgecolor": style["color"]} if whole else {}
    x, y = [each.teacher for each in teachers], [ratio.value for ratio in ratios]
    marks.axes.plot(x, y, color=style["color"], linewidth=1, linestyle=":" if whole else "-")
    marks.bars(x, [ratio.low for ratio in ratios], [ratio.high for ratio in ratios], color=style["color"])
    texts = [difference_text(ratio) for ratio in ratios]
    titles = [f"{name}, teacher of {quantity(size)}: {text}" for size, text in zip(x, texts, strict=True)]
    marks.draw(x, y, titles, **style | hollow, label=None if whole else name)
    for size, value, text in zip(x, y, texts, strict=True):
        yield word(name), number(size), word("counted" if whole else "not counted"), (text, value)


def _measured(each: Distilled) -> bool:
    return bool(np.isfinite(each.saved.value))


def saved_of(each: Distilled, *, whole: bool) -> Difference:
    """Return the ratio of compute at equal loss, with the teacher's training counted where ``whole``."""
    share = each.flops / (each.flops + each.chain_flops) if whole else 1.0
    return Difference(*(end * share for end in (each.saved.value, each.saved.low, each.saved.high)))


BY_TEACHER = FigureSpec("teachers", "Loss of the student by its teacher, at equal total FLOPs", loss_figure)
BREAK_EVEN = FigureSpec("break-even", "Compute of supervised training to the same loss", compute_figure)
