"""The workload "finetune": continue training another trial's model, on other data or with another head, all weights
or with LoRA.

``finetune_run`` does it.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from scalebench.errors import InputError
from scalebench.families import FAMILIES
from scalebench.families.outline import outline
from scalebench.store import Column
from scalebench.workloads import training
from scalebench.workloads.base import PLAIN, Cost, Decided, Request, check_parent
from scalebench.workloads.derived import TRAINING_COLUMNS, decided_as_training
from scalebench.workloads.finetune_spec import FinetuneSection, FinetuneSpec
from scalebench.workloads.heads import counts_with_head, decided_head
from scalebench.workloads.training_memory import training_memory
from scalebench.workloads.training_spec import TrainSection

if TYPE_CHECKING:
    from scalebench.families import Counts
    from scalebench.study import Trial
    from scalebench.workloads.recorder import Recorder

__all__ = ["COLUMNS", "KEEPS", "SUMMARY", "TABLE", "TAKES_WEIGHTS", "Section", "Spec", "cost", "decide", "run"]

SUMMARY = "go on training a model of another study, on other data: all weights, or LoRA"
TABLE = "finetune"
TAKES_WEIGHTS = True
KEEPS = ("weights_sha256",)
DEFAULT_RANK = 8
ALPHA_PER_RANK = 2.0

Section = FinetuneSection
Spec = FinetuneSpec

COLUMNS = (
    Column("trainable_params", "1", "parameters that are trained"),
    Column("loss_before_nats", "nat", "loss on the held-out sample before the first step"),
    Column("old_loss_before_nats", "nat", "loss on the parent's held-out sample before the first step"),
    Column("old_loss_nats", "nat", "loss on the parent's held-out sample after the last step"),
    Column("old_loss_se_nats", "nat", "standard error of old_loss_nats, clustered by document or chain"),
    Column("forgetting_nats", "nat", "old_loss_nats minus old_loss_before_nats"),
    *TRAINING_COLUMNS,
)


def decide(request: Request) -> Decided:
    """Decide a trial as training does, which weights are trained, and the head. It is a new run: steps count from 0."""
    check_parent(request, "fine-tuning")
    values = dict(request.values)
    own = {name: values.pop(name, None) for name in set(FinetuneSection.model_fields) - set(TrainSection.model_fields)}
    decided = decided_as_training(request, values, TABLE, "fine-tuning")
    spec = dict(decided.spec)
    head = decided_head(request, own)
    chosen = FinetuneSpec.model_construct(**spec, **_method(request, decided.config, spec, own), **head)
    if chosen.head != "own" and chosen.implementation not in PLAIN:
        allowed = " or ".join(PLAIN)
        raise InputError(f"finetune.implementation: a head of classes runs with {allowed}, not {chosen.implementation}")
    counts = counts_with_head(request.family_name, decided.config, decided.counts, chosen)
    return replace(decided, spec=chosen, counts=counts)


def _method(request: Request, config: Any, spec: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Return the method and, for LoRA, what it trains; settings without effect are None, or one trial would be two."""
    if own["method"] != "lora":
        return {"method": "full", "rank": None, "alpha": None, "matrices": None}
    if spec["implementation"] not in PLAIN:
        raise InputError(f"finetune.implementation: lora runs with {' or '.join(PLAIN)}, not {spec['implementation']}")
    if spec["optimizer"] == "muon":
        raise InputError("finetune.optimizer: muon is for whole matrices, and lora trains factors; use another")
    from scalebench.workloads.lora import chosen as chosen_matrices

    model = outline(request.family, config)
    rank = own["rank"] or DEFAULT_RANK
    names = chosen_matrices(model, "all" if own["matrices"] is None else own["matrices"], rank)
    return {"method": "lora", "rank": rank, "alpha": own["alpha"] or ALPHA_PER_RANK * rank, "matrices": names}


def cost(trial: Trial, counts: Counts) -> Cost:
    """Estimate a trial as training does; weights that LoRA freezes have neither gradients nor optimizer state."""
    whole, spec = training.cost(trial, counts), trial.spec
    if spec.method != "lora":
        return whole
    config = FAMILIES[trial.family].Config(**trial.model)
    products, adapted = _lora_sizes(trial.family, config, spec.matrices, spec.rank)
    trained = products + counts.by_group.get("classes", 0)
    tensors = training_memory(counts, spec, int(trial.model.get("depth") or 1), trained)
    return replace(whole, memory_bytes=tensors + 4 * (products + adapted))  # each matrix with its product is kept, too


@lru_cache(maxsize=4096)
def _lora_sizes(family: str, config: Any, names: str, rank: int) -> tuple[int, int]:
    """Return the numbers of parameters of LoRA's products and of the matrices that they are added to."""
    from scalebench.workloads.lora import sizes

    return sizes(outline(FAMILIES[family], config), names.split(","), rank)


def run(trial: Trial, recorder: Recorder) -> None:
    """Run one trial, filling the record's columns as it goes."""
    from scalebench.workloads.finetune_run import run as measure  # imports torch

    measure(trial, recorder)
