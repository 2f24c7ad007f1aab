"""The workload "quantize": a trained model with weights of fewer bits, beside the unchanged one.

Its loss, bytes and time are measured in one process with those of the unchanged model. ``quantize_run`` does it.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError
from scalebench.families import Counts
from scalebench.families.outline import outline
from scalebench.store import Column
from scalebench.workloads import effect
from scalebench.workloads.base import (
    SIZE_COLUMNS,
    STEP_FLOOR_S,
    Cost,
    Decided,
    Request,
    check_implementation,
    check_parent,
)
from scalebench.workloads.quantize_spec import (
    BITS,
    FORMATS,
    GROUPED,
    INT4,
    INT4_GROUPS,
    SIMULATED,
    QuantizeSection,
    QuantizeSpec,
)

if TYPE_CHECKING:
    from scalebench.study import Trial
    from scalebench.workloads.recorder import Recorder

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "store the weights of a trained model in fewer bits: loss added, bytes, latency"
TABLE = "quantize"
Section = QuantizeSection
Spec = QuantizeSpec
TAKES_WEIGHTS = True
KEEPS = ("quantized_sha256",)
TIMED_CALLS = 100  # forward passes of one sample that timing both models takes, about

COLUMNS = (
    *SIZE_COLUMNS,
    *effect.COLUMNS,
    Column("tokens_seen", "1", "tokens that the weights were trained on, those of all parents together"),
    Column("samples_seen", "1", "samples that the weights were trained on, those of all parents together"),
    Column("closed_form_bytes", "B", "bytes of the weights by the scheme's closed form; of simulated ones, if packed"),
    Column("quantized_matrices", "1", "linear layers that were converted"),
    Column("quantized_share", "1", "share of the parameters that were converted; a copy of a tied layer counts once"),
    Column("copied_layers", "", "converted layers that were tied and are a copy now, by name"),
    Column("round_trip_equal", "", "whether the model read back from its file gives the same outputs, bit by bit"),
    Column("quantized_sha256", "", "SHA-256 of quantized.safetensors, which has the weights as they are computed with"),
    Column("quantized_file_bytes", "B", "size of quantized.safetensors"),
    Column("weights_sha256", "", "SHA-256 of weights.safetensors; null where a copied layer makes it another model"),
    Column("weights_file_bytes", "B", "size of weights.safetensors"),
)


def decide(request: Request) -> Decided:
    """Decide scheme, bits and groups; a setting that a scheme does not use is left out, or one trial would be two."""
    check_parent(request, "quantisation")
    assert request.parent is not None
    values = {name: chosen[0] for name, chosen in QuantizeSection().filled_fields().items()} | dict(request.values)
    scheme = values["scheme"]
    check_implementation(request, values, "quantize")
    if scheme == INT4:
        _check_int4()
    parent = request.parent.spec
    length = getattr(parent, "sequence_length", None)
    config, counts = request.configure(length)
    spec = QuantizeSpec(
        scheme=scheme,
        bits=BITS[scheme] or _simulated_bits(values),
        group_size=_group_size(scheme, values),
        outer_layers=values["outer_layers"] and scheme not in FORMATS,
        precision=_precision(scheme, values["precision"]),
        implementation=values["implementation"],
        sequence_length=length,
        seed=request.values.get("seed", parent.seed),
    )
    if spec.linear_only:
        _check_layers(request, config, spec)
    return Decided(spec, config, counts)


def _check_int4() -> None:
    if find_spec("torchao") is None:
        raise InputError(f"quantize.scheme: {INT4!r} needs torchao, which is not installed: pip install torchao")


def _simulated_bits(values: dict[str, Any]) -> int:
    if (bits := values.get("bits")) is None:
        raise InputError(f"quantize.bits: scheme = {SIMULATED!r} needs a number of bits, 1 to 8")
    return int(bits)


def _group_size(scheme: str, values: dict[str, Any]) -> int | None:
    size = values.get("group_size")
    if scheme != INT4:
        return size if scheme in GROUPED else None
    if size not in (None, *INT4_GROUPS):
        allowed = ", ".join(map(str, INT4_GROUPS))
        raise InputError(f"quantize.group_size: {size}: {INT4} has groups of {allowed}")
    return size or INT4_GROUPS[0]


def _precision(scheme: str, requested: str) -> str:
    if scheme in FORMATS:
        return scheme
    return "bfloat16" if scheme == INT4 else requested


def _check_layers(request: Request, config: Any, spec: QuantizeSpec) -> None:
    """Refuse a model without a layer that the scheme can convert; layers that it skips make a row invalid later."""
    from scalebench.workloads.quantize_convert import layers, obstacle

    convertible = layers(outline(request.family, config, spec.implementation), outer=spec.outer_layers)
    if not convertible:
        missing = "linear layer" if spec.outer_layers else "hidden linear layer (outer_layers = true takes the others)"
        raise InputError(
            f"quantize.scheme: {spec.scheme!r} converts linear layers: {request.family_name} has no {missing}"
        )
    shapes = [tuple(layer.weight.shape) for layer in convertible.values()]
    kinds = ("cpu", "cuda") if request.device == "auto" else (request.device,)
    if all(obstacle(shape, spec, kind) for shape in shapes for kind in kinds):
        sides = ", ".join(sorted({f"{rows} x {width}" for rows, width in shapes}))
        raise InputError(f"quantize.group_size: {spec.group_size}: {spec.scheme} fits none of the matrices: {sides}")


def cost(trial: Trial, counts: Counts) -> Cost:
    """Estimate a trial: the held-out sample through both models, and the timed forward passes."""
    passes = 2 * (trial.data.validation_samples + TIMED_CALLS)
    memory_bytes = 2 * 4 * counts.total + counts.activation_bytes * min(64, trial.data.validation_samples)
    return Cost(counts.forward_flops * passes, passes, memory_bytes, STEP_FLOOR_S / 10)


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.quantize_run import run as measure  # imports torch

    measure(trial, recorder)
