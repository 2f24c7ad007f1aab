"""Distillation against supervised training: each student by its teachers, at equal FLOPs and at equal data.

The supervised runs are found among the other studies of the same results, as those of ``transfer`` are. Between their
lengths the loss is a monotone cubic in the log of the data; it is not extrapolated beyond the shortest or longest run.
Costs are counted three ways: the FLOPs of the student's training and the teacher's forward passes (the teacher exists
already), these with the FLOPs of the teacher's own training, and the data alone (the teacher's predictions are free).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from scalebench.analysis.series import setting_text
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.transfer import RECIPE, ROUNDING, Curve, curve_of, matching, runs_from_scratch
from scalebench.analysis.trends import Trend, determined
from scalebench.analysis.trials import DATA_SEEN, LOSS, TEACHER, N, numeric
from scalebench.laws import FitRefused, fit
from scalebench.laws.columns import groups_within

TEACHER_LOSS, TOTAL = "loss_before_nats", "total_flops"
SETTINGS = ("soft_weight", "temperature", "top_k")  # which outputs of its teacher a student is trained on
ALIKE = 0.15  # lengths, or budgets, that differ by less are one: whole steps make no budget exact
FEWEST_SEEDS = 3  # with fewer nothing is concluded


@dataclass(frozen=True)
class Difference:
    """A difference in nats, or a ratio, with its interval; NaN where it was not measured.

    The intervals of all teachers of a student hold together at 95 % (Bonferroni).
    """

    value: float = np.nan
    low: float = np.nan
    high: float = np.nan

    def side(self, null: float = 0.0) -> int:
        """1 or -1 where the whole interval lies above or below ``null``, else 0."""
        return 1 if self.low > null else -1 if self.high < null else 0


@dataclass(frozen=True)
class Distilled:
    """A student of one teacher size at one budget, with the mean loss over ``seeds`` and its standard error.

    The error pools the spread of the seeds over the whole study, with ``freedom`` degrees of freedom. ``flops`` are
    those of the trial, ``student_flops`` those of the student alone, ``chain_flops`` those of the teacher's training.
    Differences are distilled minus supervised: at the same ``flops``, at the same with ``chain_flops``, and on the same
    ``tokens``. ``saved`` is the compute of supervised training to the same loss over ``flops``.
    """

    teacher: float
    tokens: float
    flops: float
    student_flops: float
    chain_flops: float
    teacher_loss: float
    loss: float
    error: float
    seeds: int
    freedom: int
    by_seed: tuple[float, ...]
    supervised_loss: float = np.nan
    equal_flops: Difference = Difference()
    equal_chain: Difference = Difference()
    equal_data: Difference = Difference()
    saved: Difference = Difference()


@dataclass(frozen=True)
class Student:
    """One student at one budget, with its teachers, smallest first; ``reason`` is why nothing is compared."""

    size: float
    settings: str
    flops: float
    teachers: tuple[Distilled, ...]
    reason: str = ""

    @property
    def best(self) -> Distilled:
        """The teacher with the lowest mean loss."""
        return min(self.teachers, key=lambda each: each.loss)

    @property
    def tied(self) -> tuple[Distilled, ...]:
        """The other teachers whose loss does not differ significantly from the best, all together at 95 %.

        The best is the one that came out lowest, so that any two of them may be those compared.
        """
        return tuple(each for each in self.teachers if each is not self.best and not self.above_best(each).side())

    def above_best(self, each: Distilled) -> Difference:
        """Return how far a teacher's student ends above that of the best, all pairs of teachers together at 95 %."""
        pairs = max(1, math.comb(len(self.teachers), 2))
        value, half = each.loss - self.best.loss, _reach(each, self.best, pairs)
        return Difference(value, value - half, value + half)

    @property
    def capacity_gap(self) -> Difference:
        """How much less the largest teacher gains on supervised training with as much data than the best smaller one.

        At equal FLOPs a larger teacher also leaves less data, so the comparison is not about the teacher alone.
        """
        *smaller, largest = self.teachers
        if not smaller:
            return Difference()
        best, most = min((each.equal_data for each in smaller), key=lambda gain: gain.value), largest.equal_data
        value, half = most.value - best.value, np.hypot(most.high - most.value, best.high - best.value)
        return Difference(value, value - half, value + half)

    @property
    def repays_after(self) -> float | None:
        """Students after which the best teacher's training is repaid; None where a student saves no compute."""
        best = self.best
        if best.saved.side(1.0) < 1:
            return None
        return best.chain_flops / ((best.saved.value - 1) * best.flops)


