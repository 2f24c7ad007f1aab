"""A quantised model on disk: ``quantized.safetensors`` has every weight as it is computed with.

A weight of torchao's is stored as the tensors inside it, named ``weight.qdata``, ``weight.scale`` and so on. Reading
builds the model, converts it the same way and copies the tensors in, so the file needs no code and no pickle.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from scalebench.store import StoreError
from scalebench.study import Trial
from scalebench.workloads import int4
from scalebench.workloads.building import build_model
from scalebench.workloads.quantize_convert import OneType, convert, is_quantized
from scalebench.workloads.quantize_spec import INT4
from scalebench.workloads.weights import replaced, sha256_of

QUANTIZED = "quantized.safetensors"


def inner_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return every stored tensor of a model by name, tied ones once; of a quantised one those inside it."""
    model = model.model if isinstance(model, OneType) else model
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    stored = {name: tensors[name] for name in model.state_dict() if name in tensors}
    flat: dict[str, Tensor] = {}
    for name, tensor in stored.items():
        if is_quantized(tensor):
            parts: Any = tensor
            flat |= {f"{name}.{part}": getattr(tensor, part) for part in parts.__tensor_flatten__()[0]}
        else:
            flat[name] = tensor.detach()
    return flat


def save_quantized(model: nn.Module, trial: Trial, attempt: Path) -> tuple[str, int]:
    """Write a converted model's tensors; return the file's SHA-256 and its bytes."""
    path = attempt / QUANTIZED
    tensors = {name: tensor.cpu().contiguous() for name, tensor in inner_tensors(model).items()}
    with replaced(path) as temporary:
        save_file(tensors, str(temporary), metadata={"layout": layout(trial, model)})
    return sha256_of(path), path.stat().st_size


def read_quantized(trial: Trial, attempt: Path, device: torch.device) -> nn.Module:
    """Return the quantised model of a trial from its file in an attempt's folder, in evaluation mode.

    Raises ``StoreError`` for a file that is missing, damaged, of another model, or packed for another CPU.
    """
    path = attempt / QUANTIZED
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            packed_as = (file.metadata() or {}).get("layout")
        tensors = load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: not a quantised model ({str(error).splitlines()[0]})") from error
    model = build_model(trial, device)
    if packed_as != (own_layout := layout(trial, model)):
        raise StoreError(f"{path}: its weights are packed as {packed_as!r}, and this machine's are {own_layout!r}")
    model, _ = convert(model, trial.spec)
    own = inner_tensors(model)
    if wrong := {name for name in {*own, *tensors} if _form(own.get(name)) != _form(tensors.get(name))}:
        raise StoreError(
            f"{path}: not the weights of this trial: {', '.join(sorted(wrong)[:3])} differ in shape or type"
        )
    for name, tensor in own.items():
        tensor.copy_(tensors[name])
    return model


def layout(trial: Trial, model: nn.Module) -> str:
    """Return how the bytes are arranged: int4 is packed for the device that the model is on, all else is plain."""
    return int4.layout(next(model.parameters()).device.type) if trial.spec.scheme == INT4 else "plain"


def _form(tensor: Tensor | None) -> tuple[Any, ...] | None:
    return None if tensor is None else (tuple(tensor.shape), tensor.dtype)
