"""The loss of distillation and its gradient, against the written-out formula."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from scalebench.tasks import NextToken
from scalebench.workloads.distill_loss import (
    Distilled,
    divergence,
    log_probabilities,
    most_likely,
    truncated_divergence,
)
from scalebench.workloads.distill_teacher import RunningTeacher


class Linear(nn.Module):
    """Logits (B, T, 7) that are linear in one-hot tokens, in float64."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(7, 7, dtype=torch.float64))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.weight[tokens]


@pytest.mark.parametrize(("weight", "temperature"), [(1.0, 1.0), (0.3, 2.5), (0.7, 0.5)])
def test_the_gradient_is_autograds_of_the_written_out_formula(weight: float, temperature: float) -> None:
    torch.manual_seed(0)
    task = NextToken(
        corpus=None, sequence_length=3, batch_size=2, seed=0, validation_fraction=0.2, validation_samples=1
    )
    student, teacher = Linear(), Linear()
    batch = torch.randint(7, (2, 3)), torch.randint(7, (2, 3))
    learned = Distilled(
        task, RunningTeacher(teacher, task, type("S", (), {"precision": "float32"})), weight, temperature
    )
    loss = learned.loss(student, batch)
    (gradient,) = torch.autograd.grad(loss, student.weight)

    logits = student.weight[batch[0]]
    p = (teacher.weight[batch[0]].detach() / temperature).exp()
    q = (logits / temperature).exp()
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)
    soft = (p * (p.log() - q.log())).sum(-1).mean()
    likely = logits.exp() / logits.exp().sum(-1, keepdim=True)
    hard = -likely.gather(-1, batch[1][..., None]).log().mean()
    written = weight * temperature**2 * soft + (1 - weight) * hard
    (expected,) = torch.autograd.grad(written, student.weight)
    # The cross-entropy of the tasks is in float32, the divergence in float64.
    tolerance = 1e-12 if weight == 1 else 1e-6
    torch.testing.assert_close(loss, written, rtol=tolerance, atol=0, check_dtype=False)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=tolerance)
    if weight == 1:  # in closed form: T (q - p) of every logit, averaged over the 6 predictions
        closed = torch.zeros_like(gradient).index_add(0, batch[0].flatten(), (temperature * (q - p) / 6).flatten(0, 1))
        torch.testing.assert_close(gradient, closed.detach(), rtol=0, atol=1e-12)


def test_of_classes_outside_the_top_k_the_sum_alone_counts() -> None:
    torch.manual_seed(1)
    teacher, student = (log_probabilities(3 * torch.randn(5, 9, dtype=torch.float64), 1.0) for _ in range(2))
    whole, last = divergence(teacher, student), torch.zeros(5, dtype=torch.float64)
    for k in range(1, 10):
        truncated = truncated_divergence(*most_likely(teacher, k), student)
        order = teacher.exp().argsort(-1, descending=True)
        p, q = (values.exp().gather(-1, order) for values in (teacher, student))
        p, q = (torch.cat([part[:, :k], part[:, k:].sum(-1, keepdim=True)], -1) for part in (p, q))
        expected = torch.where(p > 0, p * (p / q).log(), 0.0).sum(-1)
        torch.testing.assert_close(truncated, expected, rtol=1e-12, atol=1e-14)
        assert (truncated >= last - 1e-12).all()  # more classes tell more apart
        last = truncated
    torch.testing.assert_close(last, whole)


def test_the_gradient_of_a_truncated_divergence_is_finite_and_sums_to_zero() -> None:
    teacher, logits = torch.tensor([[40.0, 0.0, -40.0, -90.0]]), torch.randn(1, 4, requires_grad=True)
    stored = most_likely(log_probabilities(teacher, 1.0), 2)
    truncated_divergence(*stored, log_probabilities(logits, 1.0)).sum().backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert abs(float(logits.grad.sum())) < 1e-6
