"""The state of a training run on disk: optimizer, loss scaler, random number generators, step.

Tensors are in ``state.safetensors``, everything else is JSON in that file's metadata.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from scalebench.store import StoreError, read_record
from scalebench.workloads.parallel import rank, whole_state
from scalebench.workloads.weights import STATE, check_sha256, replaced, sha256_of


@dataclass(frozen=True)
class TrainState:
    """Where a training run stands; that of a run that begins is empty.

    ``optimizer`` maps the index of a parameter to its state, ``generators`` a device kind to its generator's state.
    """

    step: int = 0
    samples_seen: int = 0
    optimizer: dict[int, dict[str, Any]] = field(default_factory=dict)
    scaler: dict[str, Any] = field(default_factory=dict)
    generators: dict[str, Tensor] = field(default_factory=dict)

    def restore(self, optimizer: Optimizer) -> None:
        """Give the optimizer its state back; its parameter groups keep their own settings."""
        if self.optimizer:
            optimizer.load_state_dict({"state": self.optimizer, "param_groups": optimizer.state_dict()["param_groups"]})

    def restore_generators(self, scaler: GradScaler) -> None:
        """Set torch's global random number generators, and the loss scaler of float16."""
        if self.scaler:
            scaler.load_state_dict(self.scaler)
        for kind, state in self.generators.items():
            if kind == "cpu":
                torch.set_rng_state(state)
            elif torch.cuda.is_available():
                torch.cuda.set_rng_state(state)


def rng_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of the random number generators that a run on ``device`` uses."""
    states = {"cpu": torch.get_rng_state()}
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def save_state(
    attempt: Path, optimizer: Optimizer, scaler: GradScaler, rng: dict[str, Tensor], step: int, samples_seen: int
) -> str:
    """Write the state of a run after ``step`` steps and return the file's SHA-256.

    Of several processes, all call this and the first one writes; the others return "".
    """
    tensors = {f"rng.{kind}": state for kind, state in rng.items()}
    plain: dict[str, dict[str, Any]] = {}
    for index, values in whole_state(optimizer).items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{index}.{name}"] = value.detach().cpu().contiguous()
            else:
                plain.setdefault(str(index), {})[name] = value
    about = {"step": step, "samples_seen": samples_seen, "optimizer": plain, "scaler": scaler.state_dict()}
    path = attempt / STATE
    if rank():
        return ""
    with replaced(path) as temporary:
        save_file(tensors, str(temporary), metadata={"state": json.dumps(about)})
    return sha256_of(path)


def samples_seen(attempt: Path) -> int | None:
    """Return the samples that the weights in a folder were trained on, as the state of their run has it.

    Without a state it is the number in the record beside the weights: for a fine-tuned model, the samples of that run.
    """
    path = attempt / STATE
    if not path.exists():
        recorded = read_record(attempt).get("samples_seen")
        return None if recorded is None else int(recorded)
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            return int(json.loads(file.metadata()["state"])["samples_seen"])
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: not the state of a training run ({error})") from error


def read_state(attempt: Path, sha256: str) -> TrainState:
    """Read the state that an attempt kept; ``StoreError`` when it is missing, damaged or another one."""
    path = attempt / STATE
    check_sha256(path, sha256)
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            about = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (OSError, KeyError, ValueError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: not the state of a training run ({error})") from error
    optimizer: dict[int, dict[str, Any]] = {int(index): dict(values) for index, values in about["optimizer"].items()}
    generators = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition(".")
        if kind == "rng":
            generators[rest] = tensor
        else:
            index, _, field_name = rest.partition(".")
            optimizer.setdefault(int(index), {})[field_name] = tensor
    return TrainState(about["step"], about["samples_seen"], optimizer, about["scaler"], generators)
