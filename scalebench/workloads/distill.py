"""The workload "distill": train a student on the predictions of another trial's model, its teacher.

``distill_run`` does it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scalebench.analysis.whole_steps import whole_steps
from scalebench.errors import InputError
from scalebench.families import FAMILIES, Counts
from scalebench.store import Column
from scalebench.study import Trial, trial_id
from scalebench.tasks import GivesLogits, Task
from scalebench.workloads import effect, training
from scalebench.workloads.base import Cost, Decided, Request, classes_of, step_flops
from scalebench.workloads.derived import TRAINING_COLUMNS, decided_as_training
from scalebench.workloads.distill_spec import DistillSection, DistillSpec
from scalebench.workloads.training_spec import TrainSpec

if TYPE_CHECKING:
    from scalebench.workloads.recorder import Recorder

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "train a student on the predictions of a model of another study"
TABLE = "distill"
TAKES_WEIGHTS = False  # of [from]: a student starts from initial weights
KEEPS = ("weights_sha256",)
OWN = ("soft_weight", "temperature", "top_k")

Section = DistillSection
Spec = DistillSpec

COLUMNS = (
    *(replace(each, meaning=each.meaning.replace("the unchanged model", "the teacher")) for each in effect.COLUMNS),
    Column("teacher_flops", "FLOP", "FLOPs of the teacher's forward passes in this trial"),
    Column("total_flops", "FLOP", "FLOPs of the student's training and of the teacher's forward passes"),
    Column("stored_bytes", "B", "size of the teacher's stored log-probabilities; null where the teacher runs along"),
    Column("store_time_s", "s", "time in which the teacher computed what is stored, before the first step"),
    *TRAINING_COLUMNS,
)


def decide(request: Request) -> Decided:
    """Decide a student as training does, and check that its teacher's predictions have the same classes."""
    teacher = request.parent
    if teacher is None:
        raise InputError('distill.teacher: missing; name the study that trained it, as in teacher = {study = "gpt"}')
    values = dict(request.values)
    own = {name: values.pop(name, None) for name in OWN}
    budget = {key: values.pop(key) for key in ("flops",) if key in values}
    decided = decided_as_training(request, values, TABLE, "distillation")
    train: dict[str, Any] = dict(decided.spec)
    _check_method(train)
    teacher_counts = _check_teacher(request, teacher, decided)
    spec = DistillSpec.model_construct(**train, **_learned(own, decided), **_described(teacher_counts))
    if budget:
        per_step = step_flops(decided.counts, spec.batch_size) + spec.teacher_step_flops
        spec = spec.model_copy(update={"steps": whole_steps(budget["flops"], per_step)})
    return replace(decided, spec=spec)


def _check_method(train: dict[str, Any]) -> None:
    """Raise ``InputError`` for a method that cannot train this student."""
    if train["graph"] == "step":
        raise InputError('distill.graph: "step": the teacher is no part of a captured step; use "blocks"')


def _learned(own: dict[str, Any], decided: Decided) -> dict[str, Any]:
    """Return λ, temperature and top_k; settings without effect are left out, or one trial would be two."""
    weight = 1.0 if own["soft_weight"] is None else own["soft_weight"]
    if not weight:
        return {"soft_weight": weight, "temperature": 1.0, "top_k": None}
    classes = classes_of(decided.config)
    if own["top_k"] is not None and own["top_k"] > classes:
        raise InputError(f"distill.top_k: {own['top_k']} is more than the {classes} classes of a prediction")
    return {"soft_weight": weight, "temperature": own["temperature"] or 1.0, "top_k": own["top_k"]}


def _described(counts: Counts) -> dict[str, Any]:
    """Return the fields that describe the teacher."""
    return {
        "teacher_params": counts.total,
        "teacher_params_non_embedding": counts.non_embedding,
        "teacher_forward_flops": counts.forward_flops,
    }


def _check_teacher(request: Request, teacher: Trial, decided: Decided) -> Counts:
    """Return what the teacher's forward pass costs. Raises ``InputError`` unless it can teach this student."""
    family, source, spec = FAMILIES[teacher.family], request.about.source, decided.spec
    assert isinstance(spec, TrainSpec)
    config = family.Config(**teacher.model)
    try:
        task = request.family.task(decided.config, request.data, request.about, spec)
    except ValueError as error:
        raise InputError(f"model.{error}") from error
    if not isinstance(task, GivesLogits):
        raise InputError(f"model.family: {request.family_name}: what it predicts of {source!r} are no classes")
    try:
        _check_reads(teacher, config, request, spec, task)
        _check_classes(config, decided.config)
    except ValueError as error:
        raise InputError(f"distill.teacher: {trial_id(teacher)} ({teacher.family}): {error}") from error
    return family.count(config, spec.sequence_length)


def _check_classes(teacher: Any, student: Any) -> None:
    """Raise ``InputError`` unless both Configs have as many classes."""
    if (theirs := classes_of(teacher)) != (own := classes_of(student)):
        raise InputError(f"it predicts {theirs} classes and the student {own}; they must be the same")


def _check_reads(teacher: Trial, config: Any, request: Request, spec: TrainSpec, student: Task) -> None:
    """Raise ``InputError`` unless a teacher can read the student's batches, and predicts the same of them."""
    family, source = FAMILIES[teacher.family], request.about.source
    if not isinstance(request.data, family.TAKES):
        raise InputError(f"it cannot read {source!r}; let the student have the teacher's source")
    task = family.task(config, request.data, request.about, spec)
    if not (isinstance(task, type(student)) or isinstance(student, type(task))):  # a mixture's task is gpt's and more
        raise InputError(f"it predicts something else than {request.family_name}")
    sizes = [getattr(each, "image_size", None) for each in (task, student)]
    if sizes[0] != sizes[1]:
        raise InputError(f"it reads images of {sizes[0]} pixels a side, and the student of {sizes[1]}")
    if teacher.data.vocab_size is not None and teacher.data.source != source:
        raise InputError(f"it has the vocabulary of {teacher.data.source!r}, and {source!r} has another")


def cost(trial: Trial, counts: Counts) -> Cost:
    """Estimate a trial as training does, with the teacher's forward passes, and its weights if it runs meanwhile."""
    spec: DistillSpec = trial.spec
    student = training.cost(trial, counts)
    teacher_bytes = 4 * spec.teacher_params if spec.top_k is None and spec.soft_weight else 0
    flops, memory_bytes = student.flops + spec.teacher_step_flops * spec.steps, student.memory_bytes + teacher_bytes
    return replace(student, flops=flops, memory_bytes=memory_bytes)


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.distill_run import run as measure  # imports torch

    measure(trial, recorder)
