"""What pruning left of a model: density by group of matrices, parameters, and bytes if stored sparse."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from scalebench.families import FAMILIES
from scalebench.families.modules.shrink import LAYERS
from scalebench.measure.memory import weight_bytes
from scalebench.study import Trial
from scalebench.workloads.prune_masks import group_of, packed, prunable


def size_columns(
    trial: Trial, larger: Any, before: nn.Module, model: nn.Module, masks: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Return the columns of density, parameters and packed bytes; ``larger`` is the Config of the model ``before``."""
    family = FAMILIES[trial.family]
    old, new = (family.count(each, trial.spec.sequence_length) for each in (larger, family.Config(**trial.model)))
    whole, left = sizes(before), remaining(model, masks)
    pruned = LAYERS.get(trial.spec.method, tuple(whole))
    zeros = sum(mask.numel() - int(mask.sum()) for mask in masks.values())
    return {
        "density_found": sum(left[name] for name in pruned) / sum(whole[name] for name in pruned),
        "density_overall": (new.total - zeros) / old.total,
        "density_by_group": json.dumps({name: round(left[name] / whole[name], 6) for name in whole}),
        "params_before": old.total,
        "params_non_embedding_before": old.non_embedding,
        "params_remaining": new.non_embedding - zeros,
        "packed_bytes": packed_bytes(model, masks) if masks else None,
    }


def sizes(model: nn.Module) -> Counter[str]:
    """Return the weights in each group of hidden matrices."""
    counts: Counter[str] = Counter()
    for path, (module, name) in prunable(model).items():
        counts[group_of(path)] += getattr(module, name).numel()
    return counts


def remaining(model: nn.Module, masks: Mapping[str, Tensor]) -> Counter[str]:
    """Return the weights that remain in each group of hidden matrices."""
    counts = sizes(model)
    for path, mask in masks.items():
        counts[group_of(path)] -= mask.numel() - int(mask.sum())
    return counts


def packed_bytes(model: nn.Module, masks: Mapping[str, Tensor]) -> int:
    """Return the bytes of the model with each masked matrix stored as the bits of its mask and what remains."""
    matrices = [model.get_parameter(path) for path in masks]
    sparse = sum(part.nbytes for matrix in matrices for part in packed(matrix))
    return weight_bytes(model) - sum(matrix.nbytes for matrix in matrices) + sparse
