"""Distillation of images, and the studies that ship."""

from __future__ import annotations

from pathlib import Path

import pytest
from parent_support import STUDENT, refused, trained

from scalebench.running.chain import ancestors
from scalebench.running.parents import ParentTrial
from scalebench.running.planning import load_study, plan, resolve
from scalebench.study import Parent

IMAGES = """
schema = 1
name = "teacher"
[model]
family = "mlp"
depth = 1
width = 12
[train]
steps = 2
batch_size = 4
[data]
source = "digits"
validation_samples = 16
[run]
checkpoint = true
memory = "allocator"
"""


def test_images_are_distilled_into_another_family(tmp_path: Path) -> None:
    trained(tmp_path, IMAGES)
    student = STUDENT.replace('"gpt"\nparams = 1600', '"mlp"\ndepth = 1\nwidth = 8\n')
    (row,) = trained(tmp_path, student, "distill.steps=2")
    assert (row["family"], row["source"]) == ("mlp", "digits")
    assert row["loss_added_nats"] is not None
    (stored,) = trained(tmp_path, student, "distill.steps=2", "distill.top_k=10", "distill.soft_weight=0.5")
    assert stored["validation_loss_nats"] == pytest.approx(row["validation_loss_nats"], abs=0.1)
    larger = student.replace('"mlp"\ndepth = 1\nwidth = 8\n', '"cnn"\nparams = 2000\nimage_size = 16\n')
    assert "it reads images of 8 pixels a side, and the student of 16" in refused(tmp_path, larger)
    assert "it cannot read 'stdlib'" in refused(tmp_path, STUDENT, "data.source=stdlib")


@pytest.mark.parametrize("ending", ["", "-gpu"])
def test_the_studies_that_ship_have_equal_budgets_that_supervised_training_spans(ending: str) -> None:
    """Planned with the teachers that their study would train; no trial runs."""
    teachers = [
        ParentTrial(
            each.trial_id, "base", each.trial, Path(), Parent(weights_sha256="0" * 64), each.flops, starts=False
        )
        for each in plan(load_study(f"lifecycle-base{ending}", ["train.seed=0"]))
    ]
    points = [*load_study(f"distill{ending}").points()]
    students = [resolve("distill", point, teacher) for point in points for teacher in teachers]
    alone = plan(load_study(f"distill-supervised{ending}", ["train.seed=0"]))
    budgets = {point["distill.flops"] for point in points}
    assert [study.name for study in ancestors(load_study(f"distill{ending}"))] == [f"lifecycle-base{ending}"]
    assert len(teachers) == 4
    assert len({student.trial_id for student in students}) == 4 * len(points)
    for student in students:
        assert min(abs(student.flops / budget - 1) for budget in budgets) < 0.02
        spec, same = student.trial.spec, [each for each in alone if each.counts.total == student.counts.total]
        assert {(each.trial.spec.batch_size, each.trial.spec.sequence_length) for each in same} == {
            (spec.batch_size, spec.sequence_length)
        }
        steps = [each.steps for each in same]
        assert min(steps) <= 1.15 * student.steps  # on as little data, lengths within 15 % counting as one
        assert max(each.flops for each in same) >= student.flops + min(teacher.flops for teacher in teachers)
