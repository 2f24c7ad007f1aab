"""The table [finetune] of a study, and one trial's values with all defaults decided."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scalebench.study.axes import Axis, Count, Finite, one_of
from scalebench.workloads.heads import HEADS
from scalebench.workloads.training_spec import TrainSection, TrainSpec

METHODS = ("full", "lora")


class FinetuneSection(TrainSection):
    """How each model is fine-tuned: the fields of [train], which weights are trained, and for which head."""

    method: Axis[Annotated[str, one_of(METHODS)]] = ("full",)
    rank: Axis[Count] | None = None  # of LoRA's products
    alpha: Axis[Finite] | None = None  # they are scaled by alpha / rank
    matrices: Axis[str] | None = None  # names of linear layers, as in "qkv,out", or "all"
    head: Axis[Annotated[str, one_of(HEADS)]] = ("own",)  # what the model puts out: what it did, or classes
    pooling: Axis[str] | None = None  # which hidden state a head of classes reads
    head_classes: Axis[Count] | None = None  # by default as many as the data has labels


class FinetuneSpec(TrainSpec):
    """One trial's fine-tuning, every value decided.

    Rank, alpha and matrices are None where all weights are trained; pooling and head_classes without such a head.
    """

    method: str = Field(description="what is trained: full (all weights) or lora")
    rank: int | None = Field(description="rank of LoRA's products")
    alpha: float | None = Field(description="LoRA's products are scaled by alpha / rank")
    matrices: str | None = Field(description="matrices that LoRA adds to")
    head: str = Field(default="own", description="what the model puts out: own (its family's outputs) or classes")
    pooling: str | None = Field(default=None, description="hidden state that a head of classes reads")
    head_classes: int | None = Field(default=None, description="classes of the head")

    @property
    def changed_form(self) -> str | None:
        """Why the saved weights are not those of the family's own model; None if they are."""
        return None if self.head == "own" else f"has a head of {self.head_classes} classes"
