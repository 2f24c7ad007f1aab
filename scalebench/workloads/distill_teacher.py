"""Soft targets: of a teacher that runs beside its student, or stored log-probabilities of its likeliest classes."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from scalebench.families import FAMILIES
from scalebench.study import Trial
from scalebench.tasks import Batch, GivesLogits
from scalebench.workloads.batches import to_device
from scalebench.workloads.building import configuration, plain_implementation
from scalebench.workloads.distill_loss import divergence, log_probabilities, most_likely, truncated_divergence
from scalebench.workloads.loop import Computation, computing
from scalebench.workloads.weights import load_weights

SHARD_BYTES = 64 << 20  # of one file of stored log-probabilities
INDEX_TYPES = ((2**8, torch.uint8), (2**15, torch.int16), (2**31, torch.int32))


def load_teacher(trial: Trial, attempt: Path, sha256: str, device: torch.device) -> nn.Module:
    """Return a trained model for evaluation, none of its weights trainable; raises ``StoreError`` as loading does."""
    with device:
        model = FAMILIES[trial.family].build(configuration(trial), plain_implementation(trial.family)).to(device)
    load_weights(model, attempt, sha256)
    return model.eval().requires_grad_(requires_grad=False)


@dataclass(frozen=True)
class RunningTeacher:
    """A teacher that reads every batch of its student."""

    model: nn.Module
    task: GivesLogits
    spec: Computation

    def targets(self, step: int) -> Batch:  # noqa: ARG002 - whatever the step
        """Return nothing: the teacher reads the batch itself."""
        return ()

    @torch.no_grad()
    def log_probabilities(self, batch: Batch, temperature: float) -> Tensor:
        """Return the teacher's log-probabilities of each prediction, (…, V)."""
        with computing(self.model, batch[0].device, self.spec.precision):
            return log_probabilities(self.task.logits(self.model, batch), temperature)

    def divergence(self, batch: Batch, student: Tensor, temperature: float) -> Tensor:
        """Return KL(teacher ‖ student) of each prediction (…), for the student's log-probabilities (…, V)."""
        return divergence(self.log_probabilities(batch, temperature), student)


@dataclass(frozen=True)
class StoredTeacher:
    """The log-probabilities that ``store`` wrote into ``folder``, ``steps_per_file`` batches in each file."""

    folder: Path
    steps_per_file: int

    @cached_property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(path.stat().st_size for path in self.folder.iterdir())

    def targets(self, step: int) -> Batch:
        """Return log-probabilities (B, …, k), their classes (B, …, k) and the log of the others' sum (B, …)."""
        number, row = divmod(step, self.steps_per_file)
        with safe_open(str(_shard(self.folder, number)), "pt") as file:
            values, classes, rest = (file.get_slice(name)[row] for name in ("values", "classes", "rest"))
        return values, classes.long(), rest

    def divergence(self, batch: Batch, student: Tensor, temperature: float) -> Tensor:  # noqa: ARG002 - that of ``store``
        """Return KL(teacher ‖ student) of each prediction (…), of the stored classes and all others as one."""
        values, classes, rest = batch[-3:]
        return truncated_divergence(values, classes, rest, student)

    def remove(self) -> None:
        """Delete the files: the teacher can write them again."""
        shutil.rmtree(self.folder)


def store(
    teacher: RunningTeacher, folder: Path, steps: int, k: int, temperature: float, device: torch.device
) -> StoredTeacher:
    """Write the ``k`` largest log-probabilities at a temperature of all predictions in the batches of ``steps`` steps.

    Values are float32 and classes the smallest integers that hold them, in safetensors files. What attempts of the
    trial that were killed have left is deleted, of this one, too, where it was requeued.
    """
    for left in folder.parent.parent.glob(f"*/{folder.name}"):
        shutil.rmtree(left)
    folder.mkdir()
    per_file = 0
    pending: list[tuple[Tensor, ...]] = []
    for step in range(steps):
        pending.append(_of_batch(teacher, step, k, temperature, device))
        per_file = per_file or max(1, SHARD_BYTES // _bytes(pending[0]))
        if len(pending) == per_file or step == steps - 1:
            names = ("values", "classes", "rest")
            parts = (torch.stack(part) for part in zip(*pending, strict=True))
            save_file(dict(zip(names, parts, strict=True)), _shard(folder, step // per_file))
            pending.clear()
    return StoredTeacher(folder, per_file)


def _of_batch(
    teacher: RunningTeacher, step: int, k: int, temperature: float, device: torch.device
) -> tuple[Tensor, ...]:
    """Return what is stored of the batch of one step, on the CPU."""
    batch = to_device(teacher.task.batch(step), device)
    log = teacher.log_probabilities(batch, temperature)
    values, classes, rest = most_likely(log, k)
    index = next(dtype for limit, dtype in INDEX_TYPES if log.size(-1) <= limit)
    return values.cpu(), classes.to(index).cpu(), rest.cpu()


def _bytes(tensors: tuple[Tensor, ...]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _shard(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.safetensors"
