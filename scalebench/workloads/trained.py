"""A trained model, read back from the folder of its attempt."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from scalebench.families import FAMILIES
from scalebench.store import read_header
from scalebench.study import Trial
from scalebench.workloads import read_trial
from scalebench.workloads.building import build_model
from scalebench.workloads.weights import load_weights


def load_trained(attempt: Path) -> tuple[Trial, nn.Module]:
    """Return an attempt's trial and its trained model, on the CPU, in evaluation mode.

    Raises ``StoreError`` naming a file that is missing or damaged.
    """
    trial = read_trial(read_header(attempt)["trial"])
    # Weights are the same for every implementation: those trained on a GPU's kernels load on any machine.
    plain = "sdpa" if "sdpa" in FAMILIES[trial.family].IMPLEMENTATIONS else "eager"
    model = build_model(trial, torch.device("cpu"), plain)
    load_weights(model, attempt)
    return trial, model.eval()