def _reach(first: Distilled, second: Distilled, comparisons: int) -> float:
    """Half of the interval of the difference of two students' mean losses, in nats; infinite without replicates."""
    if not first.freedom:
        return float("inf")
    return float(stdtrit(first.freedom, 1 - 0.025 / comparisons) * np.hypot(first.error, second.error))


@lru_cache(maxsize=8)
def students_of(study: StudyAnalysis) -> tuple[Student, ...]:
    """Return the students of a study, by size and budget, each compared with supervised runs where there are some."""
    rows = study.usable[study.usable[LOSS].notna() & numeric(study.usable, TEACHER).notna()]
    rows = rows[numeric(rows, "soft_weight") > 0]
    if rows.empty:
        return ()
    rows = rows.assign(
        budget=groups_within(np.log(rows[TOTAL].to_numpy(float)), ALIKE), settings=_settings(rows, study.settings),
        student_flops=numeric(rows, TOTAL) - numeric(rows, "teacher_flops"),
    ).reset_index(drop=True)  # fmt: skip
    spread, freedom = _noise(rows)
    scratch = _of_recipe(runs_from_scratch(study.others, rows), rows)
    curves = {float(str(size)): supervised_curve(part) for size, part in scratch.groupby(N)}
    students = []
    for (size, _, settings), part in rows.groupby([N, "budget", "settings"]):
        teachers = tuple(_distilled(group, spread, freedom) for _, group in part.groupby(TEACHER))
        student = Student(float(str(size)), str(settings), float(part[TOTAL].mean()), teachers)
        students.append(_compared(student, curves.get(float(str(size)), "no supervised run has this size")))
    return tuple(students)


def _of_recipe(scratch: pd.DataFrame, rows: pd.DataFrame) -> pd.DataFrame:
    """Return, of each size, the runs that were trained as its students are; all of them if none was."""
    columns = [name for name in (N, *RECIPE) if name in scratch and name in rows]
    alike = matching(scratch, rows, columns) if columns else scratch
    return pd.concat([alike, scratch[~scratch[N].isin(alike[N])]]) if len(scratch) else scratch


def supervised_curve(runs: pd.DataFrame) -> Curve | str:
    """Return the loss against data of one size's supervised runs, lengths within ``ALIKE`` as one, or why not."""
    groups = groups_within(np.log(runs[DATA_SEEN].to_numpy(float)), ALIKE)
    return curve_of(runs.assign(**{DATA_SEEN: runs.groupby(groups)[DATA_SEEN].transform("mean")}))


def _settings(rows: pd.DataFrame, varied: Sequence[str]) -> list[str]:
    """Return, for each trial, those of ``SETTINGS``, and of what the study varied, that vary among these trials."""
    names = [name for name in dict.fromkeys((*SETTINGS, *varied)) if name != TEACHER]
    names = [name for name in names if name in rows and rows[name].astype(str).nunique() > 1]
    return [
        ", ".join(f"{name} {setting_text(row[name])}" for name in names if pd.notna(row[name]))
        for _, row in rows.iterrows()
    ]


def _noise(rows: pd.DataFrame) -> tuple[float, int]:
    """Return the standard deviation between seeds, pooled over all students and teachers, and its freedom."""
    groups = rows.groupby([N, "budget", "settings", TEACHER])[LOSS]
    freedom = int((groups.count() - 1).sum())
    squares = float((rows[LOSS] - groups.transform("mean")).pow(2).sum())
    return (float(np.sqrt(squares / freedom)) if freedom else np.nan), freedom


