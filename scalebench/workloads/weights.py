"""Trained weights on disk: written by safetensors beside the record, and made a model again."""

from __future__ import annotations

import os
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from scalebench.families import FAMILIES
from scalebench.store import StoreError, read_json
from scalebench.study import Trial
from scalebench.workloads.building import build_model

WEIGHTS = "weights.safetensors"


def save_weights(model: nn.Module, attempt: Path) -> int:
    """Write the model's parameters and persistent buffers, tied ones once, and return the file's size in bytes.

    ``trial.json`` in the same folder says what the model is. The file is there whole or not at all.
    """
    path, temporary = attempt / WEIGHTS, attempt / f".{WEIGHTS}.tmp"
    try:
        save_model(model, str(temporary))
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path.stat().st_size


def load_trained(attempt: Path) -> tuple[Trial, nn.Module]:
    """Return an attempt's trial and its trained model, on the CPU; ``StoreError`` naming a file that cannot serve."""
    trial = Trial.model_validate(read_json(attempt / "trial.json")["trial"])
    # Weights are the same for every implementation; what trained on a GPU's kernels is read on any machine.
    plain = "sdpa" if "sdpa" in FAMILIES[trial.family].IMPLEMENTATIONS else "eager"
    model = build_model(trial, torch.device("cpu"), plain)
    try:
        load_model(model, attempt / WEIGHTS)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise StoreError(
            f"{attempt / WEIGHTS}: not the weights of this trial ({str(error).splitlines()[0]})"
        ) from error
    return trial, model.eval()
