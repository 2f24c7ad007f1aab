"""Whether and how a trial trains in several processes, decided when it is planned; ``parallel`` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scalebench.errors import InputError

PARALLEL = ("auto", "ddp", "fsdp")
IMPLEMENTATIONS = ("eager", "sdpa")  # the fused kernels and compiled graphs hold gradients where torch does not look
SHARDED_OPTIMIZERS = ("sgd", "momentum", "nesterov", "adagrad", "rmsprop", "adam", "adamw")


def decided_parallel(train: Mapping[str, Any], *, continues: bool) -> str:
    """Decide ``train.parallel``: "none" for one process, which has nothing to share; ``InputError`` where it cannot be.

    ``train`` holds the decided values of [train]; ``continues`` is whether it goes on with a parent's run.
    """
    count, size, accumulation = train["processes"], train["batch_size"], train["accumulation"]
    if count == 1:
        return "none"
    if size % count:
        raise InputError(f"train.processes: {count} processes do not divide a batch of {size}; use a divisor of it")
    if accumulation > size // count:
        raise InputError(f"train.accumulation: {accumulation} micro-batches of the {size // count} samples per process")
    if train["implementation"] not in IMPLEMENTATIONS:
        able = " or ".join(IMPLEMENTATIONS)
        raise InputError(f"train.processes: implementation = {train['implementation']!r} runs in one; use {able}")
    parallel = "ddp" if train["parallel"] in ("auto", "none") else str(train["parallel"])
    if parallel == "fsdp":
        _check_sharded(train, continues=continues)
    return parallel


def _check_sharded(train: Mapping[str, Any], *, continues: bool) -> None:
    if train["optimizer"] not in SHARDED_OPTIMIZERS:
        able = ", ".join(SHARDED_OPTIMIZERS)
        raise InputError(f"train.parallel: fsdp cannot divide the update of {train['optimizer']}; it can of {able}")
    if train["precision"] == "float16":
        raise InputError("train.parallel: fsdp has no loss scaler for float16; use bfloat16")
    if continues:
        raise InputError('from.optimizer_state: a run is continued with parallel = "ddp" only')
