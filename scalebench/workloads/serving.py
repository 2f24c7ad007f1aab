"""The workload "serving": its study table, its cost, its columns. ``serving_run`` does it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError
from scalebench.families import FAMILIES, Counts
from scalebench.measure import energy, memory
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
from scalebench.workloads.serving_columns import COLUMNS as TIME_COLUMNS
from scalebench.workloads.serving_spec import (
    DEFAULT_LOAD,
    LOADS,
    ServingSection,
    ServingSpec,
    bounds,
    held_bytes,
    request_flops,
)

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "serve a language model to many requests: how many per second it answers, how long they wait"
TABLE = "serving"
Section = ServingSection
Spec = ServingSpec
TAKES_WEIGHTS = False
KEEPS = ()
DEFAULT_NEW_TOKENS = 32

COLUMNS = (
    *SIZE_COLUMNS,
    Column("precision", "", "number format of the computation"),
    Column("capacity_requests_per_s", "1/s", "requests answered per second while the batch is full"),
    Column("capacity_tokens_per_s", "1/s", "tokens generated per second while the batch is full"),
    Column("capacity_time_per_request_s", "s", "one over capacity_requests_per_s: what a request costs"),
    Column("offered_requests_per_s", "1/s", "requests that arrived per second, on average; null for users"),
    *TIME_COLUMNS,
    Column("timing_method", "", "how times were taken"),
    Column("flops_per_request", "FLOP", "FLOPs of a request of mean length, a multiply-add counted as two"),
    Column("achieved_flops_per_s", "FLOP/s", "flops_per_request times capacity_requests_per_s"),
    Column("mfu", "1", "model FLOPs utilisation at capacity: achieved over peak FLOP/s"),
    *memory.PEAK_COLUMNS,
    Column("weight_bytes", "B", "size of parameters and persistent buffers"),
    Column("kv_cache_bytes", "B", "size of the cache of keys and values of all sequences of a batch"),
    *energy.COLUMNS,
)

if TYPE_CHECKING:
    from scalebench.workloads.recorder import Recorder


def decide(request: Request) -> Decided:
    """Decide how requests arrive, and their lengths; the model's context holds the longest."""
    name, values = request.family_name, dict(request.values)
    if "batching" not in request.family.CAPABILITIES:
        raise InputError(f"model.family: {name} continues no batch of sequences; {offering('batching')}")
    check_served(request, values, "serving")
    given = [load for load in LOADS if values.get(load) is not None]
    if len(given) > 1:
        raise InputError(f"serving.{given[1]}: requests arrive in one way; leave out {given[1]} or {given[0]}")
    values |= dict.fromkeys(LOADS) | ({load: values[load] for load in given} or {"load": DEFAULT_LOAD})
    prompt = values["prompt_length"] = values.get("prompt_length") or DEFAULT_SEQUENCE_LENGTH
    new = values["new_tokens"] = values.get("new_tokens") or DEFAULT_NEW_TOKENS
    longest, most = (bounds(mean, values["spread"])[1] for mean in (prompt, new))
    for objective in ("first_token_within_s", "token_within_s"):
        values.setdefault(objective, None)
    config, counts = request.configure(longest + most)
    if longest + most > config.context:
        raise InputError(
            f"serving.new_tokens: the longest request, {longest} + {most} tokens, does not fit a context of "
            f"{config.context}"
        )
    return Decided(ServingSpec.model_construct(**values, sequence_length=longest), config, counts)


def cost(trial: Trial, counts: Counts) -> Cost:
    """Estimate a trial. Memory: weights, cache, and the activations of one layer for the longest prompt.

    As many requests are served to find the capacity as are measured; each is a step. A pass is a third of a training
    step's work, and a low load takes its time.
    """
    spec: ServingSpec = trial.spec
    family = FAMILIES[trial.family]
    config: Any = family.Config(**trial.model)
    phases = 1 if spec.concurrency == spec.max_batch else 2
    requests = phases * (spec.warmups + spec.requests)
    passes = 1 + spec.new_tokens / min(spec.max_batch, spec.concurrency or spec.max_batch)  # for each request
    layer = counts.activation_bytes // max(1, int(trial.model.get("depth") or 1))
    memory_bytes = held_bytes(config, counts, spec) + layer
    flops = requests * request_flops(family, config, spec)
    floor_s = passes * STEP_FLOOR_S / FORWARDS_PER_STEP * (1 + spec.idle_time) / 2
    return Cost(flops, requests, memory_bytes, max(floor_s, 0.5 / (spec.requests_per_s or math.inf)))


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.serving_run import run as measure  # imports torch

    measure(trial, recorder)