def _distilled(group: pd.DataFrame, spread: float, freedom: int) -> Distilled:
    losses = tuple(float(loss) for loss in group[LOSS])

    def mean(column: str) -> float:
        return float(numeric(group, column).mean())

    return Distilled(
        teacher=mean(TEACHER), tokens=mean(DATA_SEEN), flops=mean(TOTAL), student_flops=mean("student_flops"),
        chain_flops=mean("parent_flops"), teacher_loss=mean(TEACHER_LOSS), loss=float(np.mean(losses)),
        error=float(spread / np.sqrt(len(losses))), seeds=len(losses), freedom=freedom, by_seed=losses,
    )  # fmt: skip


def _compared(student: Student, curve: Curve | str) -> Student:
    """Return a student whose teachers are compared with supervised training of the same size."""
    if isinstance(curve, str):
        return replace(student, reason=f"{student.size:,.0f} parameters: {curve}")
    count = len(student.teachers)
    return replace(student, teachers=tuple(_against(each, curve, count) for each in student.teachers))


def _against(each: Distilled, curve: Curve, comparisons: int) -> Distilled:
    """Return a student of one teacher with its differences from supervised training."""
    per_token, half = each.student_flops / each.tokens, _half_width(each, curve, comparisons)

    def minus_supervised(tokens: float) -> Difference:
        value = each.loss - curve.loss_at(tokens)
        return Difference(value, value - half, value + half)

    needed = [curve.tokens_for(each.loss + shift) * per_token / each.flops for shift in (0.0, half, -half)]
    return replace(
        each, supervised_loss=curve.loss_at(each.tokens), equal_data=minus_supervised(each.tokens),
        equal_flops=minus_supervised(each.flops / per_token), saved=Difference(*needed),
        equal_chain=minus_supervised((each.flops + each.chain_flops) / per_token),
    )  # fmt: skip


def _half_width(each: Distilled, curve: Curve, comparisons: int) -> float:
    """Return half of the interval of the difference of both mean losses (Welch's t); NaN without replicates."""
    total = each.error**2 + curve.error**2
    if not total > ROUNDING**2:
        return float("nan")
    freedom = total**2 / (each.error**4 / each.freedom + curve.error**4 / curve.freedom)
    return float(stdtrit(freedom, 1 - 0.025 / comparisons) * np.sqrt(total))


@lru_cache(maxsize=8)
def distillation_law(study: StudyAnalysis) -> Trend:
    """Return the law of Busbridge et al. of all students, or the reason why there is none."""
    each = [(student, taught) for student in students_of(study) for taught in student.teachers]
    known = [(student, taught) for student, taught in each if np.isfinite(taught.supervised_loss)]
    if not known:
        return Trend(None, "no student has supervised runs of its size around its amount of data")
    better = sum(min(taught.by_seed) <= taught.teacher_loss for _, taught in known)
    if better:
        no_worse = f"{better} of {len(known)} students are no worse than their teacher"
        return Trend(None, f"{no_worse}; the law is for students that are all worse")
    try:
        return determined(fit(_law_points(known), law="distillation"))
    except FitRefused as refusal:
        return Trend(None, str(refusal))


def _law_points(known: Sequence[tuple[Student, Distilled]]) -> pd.DataFrame:
    """Return a row per seed, seeds of one student and teacher as one configuration."""
    rows = [
        {
            "params": student.size, "tokens": taught.tokens, "teacher_loss": taught.teacher_loss,
            "supervised_loss": taught.supervised_loss, "loss_added": loss - taught.teacher_loss, "config": place,
        }
        for place, (student, taught) in enumerate(known)
        for loss in taught.by_seed
    ]  # fmt: skip
    return pd.DataFrame(rows)
