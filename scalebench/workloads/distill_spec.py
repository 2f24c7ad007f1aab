"""What a study can say about distillation ([distill]), and one trial's distillation with every value decided."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from scalebench.study import ParentSection
from scalebench.study.axes import Axis, Count, Finite
from scalebench.workloads.training_spec import TrainSection, TrainSpec

Weight = Annotated[float, Field(ge=0, le=1)]


class TeacherSection(ParentSection):
    """Which trials of another study are the teachers; each is a point of an axis. Students do not start from them."""

    KEY: ClassVar[str] = "distill.teacher"
    STARTS: ClassVar[bool] = False


class DistillSection(TrainSection):
    """How each student is trained: the fields of [train], its teachers, and which of their outputs it is trained on.

    ``flops`` is the budget of the student's training and of the teacher's forward passes together.
    """

    teacher: TeacherSection | None = None
    soft_weight: Axis[Weight] = (1.0,)  # λ; the labels have 1 - λ
    temperature: Axis[Finite] = (1.0,)
    top_k: Axis[Count] | None = None  # stored log-probabilities of each prediction; by default the teacher runs along


class DistillSpec(TrainSpec):
    """One trial's distillation, every value decided. What describes the teacher follows from the trial's parent."""

    soft_weight: float = Field(description="weight λ of the teacher's distribution in the loss; the labels have 1 - λ")
    temperature: float = Field(description="temperature of both distributions in the loss")
    top_k: int | None = Field(description="stored log-probabilities of a prediction; null where the teacher runs along")
    teacher_params: int = Field(description="parameters of the teacher")
    teacher_params_non_embedding: int = Field(description="parameters of the teacher without embeddings and output")
    teacher_forward_flops: int = Field(description="FLOPs of the teacher's forward pass of a sample")

    @property
    def teacher_step_flops(self) -> int:
        """FLOPs of the teacher's forward pass of a batch; 0 where nothing is learned of it."""
        return self.teacher_forward_flops * self.batch_size if self.soft_weight else 0
