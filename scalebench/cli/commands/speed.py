"""`plan --speed`: the time of a training step on a GPU, kernel by kernel, at ceilings that one may name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalebench.cli.output import quantity, say, table
from scalebench.errors import InputError

if TYPE_CHECKING:
    from scalebench.running.planning import PlannedTrial

SHOWN_KERNELS = 6
CEILINGS = (700.0, 450.0, 2.8)  # TFLOP/s of products and of attention, TB/s of memory
H100 = "NVIDIA H100 80GB HBM3"  # the peak for utilisation on a machine without a GPU


def speed_ceilings(ceilings: Sequence[float] | None, *, speed: bool) -> Sequence[float]:
    """Return the rates for ``plan --speed``, none without it. Raises ``InputError`` for rates that it leaves unused."""
    if ceilings is not None and not speed:
        raise InputError("--ceilings: rates of the model that --speed adds; give --speed, too")
    return (ceilings or CEILINGS) if speed else ()


def step_tables(
    planned: Sequence[PlannedTrial], ceilings: Sequence[float], rows: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Return the model of a step of each fused gpt trial; ``ceilings``: products, attention, memory, in T/s.

    ``measured`` has what trials of that step took, by their ``rows`` (records by trial id); see ``measured_step``.
    """
    from scalebench.families import gpt
    from scalebench.measure.hardware import datasheet_peak, gpu_peak
    from scalebench.running.step_model import Ceilings, has_model, summary

    if not all(0 < rate < math.inf for rate in ceilings):
        raise InputError(f"--ceilings {' '.join(f'{rate:g}' for rate in ceilings)}: three positive numbers are needed")
    rates = Ceilings(*(1e12 * rate for rate in ceilings))
    tables: dict[str, dict[str, Any]] = {}
    for entry in planned:
        train = entry.trial.spec
        if not has_model(entry.trial):
            continue
        peak = datasheet_peak(H100, train.precision)
        if entry.trial.device_kind == "cuda":
            own_peak = gpu_peak(train.precision)
            peak = peak if own_peak.flops_per_s is None else own_peak
        config = gpt.Config(**entry.trial.model)  # type: ignore[arg-type]  # the plan has checked the fields
        name = f"depth {config.depth} width {config.width}, {train.batch_size} × {train.sequence_length} tokens"
        name += f" in {train.accumulation} micro-batch{'es' * (train.accumulation > 1)}"
        name += "" if train.gradient_sums else ", weight gradients in 16 bits"
        if name not in tables:
            tables[name] = {"step": name, **summary(config, train, rates, peak.flops_per_s), "measured": []}
        if (row := rows.get(entry.trial_id)) and (measured := measured_step(row, tables[name]["seconds"])):
            tables[name]["measured"].append(measured)
    return list(tables.values())


def measured_step(row: Mapping[str, Any], modelled_s: float) -> dict[str, Any] | None:
    """Return the median step time of a trial's record and its ratio to the model's; None if it has no valid time.

    Times of trials that shared the device with others are left out.
    """
    seconds = row.get("step_time_median_s")
    if row["status"] != "ok" or row.get("invalid_reason") or not row.get("timing_exclusive") or not seconds:
        return None
    known = {"trial_id": row["trial_id"], "graph": row.get("graph"), "device_name": row.get("device_name")}
    return {**known, "seconds": seconds, "ratio": seconds / modelled_s}


def print_steps(steps: Sequence[dict[str, Any]], ceilings: Sequence[float]) -> None:
    """Print for each size what takes longest, the rate, and its bottleneck."""
    products, attention, memory = ceilings
    say(f"at {products:g} TFLOP/s of products, {attention:g} of attention, {memory:g} TB/s: no measurement, a bound")
    if not steps:
        say('no trial of the family gpt with implementation = "fused" in 16 bits: only its kernels are modelled')
    for step in steps:
        rows = [
            (
                kernel["kernel"], f"{1e3 * kernel['seconds']:.2f}", f"{kernel['share']:.1%}",
                quantity(kernel["flops"] or None), quantity(kernel["bytes"], "B"), kernel["bound"],
            )
            for kernel in step["kernels"][:SHOWN_KERNELS]
        ]  # fmt: skip
        rest = sum(kernel["seconds"] for kernel in step["kernels"][SHOWN_KERNELS:])
        rows.append(("others", f"{1e3 * rest:.2f}", f"{rest / step['seconds']:.1%}", "", "", ""))
        table(step["step"], ("kernel", "ms", "share", "FLOPs", "bytes", "bound by"), rows)
        utilisation = "" if step["mfu"] is None else f", MFU {step['mfu']:.0%}"
        rate = f"{1e3 * step['seconds']:.1f} ms, {quantity(step['tokens_per_s'])} tokens/s{utilisation}"
        say(f"{rate}; beside the products, {step['holds_back']} takes longest")
        for trial in step["measured"]:
            where = f"{trial['device_name']}, graph {trial['graph']}"
            say(f"measured: {1e3 * trial['seconds']:.1f} ms, ×{trial['ratio']:.2f} of that ({where})")
