"""Warnings about a table of points, one line each: wrong units, runs with many rows, evaluation sets mixed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scalebench.errors import number_of
from scalebench.laws.columns import FLOPS_PER_PARAMETER_TOKEN
from scalebench.points.batches import texts
from scalebench.points.files import is_export, open_table
from scalebench.points.table import PointTable, read_texts

RUN_NAMES = ("run", "run_name", "run_id", "run_uuid", "run id", "name")  # of columns, in any case
# What makes trials separate experiments.
SETTINGS = ("study", "workload", "family", "implementation", "optimizer", "precision", "device_name")
# Names of losses in other units than nats, and what turns them into nats.
UNITS = {
    ("ppl", "perplexity"): "a perplexity; the laws need nats: take its logarithm",
    ("bpb", "bits", "bit_per", "bpc"): "in bits; the laws need nats: times 0.693 (ln 2)",
}
PERPLEXITIES = "perplexities?"  # the question on losses that are too high, where their name does not answer it
HIGHEST_NATS = 15.0  # a uniform guess among 3 million tokens
MOST_TOKENS_PER_PARAMETER = 1e5  # 50 times what Llama 3 8B was trained on
LEAST_TOKENS_PER_PARAMETER = 1e-2
FACTOR = 30.0  # between FLOPs and 6ND, far beyond what attention, embeddings or recomputation change
INPUTS = ("params", "tokens", "flops", "unique_tokens")
SPREAD = 1.25  # between the losses of equal inputs, far beyond the noise of seeds


def run_column(names: Sequence[str]) -> str | None:
    """Return the column that by its name holds the runs, if there is one."""
    by_lower = {name.lower(): name for name in reversed(names)}
    return next((by_lower[name] for name in RUN_NAMES if name in by_lower), None)


def table_warnings(path: Path, table: PointTable) -> list[str]:
    """Return warnings about points that were read from a table."""
    return [*_loss_warnings(table), *_run_warnings(path, table), *_mixed_warnings(path, table)]


def _loss_warnings(table: PointTable) -> list[str]:
    name = table.columns.get("loss", table.columns.get("y", ""))
    return [
        f"column {name!r} looks like {unit}"
        for parts, unit in UNITS.items()
        if any(part in name.lower() for part in parts)
    ]


def _run_warnings(path: Path, read: PointTable) -> list[str]:
    """Name a column of runs that repeat, unless it is in use."""
    table = open_table(path)
    name = run_column(table.names)
    if name is None or name in read.columns.values() or len(read) < 2:
        return []
    counts: dict[str, int] = {}
    for batch in table.batches([name]):
        for run in texts(batch.column(name)):
            counts[run] = counts.get(run, 0) + 1
    if len(counts) == len(read) or sum(counts.values()) != len(read):  # each once, or rows were selected
        return []
    longest = max(counts, key=lambda run: counts[run])
    runs, rows = number_of(len(counts), "run"), number_of(len(read), "row")
    return [
        f"column {name!r} names {runs} for {rows} ({longest!r}: {counts[longest]}): checkpoints of one run "
        "are not independent, and intervals that count them so are too narrow; "
        f"--run-column {name!r} counts each run once, with --last only its last row"
    ]


def _mixed_warnings(path: Path, read: PointTable) -> list[str]:
    """Name what the selected trials of an exported table differ in beside size, data and seed."""
    table = open_table(path)
    if not is_export(table):
        return []
    names = [name for name in SETTINGS if name in {*table.names} - {*read.columns.values()}]
    mixed = [name for name, values in read_texts(path, names, read.where).items() if len({*values}) > 1]
    differ = f"these trials differ in {', '.join(mixed)}: choose with --where, otherwise the fit mixes them"
    return [differ] if mixed else []


def unit_warnings(values: Mapping[str, Any]) -> list[str]:
    """Return warnings about values by role, each (n,): parameters, tokens, FLOPs and loss that do not go together."""
    return [*_size_warnings(values), *_flops_warnings(values), *_spread_warnings(values)]


def _size_warnings(values: Mapping[str, Any]) -> list[str]:
    if not {"params", "tokens"} <= set(values):
        return []
    params, tokens = (np.asarray(values[role], dtype=float) for role in ("params", "tokens"))
    ratio = float(np.median(tokens / params))
    sizes, data = (f"{counts.min():,.6g} to {counts.max():,.6g}" for counts in (params, tokens))
    ranges = f"parameters of {sizes} beside {data} tokens"
    if ratio > MOST_TOKENS_PER_PARAMETER:
        return [f"{ranges}: are the parameters in {_unit(params)}? Write counts, such as 124e6 or 124M"]
    if ratio < LEAST_TOKENS_PER_PARAMETER and tokens.max() < params.max():
        slip = f"are the tokens in {_unit(tokens)}? Or are the columns swapped?"
        return [f"{ranges}: {slip} Write counts, such as 300e9 or 300B"]
    if max(params.max(), tokens.max()) < 1e6 and params.min() >= 1 and ratio > 1:
        return [f"{ranges}: are both in millions? FLOPs (6ND) and predictions need counts, such as 124e6 or 124M"]
    return []


def _unit(values: Any) -> str:
    return "billions" if np.median(values) < 100 and values.min() < 1 else "millions"


def _flops_warnings(values: Mapping[str, Any]) -> list[str]:
    if not {"params", "tokens", "flops"} <= set(values):
        return []
    expected = FLOPS_PER_PARAMETER_TOKEN * np.asarray(values["params"]) * np.asarray(values["tokens"])
    factor = float(np.median(np.asarray(values["flops"]) / expected))
    if 1 / FACTOR < factor < FACTOR:
        return []
    return [f"FLOPs are {factor:.2g} times 6ND: is one of FLOPs, parameters and tokens in another unit?"]


def _spread_warnings(values: Mapping[str, Any]) -> list[str]:
    """Name equal inputs whose losses differ by a factor: two evaluation sets, or two series, in one table."""
    inputs = [np.asarray(values[role]) for role in values if role in INPUTS]
    loss = values.get("loss", values.get("y"))
    if len(inputs) < 2 or loss is None:  # with one input, others may be what differs
        return []
    groups: dict[tuple[float, ...], list[float]] = {}
    for key, value in zip(zip(*inputs, strict=True), np.asarray(loss, dtype=float), strict=True):
        groups.setdefault(tuple(float(number) for number in key), []).append(float(value))
    apart = [losses for losses in groups.values() if len(losses) > 1 and max(losses) > SPREAD * min(losses)]
    lines = []
    if apart:
        worst = max(max(losses) / min(losses) for losses in apart)
        lines.append(
            f"losses at equal inputs differ by up to ×{worst:.3g} ({len(apart)} of {len(groups)} inputs): are two "
            "evaluation sets or two series mixed? Select one with --where"
        )
    if "loss" in values and float(np.median(np.asarray(loss, dtype=float))) > HIGHEST_NATS:
        lines.append(f"losses up to {np.max(loss):.3g}: {PERPLEXITIES} The laws need nats: take their logarithm")
    return lines
