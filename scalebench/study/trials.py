"""A trial, which has everything that can change its result and nothing else, and its id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Protocol

from scalebench.study.sections import Section

SCHEMA = 2
# Fields of specs that were added when trials had ids already, with the value that stands for "as before".
LATER: Mapping[str, Any] = {
    "processes": 1, "parallel": "none", "gradient_sums": False, "head": "own", "pooling": None, "head_classes": None,
}  # fmt: skip
# How the validation samples of a source are drawn, by the source's kind ("text" of "text:PATH"): 1 where none stands
# here. A change of what is drawn must raise the number, so that losses before and after belong to different trials.
VALIDATION_DRAWS: Mapping[str, int] = {}
CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)
Scalar = bool | int | float | str | None


class DataSpec(Section):
    """One trial's data: the source, which part of it, and the SHA-256 of its bytes when the trial was planned."""

    source: str
    vocab_size: int | None = None  # asked for; None where the source has its own
    validation_fraction: float
    validation_samples: int
    noise_std: float | None
    sha256: str


class Parent(Section):
    """What a trial starts from: the SHA-256 of another trial's weights and, if it continues that run, of its state."""

    weights_sha256: str
    state_sha256: str | None = None


class Trial(Section):
    """One run of one workload with one model: everything that can change its result, and nothing else."""

    workload: str
    family: str
    model: dict[str, Scalar]  # every field of the family's Config
    spec: Any  # the workload's Spec; its plain values where the trial was read from JSON (``workloads.read_trial``)
    data: DataSpec
    parent: Parent | None = None
    device_kind: str
    family_sha256: str | None = None  # of the file that the family comes from; None for a family that ships
    schema_version: int = SCHEMA


class Batching(Protocol):
    """The fields of a trial's spec that a task reads."""

    @property
    def batch_size(self) -> int:
        """Samples per batch."""

    @property
    def sequence_length(self) -> int | None:
        """Tokens per sample; None if samples are not sequences."""

    @property
    def seed(self) -> int:
        """Seed of the training batches."""


def trial_id(trial: Trial) -> str:
    """Return the first 16 hex digits of SHA-256 over the trial's canonical JSON: sorted keys, no white space.

    A field in ``LATER`` is left out if it has the value listed there, and so is the first way of drawing validation
    samples (``VALIDATION_DRAWS``), so that earlier trials keep their ids.
    """
    values = trial.model_dump()
    drawn = VALIDATION_DRAWS.get(trial.data.source.partition(":")[0], 1)
    if drawn > 1:
        values["data"]["validation_draw"] = drawn
    for name in [name for name, before in LATER.items() if values["spec"].get(name, ()) == before]:
        del values["spec"][name]
    if trial.family_sha256 is None:
        del values["family_sha256"]
    return hashlib.sha256(CANONICAL.encode(values).encode()).hexdigest()[:16]
