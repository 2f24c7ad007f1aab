"""Heads that use the hidden states of a family's model for another task: their kinds, inputs and costs.

``classifier`` has the module. A head of classes is one linear layer on a pooled hidden state (C features). gpt pools
the last token, the only one that has seen all others; bert pools [CLS] through the pooler that it was trained with, as
Devlin et al. 2019 do. Either can take the mean over all tokens instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from scalebench.data import Data, source_names
from scalebench.data.labelled import LabelledText
from scalebench.errors import InputError, unknown
from scalebench.families import FAMILIES, Counts
from scalebench.families.base import check_sequences
from scalebench.study import Trial
from scalebench.tasks import Task, TextClasses
from scalebench.tasks.masked import SPECIALS
from scalebench.workloads.base import Request

HEADS = ("own", "classes")
LABELLED = ("languages", "packages", "folders")  # sources with labels


@dataclass(frozen=True)
class Body:
    """What a family's model has below a head of classes.

    ``poolings`` are the ways to make one hidden state of all tokens', the default first. ``specials``: a sample is
    [CLS] piece [SEP]. ``unused`` begins the names of the parameters that only the family's own outputs need, and
    ``saved_flops(config, length, pooling)`` is what these cost in a forward pass of a sample.
    """

    poolings: tuple[str, ...]
    specials: bool
    unused: Mapping[str, tuple[str, ...]]  # by pooling
    saved_flops: Callable[[Any, int, str], int]


def _gpt_outputs(config: Any, length: int, _: str) -> int:
    return 2 * length * config.width * config.vocab_size


def _bert_outputs(config: Any, length: int, pooling: str) -> int:
    width = config.width
    masked, follows = 2 * length * (width**2 + width * config.vocab_size), 2 * 2 * width
    return masked + follows + (2 * width**2 if pooling == "mean" else 0)


_BERT_OUTPUTS = ("transform", "output_bias", "follows")
BODIES: Mapping[str, Body] = {
    "gpt": Body(("last", "mean"), specials=False, unused=dict.fromkeys(("last", "mean"), ("head",)),
                saved_flops=_gpt_outputs),
    "bert": Body(("first", "mean"), specials=True, unused={"first": _BERT_OUTPUTS, "mean": (*_BERT_OUTPUTS, "pooler")},
                 saved_flops=_bert_outputs),
}  # fmt: skip


def decided_head(request: Request, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return head, pooling and head_classes of a trial from what its table names.

    A setting without effect is None, or one trial would be two. Raises ``InputError`` for a head that fits
    neither the family nor the labels.
    """
    if (values.get("head") or "own") == "own":
        return {"head": "own", "pooling": None, "head_classes": None}
    name, data = request.family_name, request.data
    if name not in BODIES:
        raise InputError(f"finetune.head: 'classes' goes on {' and '.join(BODIES)}, not on {name}")
    if not isinstance(data, LabelledText):
        sources = ", ".join(source for source in source_names() if source.partition(":")[0] in LABELLED)
        raise InputError(
            f"finetune.head: 'classes' needs labels, and {request.about.source!r} has none; with labels: {sources}"
        )
    body, classes = BODIES[name], values.get("head_classes") or len(data.names)
    pooling = values.get("pooling") or body.poolings[0]
    if pooling not in body.poolings:
        raise InputError(f"finetune.pooling: {unknown(pooling, body.poolings)} for {name}")
    if classes < len(data.names):
        names = ", ".join(data.names)
        raise InputError(f"finetune.head_classes: {classes} is less than the {len(data.names)} labels ({names})")
    return {"head": "classes", "pooling": pooling, "head_classes": classes}


def counts_with_head(name: str, config: Any, counts: Counts, spec: Any) -> Counts:
    """Return the counts of a model with a trial's head in the place of the family's own outputs.

    The parameters of those stay in the weights; ``non_embedding`` is that of the family, so that sizes compare.
    """
    if spec.head == "own":
        return counts
    parameters, work = (config.width + 1) * spec.head_classes, 2 * config.width * spec.head_classes
    saved = BODIES[name].saved_flops(config, spec.sequence_length, spec.pooling)
    groups = dict(counts.by_group) | {"classes": parameters}
    return replace(counts, by_group=groups, active=counts.active + parameters,
                   forward_flops=counts.forward_flops - saved + work)  # fmt: skip


def task_of(trial: Trial, config: Any, data: Data) -> Task:
    """Return a trial's task: its family's, or for a head of classes the classification of the labels.

    Raises ``InputError`` if sequences or vocabulary exceed the model's.
    """
    spec, about = trial.spec, trial.data
    if getattr(spec, "head", "own") == "own":
        return FAMILIES[trial.family].task(config, data, about, spec)
    assert isinstance(data, LabelledText)
    specials = BODIES[trial.family].specials
    check_sequences(data.vocab_size + len(SPECIALS) * specials, config.vocab_size, spec.sequence_length, config.context)
    shape = (spec.sequence_length, spec.batch_size, spec.seed)
    sides = (about.validation_fraction, about.validation_samples)
    return TextClasses(data, *shape, *sides, specials=specials)
