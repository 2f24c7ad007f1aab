"""One quantisation trial: the parent's model and a converted copy of it, measured side by side in one process."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scalebench.families import FAMILIES
from scalebench.measure.memory import weight_bytes
from scalebench.study import Trial
from scalebench.tasks import Task
from scalebench.workloads.base import count_columns
from scalebench.workloads.building import build_model, configuration, planned_data, usable_device
from scalebench.workloads.effect import effect_columns, loss_columns, model_inputs, remember
from scalebench.workloads.loop import validate
from scalebench.workloads.quantize_convert import Conversion, OneType, convert, is_quantized
from scalebench.workloads.quantize_file import QUANTIZED, read_quantized, save_quantized
from scalebench.workloads.quantize_spec import SIMULATED, QuantizeSpec
from scalebench.workloads.recorder import Recorder
from scalebench.workloads.state import samples_seen
from scalebench.workloads.weights import load_weights, save_weights


def run(trial: Trial, recorder: Recorder) -> None:
    """Convert the parent's model and measure it beside the unchanged one."""
    QuantizeRun(trial, recorder).run()


class QuantizeRun:
    """A quantisation trial under way."""

    def __init__(self, trial: Trial, recorder: Recorder) -> None:
        self.trial, self.recorder, self.columns = trial, recorder, recorder.columns
        self.spec: QuantizeSpec = trial.spec

    def run(self) -> None:
        """Convert, compare, write and read back: the whole trial, in order."""
        device = usable_device(self.trial)
        task = self.prepare_task()
        self.recorder.claim(device)
        original = self.parent_model(device)
        before = remember(original, task, self.spec.model_copy(update={"precision": "float32"}), device)
        model, conversion = convert(original, self.spec)
        self.columns["startup_time_s"] = self.recorder.age_s()
        self.columns |= conversion_columns(conversion, self.columns["params"])
        if self.spec.scheme == SIMULATED:  # floats that few bits could hold: no bytes and no time are saved
            self.columns |= loss_columns(before, validate(model, task, self.spec, device))
            self.columns["weight_bytes_before"] = weight_bytes(before.model)
        else:
            self.columns |= effect_columns(before, model, spec=self.spec)
        self.columns["invalid_reason"] = conversion.invalid_reason or self.wrong_bytes()
        self.write(model, before.model, conversion, task)

    def prepare_task(self) -> Task:
        """Open the data and record what the trial's size and its parent's training decide."""
        family, config = FAMILIES[self.trial.family], configuration(self.trial)
        task = family.task(config, planned_data(self.trial), self.trial.data, self.spec)
        samples, tokens = samples_seen(Path(self.recorder.header["parent_dir"])), task.tokens_per_sample
        self.columns |= count_columns(family.count(config, self.spec.sequence_length))
        self.columns |= {"samples_seen": samples, "tokens_seen": samples and tokens and samples * tokens}
        return task

    def parent_model(self, device: torch.device) -> nn.Module:
        """Return the model with the parent's weights."""
        model, parent = build_model(self.trial, device), self.trial.parent
        assert parent is not None
        load_weights(model, Path(self.recorder.header["parent_dir"]), parent.weights_sha256)
        return model

    def wrong_bytes(self) -> str | None:
        """Return why the model's real bytes are not those of the closed form; None where they are."""
        real, expected = self.columns.get("weight_bytes"), self.columns["closed_form_bytes"]
        if real in (None, expected):
            return None
        return f"the weights take {real:,} bytes, and {self.spec.scheme} should take {expected:,}"

    def write(self, model: nn.Module, unchanged: nn.Module, conversion: Conversion, task: Task) -> None:
        """Write the model, read it back and compare outputs; without ``run.checkpoint`` nothing stays on disk."""
        attempt, device = self.recorder.attempt, next(unchanged.parameters()).device
        sha256, size = save_quantized(model, self.trial, attempt)
        loaded = read_quantized(self.trial, attempt, device)
        self.columns["round_trip_equal"] = same_outputs(model, loaded, task, self.spec, device)
        self.columns["quantized_file_bytes"] = size
        if not self.recorder.keeps_weights:
            (attempt / QUANTIZED).unlink()
            return
        self.columns["quantized_sha256"] = sha256
        if not conversion.copied:
            plain = in_floats(unchanged, model, conversion, self.spec)
            self.columns["weights_sha256"], self.columns["weights_file_bytes"] = save_weights(plain, attempt)


def conversion_columns(conversion: Conversion, params: int) -> dict[str, Any]:
    """Return what was converted, and what that should take."""
    return {
        "quantized_matrices": len(conversion.converted),
        "quantized_share": conversion.converted_params / params,
        "copied_layers": ", ".join(conversion.copied) or None,
        "closed_form_bytes": conversion.closed_form_bytes,
    }


@torch.no_grad()
def same_outputs(model: nn.Module, other: nn.Module, task: Task, spec: QuantizeSpec, device: torch.device) -> bool:
    """Return whether two models give the same outputs, bit by bit, for the first held-out sample."""
    inputs, keywords = model_inputs(model, task, spec, device)
    ours, theirs = (each(*inputs, **keywords) for each in (model, other))
    pairs = zip(_tensors(ours), _tensors(theirs), strict=True)
    return all(torch.equal(first, second) for first, second in pairs)


def _tensors(outputs: Any) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


@torch.no_grad()
def in_floats(unchanged: nn.Module, model: nn.Module, conversion: Conversion, spec: QuantizeSpec) -> nn.Module:
    """Return the family's own model with what the converted weights stand for, to generate, export or train from.

    What is computed with quantised activations, or added in another order, differs in its last digits.
    """
    plain = copy.deepcopy(unchanged).to(getattr(torch, spec.precision))
    inner = model.model if isinstance(model, OneType) else model
    for path in conversion.converted:
        plain.get_parameter(f"{path}.weight").copy_(dequantized(inner.get_submodule(path)))
    return plain


def dequantized(layer: nn.Module) -> Tensor:
    """Return a linear layer's weight (rows, width) in floats."""
    weight: Any = layer.weight
    if not is_quantized(weight):
        return weight
    if hasattr(weight, "scale_and_zero"):  # packed int4: what it multiplies the unit vectors to
        return nn.functional.linear(torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device), weight).T
    return weight.dequantize()
