"""One trial: everything that can change a result, nothing that cannot; and the id made of it."""

from __future__ import annotations

import hashlib
import json

from scalebench.study.sections import Section

SCHEMA = 1
Scalar = bool | int | float | str | None


class TrainSpec(Section):
    """One trial's training, every value decided.

    ``graph`` says what runs as one: "none" launches operation by operation; "blocks" compiles a block of the model once
    for all of them, and "model" the model with its loss (``torch.compile``); "step" is "blocks" with forward, backward
    and update replayed as one CUDA graph.
    """

    steps: int
    batch_size: int
    accumulation: int
    checkpointing: bool
    sequence_length: int | None
    optimizer: str
    learning_rate: float
    schedule: str
    warmup_steps: int
    decay_fraction: float
    weight_decay: float
    beta1: float
    beta2: float
    momentum: float
    gradient_clip: float
    precision: str
    implementation: str
    graph: str = "none"
    seed: int


class InferenceSpec(Section):
    """One trial's inference, every value decided; ``sequence_length`` is what a forward pass, or the prompt, holds."""

    batch_size: int
    sequence_length: int | None
    new_tokens: int | None
    weight_dtype: str
    temperature: float
    top_k: int
    top_p: float
    beams: int
    repeats: int
    warmups: int
    implementation: str
    seed: int

    @property
    def precision(self) -> str:
        """What is computed in: the weights' type, float32 for int8 weights."""
        return "bfloat16" if self.weight_dtype == "bfloat16" else "float32"


class DataSpec(Section):
    """One trial's data: the source, what it takes of it, and the SHA-256 of the bytes it stood for when planned."""

    source: str
    vocab_size: int | None = None  # asked for; None where the source has its own
    validation_fraction: float
    validation_samples: int
    noise_std: float | None
    sha256: str


class Trial(Section):
    """One model trained, or put to work, once: everything that can change a result, nothing that cannot."""

    family: str
    model: dict[str, Scalar]  # every field of the family's Config
    train: TrainSpec | None = None  # this one
    inference: InferenceSpec | None = None  # or that one
    data: DataSpec
    device_kind: str
    schema_version: int = SCHEMA

    @property
    def work(self) -> TrainSpec | InferenceSpec:
        """What is done with the model, whichever it is."""
        work = self.train or self.inference
        assert work is not None
        return work


def trial_id(trial: Trial) -> str:
    """Return the first 16 hex digits of SHA-256 over the trial's canonical JSON: sorted keys, no white space."""
    canonical = json.dumps(trial.model_dump(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
