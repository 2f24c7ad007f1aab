"""Distillation of bert, whose predictions are those of the masked tokens, and of students on the fused kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parent_support import PARENT, STUDENT, planned, refused, trained
from torch import Tensor, nn

from scalebench import store
from scalebench.data import open_data
from scalebench.tasks import MaskedPairs
from scalebench.tasks.masked import IGNORED
from scalebench.workloads.distill_loss import Distilled
from scalebench.workloads.distill_teacher import RunningTeacher
from scalebench.workloads.distill_teacher import store as store_predictions

LENGTH, VOCABULARY = 24, 259  # 256 bytes and three special tokens
TEACHER = PARENT.replace('"gpt"\nparams = 3000', '"bert"\ndepth = 1\nwidth = 8\nheads = 1\nhidden = 16')
TEACHER = (
    TEACHER.replace('"parent"', '"teacher"')
    .replace("steps = 50", "steps = 5")
    .replace("length = 16", f"length = {LENGTH}")
)
PUPIL = STUDENT.replace('"gpt"\nparams = 1600', '"bert"\ndepth = 1\nwidth = 4\nheads = 1\nhidden = 8')
IN_FLOAT32: Any = type("Spec", (), {"precision": "float32"})


class Tables(nn.Module):
    """Logits of tokens (B, T, V) and of the next sentence (B, 2) that are rows of two tables, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.randn(VOCABULARY, VOCABULARY, dtype=torch.float64))
        self.follows = nn.Parameter(torch.randn(VOCABULARY, 2, dtype=torch.float64))

    def forward(self, tokens: Tensor, segments: Tensor) -> tuple[Tensor, Tensor]:
        return self.tokens[tokens], self.follows[tokens].mean(1) + segments.double().mean(1, keepdim=True)


def task() -> MaskedPairs:
    return MaskedPairs(open_data("stdlib", None, 0.2), LENGTH, 3, 0, 0.2, 8)


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.5)])
def test_the_gradient_is_that_of_the_formula_over_the_masked_tokens(weight: float, temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher, pairs = Tables(), Tables(), task()
    inputs, segments, labels, follows = batch = pairs.batch(0)
    learned = Distilled(pairs, RunningTeacher(teacher, pairs, IN_FLOAT32), weight, temperature)
    parameters = (student.tokens, student.follows)
    loss = learned.loss(student, batch)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)

    soft, hard, places = 0.0, 0.0, 0
    for row in range(len(inputs)):
        masked = [place for place in range(LENGTH) if labels[row, place] != IGNORED]
        nats = 0.0
        for place in masked:
            p = torch.softmax(teacher.tokens[inputs[row, place]].detach() / temperature, 0)
            q = torch.softmax(student.tokens[inputs[row, place]] / temperature, 0)
            soft = soft + (p * (p.log() - q.log())).sum()
            nats = nats - torch.softmax(student.tokens[inputs[row, place]], 0)[labels[row, place]].log()
            places += 1
        next_logits = student(inputs[row : row + 1], segments[row : row + 1])[1][0]
        hard = hard + nats / len(masked) - torch.softmax(next_logits, 0)[follows[row]].log()
    written = weight * temperature**2 * soft / places + (1 - weight) * hard / len(inputs)
    expected = torch.autograd.grad(written, parameters, allow_unused=True, materialize_grads=True)
    tolerance = 1e-12 if weight == 1 else 1e-6  # the cross-entropy of the tasks is in float32
    torch.testing.assert_close(loss, written, rtol=tolerance, atol=0, check_dtype=False)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def test_stored_predictions_are_of_the_masked_tokens_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    student, teacher, pairs = Tables(), Tables(), task()
    running = RunningTeacher(teacher, pairs, IN_FLOAT32)
    (tmp_path / "attempt").mkdir()
    stored = store_predictions(running, tmp_path / "attempt" / "teacher", 2, VOCABULARY, 1.5, torch.device("cpu"))
    masked = round(0.15 * (LENGTH - 3))
    values, classes, rest = stored.targets(1)
    assert values.shape == classes.shape == (3, masked, VOCABULARY)
    assert rest.shape == (3, masked)
    losses = []
    for each in (running, stored):
        learned = Distilled(pairs, each, 0.6, 1.5)
        losses.append(learned.loss(student, learned.batch(1)).detach())
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=0)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose results hold a teacher."""
    folder = tmp_path_factory.mktemp("bert")
    trained(folder, TEACHER)
    return folder


@pytest.mark.slow
def test_without_weight_on_the_teacher_bert_trains_bit_by_bit_as_without_one(base: Path) -> None:
    plain = PUPIL.replace('workload = "distill"\n', "").replace("[distill]", "[train]").replace('"student"', '"plain"')
    plain = plain.replace('teacher = {study = "teacher"}\n', f"sequence_length = {LENGTH}\n")
    (alone,) = trained(base, plain + "[data]\nvalidation_samples = 32\n")
    (row,) = trained(base, PUPIL, "distill.soft_weight=0.0")
    assert row["weights_sha256"] == alone["weights_sha256"]
    assert row["validation_loss_nats"] == alone["validation_loss_nats"]
    losses = [store.read_steps(each["attempt_dir"])["train_loss_nats"].tolist() for each in (row, alone)]
    assert losses[0] == losses[1]


@pytest.mark.slow
def test_a_bert_is_distilled_and_records_its_teachers_loss(base: Path) -> None:
    (teacher,) = store.load_results(base / "results" / "teacher").to_dict("records")
    (row,) = trained(base, PUPIL, "distill.soft_weight=0.7", "distill.temperature=2.0")
    assert row["loss_before_nats"] == pytest.approx(teacher["validation_loss_nats"], abs=1e-6)
    assert row["metric_mlm_loss_nats"] + row["metric_nsp_loss_nats"] == pytest.approx(row["validation_loss_nats"])
    assert row["teacher_flops"] == 5 * 4 * (teacher["flops_per_step"] // (3 * 4))


def test_a_regression_has_no_predictions_to_learn(tmp_path: Path) -> None:
    model = '"mlp"\ndepth = 1\nwidth = 4'
    teacher = PARENT.replace('"gpt"\nparams = 3000', model).replace("sequence_length = 16\n", "")
    trained(tmp_path, teacher.replace('"parent"', '"teacher"').replace("steps = 50", "steps = 1"))
    student = STUDENT.replace('"gpt"\nparams = 1600', model)
    assert "model.family: mlp: what it predicts of 'teacher' are no classes" in refused(tmp_path, student)


def test_students_on_the_fused_kernels_are_planned(tmp_path: Path) -> None:
    model = 'family = "gpt"\ndepth = 1\nwidth = 16\nheads = 1\nhead_dim = 16\nhidden = 16'
    teacher = PARENT.replace('family = "gpt"\nparams = 3000', model).replace('"parent"', '"teacher"')
    trained(tmp_path, teacher.replace("steps = 50", "steps = 1"))
    student = STUDENT.replace('family = "gpt"\nparams = 1600', model)
    ways = ("distill.precision=bfloat16", 'distill.implementation=["sdpa", "triton", "fused"]')
    graphs = [(each.trial.spec.implementation, each.trial.spec.graph) for each in planned(tmp_path, student, *ways)]
    assert graphs == [("sdpa", "none"), ("triton", "none"), ("fused", "blocks")]
