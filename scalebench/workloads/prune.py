"""The workload "prune": remove weights, heads, hidden units or layers from another trial's model; train it on, or not.

``prune_run`` does it. A mask saves neither bytes nor time by itself; fewer units do.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError
from scalebench.families.outline import outline
from scalebench.families.shrink import units_of, with_units
from scalebench.store import Column
from scalebench.workloads import effect, training
from scalebench.workloads.base import KERNELS, Decided, Request, check_parent, offering
from scalebench.workloads.derived import TRAINING_COLUMNS, decided_as_training
from scalebench.workloads.prune_spec import UNITS, PruneSection, PruneSpec
from scalebench.workloads.training_spec import BUDGETS

if TYPE_CHECKING:
    from scalebench.study import Trial
    from scalebench.workloads.recorder import Recorder

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "remove weights, heads, hidden units or layers of a trained model, with or without training afterwards"
TABLE = "prune"
TAKES_WEIGHTS = True
KEEPS = ("weights_sha256",)
DENSITY, HALF = 0.5, 0.5
# Of the fields of [train], those that have an effect without a training step; and those with one on what is measured.
WITHOUT_STEPS = ("implementation", "precision", "sequence_length", "seed")

cost = training.cost
Section = PruneSection
Spec = PruneSpec

COLUMNS = (
    Column("density_found", "1", "share of the pruned matrices' weights that remain"),
    Column("density_overall", "1", "share of all parameters that remain"),
    Column("density_by_group", "", "density_found by group of matrices, as JSON"),
    Column("params_before", "1", "parameters of the unpruned model, tied ones once"),
    Column("params_non_embedding_before", "1", "the unpruned model's parameters without embeddings and output matrix"),
    Column("params_remaining", "1", "parameters without embeddings and output matrix that were not pruned"),
    Column("tokens_before", "1", "tokens that the unpruned model was trained on, where that was one run from scratch"),
    Column("packed_bytes", "B", "weight_bytes if each pruned matrix is stored as a bit mask and its remaining weights"),
    Column("sparse_kernel", "", "kernel that multiplies by the 2:4 matrices, or why there is no time and size with it"),
    *TRAINING_COLUMNS,
    *effect.COLUMNS,
)


def decide(request: Request) -> Decided:
    """Decide what is removed, the smaller model where units are, and the training afterwards as training does."""
    values = dict(request.values)
    _check(request, values)
    method, density, steps = (
        values.pop("method", "magnitude-global"), values.pop("density", DENSITY), values.pop("recovery_steps", 0),
    )  # fmt: skip
    if not steps:  # a setting without effect would make two trials of one
        with_effect = (*WITHOUT_STEPS, "batch_size") if method in UNITS else WITHOUT_STEPS
        values = {name: value for name, value in values.items() if name in with_effect}
    decided = decided_as_training(request, values | {"steps": steps or 1}, TABLE, "pruning")
    spec = PruneSpec.model_construct(
        **{**dict(decided.spec), "steps": steps}, method=method, density=density, recovery_steps=steps
    )
    if method in UNITS:
        return _smaller(request, decided, spec)
    _check_matrices(request, decided.config, method, density)
    return replace(decided, spec=spec)


def _check(request: Request, values: dict[str, Any]) -> None:
    """Raise ``InputError`` for what pruning cannot start from, or does not take."""
    check_parent(request, "pruning")
    for budget in BUDGETS:
        if budget in values:
            raise InputError(f"prune.{budget}: {values[budget]}: training after pruning is given as recovery_steps")
    if (implementation := values.get("implementation")) in KERNELS:
        raise InputError(f"prune.implementation: {implementation}: pruning runs with eager, sdpa or compile")


def _smaller(request: Request, decided: Decided, spec: PruneSpec) -> Decided:
    """Return the trial with the Config of the model that has fewer units; weights are those of the larger one."""
    kind, config = spec.method, decided.config
    if f"fewer_{kind}" not in request.family.CAPABILITIES:
        raise InputError(
            f"prune.method: {kind}: {request.family_name} cannot have fewer of them; {offering(f'fewer_{kind}')}"
        )
    units = units_of(config, kind)
    number = round(spec.density * units)
    if number < 1:
        least = 0.5 / units
        raise InputError(f"prune.density: {spec.density} of {units} {kind} rounds to none; give more than {least:.3g}")
    smaller = with_units(config, kind, number)
    counts = request.family.count(smaller, spec.sequence_length)
    return Decided(spec, smaller, counts, starts_as=config)


def _check_matrices(request: Request, config: Any, method: str, density: float) -> None:
    """Raise ``InputError`` for a model without hidden matrices, a density of nothing, and 2:4 that cannot be."""
    from scalebench.workloads.prune_masks import GLOBAL, GROUP, prunable

    if method == "2:4" and density != HALF:
        raise InputError(f"prune.density: {density}: 2:4 keeps half of the weights; give 0.5, or exclude the others")
    matrices = prunable(outline(request.family, config))
    if not matrices:
        raise InputError(f"prune.method: {method}: {request.family_name} has no hidden matrices to prune")
    sizes = [getattr(module, name).numel() for module, name in matrices.values()]
    weights = sum(sizes) if method in GLOBAL else min(sizes)
    if round(density * weights) < 1:
        raise InputError(
            f"prune.density: {density} of {weights:,} weights rounds to none; give more than {0.5 / weights:.3g}"
        )
    for path, (module, name) in matrices.items():
        if method == "2:4" and (columns := getattr(module, name).shape[-1]) % GROUP:
            raise InputError(f"prune.method: 2:4 needs rows of a multiple of {GROUP}; those of {path} have {columns}")


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.prune_run import run as measure  # imports torch

    measure(trial, recorder)
