"""What a study can say about fine-tuning ([finetune]), and one trial's fine-tuning with every value decided."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scalebench.study.axes import Axis, Count, Finite, one_of
from scalebench.workloads.training_spec import TrainSection, TrainSpec

METHODS = ("full", "lora")


class FinetuneSection(TrainSection):
    """How each model is fine-tuned: the fields of [train], and which weights are trained."""

    method: Axis[Annotated[str, one_of(METHODS)]] = ("full",)
    rank: Axis[Count] | None = None  # of LoRA's products
    alpha: Axis[Finite] | None = None  # they are scaled by alpha / rank
    matrices: Axis[str] | None = None  # names of linear layers, as in "qkv,out", or "all"


class FinetuneSpec(TrainSpec):
    """One trial's fine-tuning, every value decided. Rank, alpha and matrices are None where all weights are trained."""

    method: str = Field(description="what is trained: full (all weights) or lora")
    rank: int | None = Field(description="rank of LoRA's products")
    alpha: float | None = Field(description="LoRA's products are scaled by alpha / rank")
    matrices: str | None = Field(description="matrices that LoRA adds to")
