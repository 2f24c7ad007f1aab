"""A trained model, read back from the folder of its attempt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scalebench.families import FAMILIES
from scalebench.store import StoreError
from scalebench.study import Trial
from scalebench.workloads import trial_of
from scalebench.workloads.building import build_model, configuration
from scalebench.workloads.classifier import with_head
from scalebench.workloads.weights import WEIGHTS, load_weights


def load_trained(attempt: Path) -> tuple[Trial, nn.Module]:
    """Return an attempt's trial and its trained model, on the CPU, in evaluation mode.

    Raises ``StoreError`` naming a file that is missing or damaged.
    """
    trial = trial_of(attempt)
    check_size(trial, attempt)
    # Weights are the same for every implementation: those trained on a GPU's kernels load on any machine.
    plain = "sdpa" if "sdpa" in FAMILIES[trial.family].IMPLEMENTATIONS else "eager"
    model = with_head(build_model(trial, torch.device("cpu"), plain), trial)
    load_weights(model, attempt)
    return trial, model.eval()


def check_size(trial: Trial, attempt: Path) -> None:
    """Raise ``StoreError`` for a trial whose model is larger than its file of weights, before anything is allocated."""
    path, config = attempt / WEIGHTS, configuration(trial)
    counts = FAMILIES[trial.family].count(config, getattr(trial.spec, "sequence_length", None))
    size = path.stat().st_size if path.exists() else 0
    if counts.total > size:  # a weight has at least one byte
        raise StoreError(f"{path}: {size:,} bytes cannot hold the {counts.total:,} parameters of its trial")
