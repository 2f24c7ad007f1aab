"""What a study can say about training ([train]), and one trial's training with every value decided."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat

from scalebench.optim.optimizers import OPTIMIZERS
from scalebench.optim.schedules import SCHEDULES
from scalebench.study import Section
from scalebench.study.axes import Axis, Count, Finite, Fraction, LearningRate, Share, WholeNumber, one_of
from scalebench.workloads.base import DEVICES, IMPLEMENTATIONS, PRECISIONS
from scalebench.workloads.distribution import PARALLEL

BUDGETS = ("steps", "tokens", "tokens_per_param", "flops")
GRAPHS = ("auto", "none", "blocks", "model", "step")


class TrainSection(Section):
    """How each model is trained. At most one budget: steps, tokens, tokens_per_param or flops."""

    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = (BUDGETS,)

    steps: Axis[Count] | None = None
    tokens: Axis[Count] | None = None
    tokens_per_param: Axis[Finite] | None = None
    flops: Axis[Finite] | None = None
    batch_size: Axis[Count] = (16,)
    accumulation: Axis[Count] = (1,)
    checkpointing: Axis[bool] = (False,)
    sequence_length: Axis[Count] | None = None
    optimizer: Axis[Annotated[str, one_of(tuple(OPTIMIZERS))]] = ("adamw",)
    learning_rate: Axis[LearningRate] = ("auto",)
    schedule: Axis[Annotated[str, one_of(tuple(SCHEDULES))]] = ("wsd",)
    warmup_steps: Axis[WholeNumber] = (20,)
    decay_fraction: Axis[Share] = (0.8,)
    weight_decay: Axis[NonNegativeFloat] | None = None  # by default the optimizer's
    beta1: Axis[Fraction] = (0.9,)
    beta2: Axis[Fraction] = (0.95,)
    momentum: Axis[Fraction] = (0.9,)
    gradient_clip: Axis[Finite] = (1.0,)
    precision: Axis[Annotated[str, one_of(PRECISIONS)]] = ("float32",)
    implementation: Axis[Annotated[str, one_of(IMPLEMENTATIONS)]] = ("eager",)
    graph: Axis[Annotated[str, one_of(GRAPHS)]] = ("auto",)
    gradient_sums: Axis[bool] = (True,)  # in 16 bits with the implementation fused; others have no such products
    processes: Axis[Count] = (1,)
    parallel: Axis[Annotated[str, one_of(PARALLEL)]] = ("auto",)
    device: Axis[Annotated[str, one_of(DEVICES)]] = ("auto",)
    seed: Axis[WholeNumber] = (0,)


class TrainSpec(Section):
    """One trial's training, every value decided.

    ``graph`` is what runs as one: "none" launches operation by operation; "blocks" compiles a block of the model once
    for all of them, and "model" the model with its loss (``torch.compile``); "step" is "blocks" with forward, backward
    and update replayed as one CUDA graph. ``batch_size`` is that of all ``processes`` together.
    """

    steps: int = Field(description="optimizer steps of this trial")
    batch_size: int = Field(description="samples per step")
    accumulation: int = Field(description="micro-batches per step")
    checkpointing: bool = Field(description="activation checkpointing: blocks are recomputed in the backward pass")
    sequence_length: int | None = Field(description="tokens per sample")
    optimizer: str = Field(description="name of the optimizer")
    learning_rate: float = Field(description="peak learning rate")
    schedule: str = Field(description="learning-rate schedule")
    warmup_steps: int = Field(description="steps of linear warm-up")
    decay_fraction: float = Field(description="share of the steps in which the wsd schedule decays")
    weight_decay: float = Field(description="weight decay of matrices")
    beta1: float = Field(description="decay of the first moment")
    beta2: float = Field(description="decay of the second moment")
    momentum: float = Field(description="momentum of SGD and Muon")
    gradient_clip: float = Field(description="largest norm of the gradients")
    precision: str = Field(description="number format of the computation")
    implementation: str = Field(description="eager, sdpa, compile, triton or fused")
    graph: str = Field(default="none", description="what runs as one: none, blocks, model or step")
    gradient_sums: bool = Field(
        default=False, description="weight gradients are added in float32 by the products that compute them"
    )
    processes: int = Field(default=1, description="processes that train the model together")
    parallel: str = Field(default="none", description="how they share the work: none, ddp or fsdp")
    seed: int = Field(description="seed of initial weights and batches")
