"""From a trial to what runs it: the device, the data, the model with its initial weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from scalekernels import Unsupported, unavailable_reason
from torch import nn

from scalebench.data import Data, open_data
from scalebench.families import FAMILIES, check_unchanged
from scalebench.study import Trial
from scalebench.workloads.base import KERNELS, unserved


def usable_device(trial: Trial) -> torch.device:
    """Return the trial's device, or raise ``Unsupported`` with why this machine cannot run it."""
    implementation = trial.spec.implementation
    if trial.device_kind == "cuda" and not torch.cuda.is_available():
        raise Unsupported("the trial asks for a CUDA device and this machine has none")
    if implementation not in FAMILIES[trial.family].IMPLEMENTATIONS:
        raise Unsupported(f"{trial.family} has no implementation {implementation!r}")
    if reason := unserved(trial):
        raise Unsupported(reason)
    if implementation in KERNELS and (reason := unavailable_reason()):
        raise Unsupported(reason)
    if trial.spec.precision == "float16" and trial.device_kind == "cpu":
        raise Unsupported(
            "float16 training needs a GPU: torch multiplies float16 matrices on a CPU about a hundred times more "
            "slowly than float32 ones (bfloat16 is the 16-bit format there)"
        )
    return torch.device(trial.device_kind)


def planned_data(trial: Trial) -> Data:
    """Open the trial's data source; ``RuntimeError`` when the data changed since the trial was planned."""
    spec = trial.data
    data = open_data(spec.source, spec.vocab_size, spec.validation_fraction)
    if data.sha256 != spec.sha256:
        raise RuntimeError(f"the data of {spec.source} changed since the trial was planned; plan again")
    return data


def configuration(trial: Trial) -> Any:
    """Return the Config of the trial's family; ``RuntimeError`` if the family's own file has changed since."""
    check_unchanged(trial.family, trial.family_sha256)
    return FAMILIES[trial.family].Config(**trial.model)


def build_model(trial: Trial, device: torch.device, implementation: str | None = None) -> nn.Module:
    """Return the model with initial weights from the trial's seed, in the trial's implementation by default.

    It is built on its device: a GPU initialises a billion weights quickly, with its own generator. The same seed
    gives other weights there than on a CPU, and the same ones for every implementation.
    """
    torch.manual_seed(trial.spec.seed)
    with device:
        built = FAMILIES[trial.family].build(configuration(trial), implementation or trial.spec.implementation)
    if trial.family_sha256 is not None:
        _check_count(trial, built)
    return built.to(device)


def plain_implementation(family: str) -> str:
    """Return the fastest implementation of a family that runs on any machine; weights are the same for all of them."""
    return "sdpa" if "sdpa" in FAMILIES[family].IMPLEMENTATIONS else "eager"


def _check_count(trial: Trial, model: nn.Module) -> None:
    """Raise ``RuntimeError`` if a model of a user's own file has other parameters than the file counts."""
    counted = FAMILIES[trial.family].count(configuration(trial), getattr(trial.spec, "sequence_length", None)).total
    if (built := sum(parameter.numel() for parameter in model.parameters())) != counted:
        raise RuntimeError(f"{trial.family}: count() returns {counted:,} parameters, the module has {built:,}")


def load_compiler() -> None:
    """Import what torch.compile needs, which takes seconds, before the GPU is claimed."""
    importlib.import_module("torch._dynamo")
    importlib.import_module("torch._inductor.compile_fx")


def compile_model(model: nn.Module, *, fullgraph: bool = False) -> Any:
    """Compile the model in place of running it operation by operation; ``Unsupported`` without a compiler."""
    _require_compiler(model)
    return torch.compile(model, fullgraph=fullgraph)


def compile_blocks(model: nn.Module) -> nn.Module:
    """Compile one block of the model for all of them, and the model's loss if it consists of plain operations.

    All blocks have the same code, with the weights as inputs, so compiling the first serves all. This takes seconds
    where compiling a deep model as a whole takes minutes; the cost is no fusion across block boundaries.
    """
    _require_compiler(model)
    blocks: Any = model.blocks
    for block in blocks:
        block.compile(fullgraph=getattr(model, "KEEPS_TYPE", False), dynamic=False)
    whole: Any = model
    if getattr(model, "GIVES_LOSSES", False) and not getattr(model, "KEEPS_TYPE", False):
        whole.losses = torch.compile(whole.losses, dynamic=False)
    return model


def _require_compiler(model: nn.Module) -> None:
    if next(model.parameters()).device.type == "cpu":
        from torch._inductor.cpp_builder import get_cpp_compiler
        from torch._inductor.exc import InvalidCxxCompiler

        try:
            get_cpp_compiler()
        except InvalidCxxCompiler as error:
            raise Unsupported("torch.compile needs a C++ compiler on a CPU and none was found") from error
