"""A trained model, read back from the folder of its attempt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from scalebench.families import FAMILIES
from scalebench.store import StoreError, read_json
from scalebench.study import Trial
from scalebench.workloads import trial_of
from scalebench.workloads.building import build_model, configuration, plain_implementation
from scalebench.workloads.checkpoints import checkpoint_folder, checkpoints
from scalebench.workloads.classifier import with_head
from scalebench.workloads.quantize_file import QUANTIZED, read_quantized
from scalebench.workloads.weights import WEIGHTS, check_sha256, load_weights


def load_trained(attempt: Path, checkpoint: Path | None = None) -> tuple[Trial, nn.Module]:
    """Return an attempt's trial and its trained model, on the CPU, in evaluation mode.

    The weights are those of the end of the run, or of a ``checkpoint``, a folder in that of the attempt. A family from
    a file is run: whoever chose the attempt has read it with ``trial_of``, which refuses what the user did not name.
    Raises ``StoreError`` naming a file that is missing, damaged or changed.
    """
    trial, folder = trial_of(attempt, None), checkpoint or attempt
    check_size(trial, folder)
    built = build_model(trial, torch.device("cpu"), plain_implementation(trial.family))
    model = with_head(built, trial)
    load_weights(model, folder)
    if isinstance(recorded := _recorded_sha256(attempt, checkpoint), str):
        check_sha256(folder / WEIGHTS, recorded)
    return trial, model.eval()


def _recorded_sha256(attempt: Path, checkpoint: Path | None) -> Any:
    """Return the SHA-256 that was noted when the weights were written; None where none was."""
    described = {checkpoint_folder(attempt, step): about for step, about in checkpoints(attempt).items()}
    about = read_json(attempt / "record.json") if checkpoint is None else described.get(checkpoint, {})
    return about.get("weights_sha256")


def load_quantized(attempt: Path, sha256: str | None = None) -> tuple[Trial, nn.Module]:
    """Return the trial of an attempt and its quantised model, on the CPU, in evaluation mode.

    Raises ``StoreError`` for a file that is missing, damaged, changed, of another model, or packed for another CPU.
    """
    trial = trial_of(attempt, None)
    if sha256 is not None:
        check_sha256(attempt / QUANTIZED, sha256)
    return trial, read_quantized(trial, attempt, torch.device("cpu"))


def check_size(trial: Trial, folder: Path) -> None:
    """Raise ``StoreError`` for a trial whose model is larger than its file of weights, before anything is allocated."""
    path, config = folder / WEIGHTS, configuration(trial)
    counts = FAMILIES[trial.family].count(config, getattr(trial.spec, "sequence_length", None))
    size = path.stat().st_size if path.exists() else 0
    if counts.total > size:  # a weight has at least one byte
        raise StoreError(f"{path}: {size:,} bytes cannot hold the {counts.total:,} parameters of its trial")
