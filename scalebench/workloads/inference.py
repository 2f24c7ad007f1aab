"""The workload "inference": its study table, its cost, its columns. ``inference_run`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError
from scalebench.families import FAMILIES, Counts
from scalebench.measure import clock, energy, memory
from scalebench.store import Column
from scalebench.study import Trial
from scalebench.workloads.base import (
    DEFAULT_SEQUENCE_LENGTH,
    FORWARDS_PER_STEP,
    SIZE_COLUMNS,
    STEP_FLOOR_S,
    Cost,
    Decided,
    Request,
    check_served,
    offering,
)
from scalebench.workloads.inference_spec import InferenceSection, InferenceSpec, call_flops, held_bytes

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "run inference calls repeatedly: latency, throughput, memory"
TABLE = "inference"
Section = InferenceSection
Spec = InferenceSpec
TAKES_WEIGHTS = False
KEEPS = ()
DEFAULT_NEW_TOKENS = 32

COLUMNS = (
    *SIZE_COLUMNS,
    Column("precision", "", "number format of the computation"),
    Column("latency_median_s", "s", "median time of a call"),
    Column("latency_p95_s", "s", "95th percentile of the time of a call; needs at least 20 calls"),
    Column("latency_p99_s", "s", "99th percentile of the time of a call; needs at least 100 calls"),
    Column("prefill_time_s", "s", "median time to the first generated token"),
    Column("decode_time_per_token_s", "s", "median over the calls of the mean time of a token after the first"),
    *(column for column in clock.COLUMNS if column.name == "timing_method"),
    Column("samples_per_s", "1/s", "samples per second at the median latency"),
    Column("tokens_per_s", "1/s", "generated tokens (or tokens of the forward pass) per second at the median latency"),
    Column("flops_per_call", "FLOP", "FLOPs of a call, a multiply-add counted as two"),
    Column("achieved_flops_per_s", "FLOP/s", "flops_per_call over the median latency"),
    Column("mfu", "1", "model FLOPs utilisation: achieved over peak FLOP/s"),
    *memory.PEAK_COLUMNS,
    *memory.CALL_COLUMNS,
    Column("weight_bytes", "B", "size of parameters and persistent buffers"),
    Column("kv_cache_bytes", "B", "size of the cache of keys and values, or of states, of a call"),
    *energy.COLUMNS,
)

if TYPE_CHECKING:
    from scalebench.workloads.recorder import Recorder


def decide(request: Request) -> Decided:
    """Decide prompt length and new tokens; a generating family's context holds both."""
    name, values = request.family_name, dict(request.values)
    check_served(request, values, "inference")
    generates = "generation" in request.family.CAPABILITIES
    if generates and values["implementation"] == "compile":
        raise InputError(
            "inference.implementation: torch.compile would recompile for every length of the cache; use eager or sdpa"
        )
    if not generates:
        _refuse_generation(name, values)
    if values["beams"] > 1 and values["temperature"] > 0:
        raise InputError("inference.beams: beam search does not sample; leave temperature at 0, or beams at 1")
    if values["temperature"] == 0 and (values["top_k"] or values["top_p"] < 1):
        raise InputError("inference.temperature: top_k and top_p need sampling; set it above 0")
    prompt = _prompt_length(request, values.pop("prompt_length", None))
    new = values["new_tokens"] = values.get("new_tokens") or (DEFAULT_NEW_TOKENS if generates else None)
    total = (prompt or 0) + (new or 0) or None
    config, counts = request.configure(total)
    if generates and total and total > config.context:
        raise InputError(f"inference.new_tokens: {prompt} + {new} tokens do not fit a context of {config.context}")
    return Decided(InferenceSpec.model_construct(**values, sequence_length=prompt), config, counts)


def _refuse_generation(name: str, values: Mapping[str, Any]) -> None:
    """Refuse the fields that need a family that generates."""
    plain = {"new_tokens": None, "temperature": 0, "top_k": 0, "top_p": 1, "beams": 1}
    for key, value in plain.items():
        if values.get(key) != value:
            raise InputError(f"inference.{key}: {name} generates nothing: leave it out; {offering('generation')}")


def _prompt_length(request: Request, length: int | None) -> int | None:
    if request.family.SEQUENCES:
        return length or DEFAULT_SEQUENCE_LENGTH
    if length is not None:
        raise InputError(f"inference.prompt_length: {request.family_name} takes no sequences: leave it out")
    return None


def cost(trial: Trial, counts: Counts) -> Cost:
    """Estimate a trial. Memory: weights, cache, and the activations of one layer.

    A forward pass is a third of a step's work, and generating takes one for each token.
    """
    spec: InferenceSpec = trial.spec
    family = FAMILIES[trial.family]
    config = family.Config(**trial.model)
    calls = spec.warmups + spec.repeats
    layer = counts.activation_bytes // max(1, int(trial.model.get("depth") or 1))
    memory_bytes = held_bytes(family, config, counts, spec) + layer * spec.batch_size * spec.beams
    floor_s = STEP_FLOOR_S / FORWARDS_PER_STEP * (spec.new_tokens or 1)
    return Cost(calls * call_flops(family, config, spec), calls, memory_bytes, floor_s)


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.inference_run import run as measure  # imports torch

    measure(trial, recorder)
