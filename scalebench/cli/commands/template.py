"""The command `new study`: a study file of a family, with every field of it explained in comments."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from scalebench.cli.output import say_exactly
from scalebench.errors import InputError, unknown
from scalebench.families import FAMILIES, Family
from scalebench.families.own import ENDING
from scalebench.running.shipped import studies_dir
from scalebench.store import is_name, write_output
from scalebench.study.file import read_toml
from scalebench.workloads.training_spec import TrainSpec

TEMPLATE = """\
# {summary}
# Any field given as a list is an axis, and axes multiply. `scalebench plan` with this file shows what it runs.
schema = 1                    # version of the file format
name = "{name}"  # folder of the results
title = "{family}: loss, time and memory against size"  # heading of the report

[model]
family = "{family}"  # `scalebench list` shows all
params = {{ geom = {ends}, points = 5 }}  # model size; the family chooses the shape
{sizes}{model_fields}
[train]
steps = {steps}  # or tokens, tokens_per_param, flops (isoFLOP)
batch_size = {batch_size}  # samples per step
seed = [0, 1]  # repeats: their spread is the noise of the intervals
{train_lines}# learning_rate = [0.003, 0.01, 0.03]  # default: the family's rule for each size
# optimizer = "adamw"         # `scalebench list` shows all
# schedule = "wsd"            # constant, linear, cosine, wsd
# precision = "bfloat16"      # float32, bfloat16, float16 (GPU)
{train_fields}
[data]
source = "{data}"  # `scalebench list` shows all
validation_samples = {validation_samples}  # at most as many held-out samples
{data_fields}
# [sample]                    # values drawn from ranges, together; each size keeps its best
# points = 16                 # 32 later repeats none of the first 16
# train.learning_rate = {{ log = [1e-4, 1e-1] }}  # evenly in the logarithm
# train.beta2 = {{ linear = [0.9, 0.999] }}  # evenly spread

[fit]
law = "power"                 # L = E + A N^-alpha; `scalebench list` shows all
# best_over = ["learning_rate"]  # use the best value of this axis at each size

[run]
# checkpoint = true           # keep the trained weights: for `scalebench generate` and [from]
# timeout_s = 600             # of one trial
# ensemble = 8                # train that many seeds or learning rates at once: faster for small models, no times
"""
MODEL_FIELDS = {
    "answer": "longest answer, in tokens",
    "balance_weight": "weight of the loss that spreads tokens evenly over the experts",
    "bias": "whether linear layers have biases",
    "cell": "kind of recurrent cell",
    "channels": "color channels of an image",
    "classes": "number of classes",
    "context": "longest sequence, in tokens",
    "dense1": "features of the first dense layer",
    "dense2": "features of the second dense layer",
    "depth": "number of layers",
    "embedding": "features of a token's embedding",
    "experts": "experts per layer",
    "first": "channels of the first convolution",
    "form": "3x3 stem (cifar) or 7x7 stem with pooling (imagenet)",
    "head_dim": "features of an attention head",
    "heads": "attention heads per layer",
    "hidden": "hidden units of the MLP in a block",
    "image_size": "height and width of an image, in pixels",
    "inputs": "features of an input",
    "kernel": "height and width of a convolution, in pixels",
    "last": "channels of the last stage",
    "norm": "kind of normalization",
    "norm_first": "normalize before each sublayer (true) or after it",
    "outputs": "features of an output",
    "patch": "height and width of a patch, in pixels",
    "positions": "how positions enter",
    "residual": "whether blocks have skip connections",
    "second": "channels of the second convolution",
    "tied": "whether the input embedding is also the output layer",
    "experts_per_token": "experts that a token is routed to",
    "vocab_size": "number of token ids; default: the data's",
    "width": "features of a layer",
}
TRAIN_FIELDS = (
    "sequence_length", "implementation", "warmup_steps", "weight_decay", "accumulation", "decay_fraction",
    "gradient_clip", "graph",
)  # fmt: skip
DATA_FIELDS = {
    "noise_std": "standard deviation of the teacher's noise: it sets the lowest possible loss",
    "validation_fraction": "share held out",
}
# Where a first study differs from the family's own: its trend shows within a minute on two cores.
FIRST: Mapping[str, Mapping[str, Mapping[str, Any]]] = {
    "mlp": {"data": {"noise_std": 0.1}},
    "vit": {"model": {"params": [8e3, 6.4e4]}, "train": {"steps": 300}},
    "attention": {"model": {"params": [3e3, 2e4]}, "train": {"steps": 1000}, "data": {"noise_std": 0.1}},
    "bert": {"model": {"params": [1e4, 4e4]}, "train": {"steps": 400}},
    "resnet": {"train": {"steps": 150}},
}


def study_template(name: str, family_name: str) -> str:
    """Return the text of a study file for a family. Raises ``InputError`` for a family that is not known."""
    if family_name.endswith(ENDING):
        remedy = f"write one of a family that ships, such as mlp, and set its family to {_toml(family_name)}"
        raise InputError([f"new study: its fields are those of a family that ships: {remedy}"])
    if family_name not in FAMILIES:
        raise InputError([f"new study: family {unknown(family_name, FAMILIES)}"])
    family = FAMILIES[family_name]
    model, train, data = (_values(family_name, table) for table in ("model", "train", "data"))
    return TEMPLATE.format(
        summary=family.SUMMARY,
        name=name,
        family=family_name,
        ends=_ends(model["params"]),
        sizes=_sizes(family),
        model_fields=_model_fields(family, model),
        steps=train["steps"],
        batch_size=train["batch_size"],
        train_lines=_train_lines(family, train, fixed=True),
        train_fields=_train_lines(family, train, fixed=False),
        data=data.get("source", family.DATA),
        validation_samples=data["validation_samples"],
        data_fields="".join(
            _line(key, data.get(key), text) for key, text in DATA_FIELDS.items() if key in data or key != "noise_std"
        ),
    )


def _values(family_name: str, table: str) -> dict[str, Any]:
    """Return a table of the family's own study with the changes of ``FIRST``."""
    own = read_toml(studies_dir() / f"{family_name}.toml").get(table, {})
    return {**own, **FIRST.get(family_name, {}).get(table, {})}


def _sizes(family: Family) -> str:
    names = list(family.SIZES)
    return f'# size = "{names[0]}"  # a published shape instead of params: {", ".join(names)}\n' if names else ""


def _ends(params: Any) -> str:
    """Return the smallest and the largest size of the family's own study."""
    if not isinstance(params, dict):
        ends = [min(params), max(params)]
    else:
        ends = params.get("geom") or [2.0**power for power in params["log2"]]
    return f"[{ends[0]:g}, {ends[-1]:g}]"


def _model_fields(family: Family, fixed: Mapping[str, Any]) -> str:
    """Return a line for each field of the family's Config that may be fixed beside ``params``."""
    kinds = get_type_hints(family.Config)
    lines = ["# Fields of the family that may be fixed, each a value or a list; by default the family chooses:\n"]
    for field in fields(family.Config):
        text = MODEL_FIELDS[field.name]
        if get_origin(kinds[field.name]) is Literal:
            text += f": {', '.join(get_args(kinds[field.name]))}"
        if field.default is not MISSING:
            text += f"; default: {_toml(field.default)}"
        value = fixed.get(field.name)
        lines.append(_line(field.name, None if isinstance(value, list) else value, text))
    return "".join(lines)


def _train_lines(family: Family, values: Mapping[str, Any], *, fixed: bool) -> str:
    """Return the lines of [train] that the family's own study fixes, or comments for the others."""
    texts = {name: TrainSpec.model_fields[name].description or "" for name in TRAIN_FIELDS}
    texts["implementation"] = ", ".join(family.IMPLEMENTATIONS)
    names = [name for name in TRAIN_FIELDS if name != "sequence_length" or family.SEQUENCES]
    return "".join(_line(name, values.get(name), texts[name]) for name in names if (name in values) == fixed)


def _line(name: str, value: Any, text: str) -> str:
    """Return a field with what it means; without a value it is a comment."""
    return f"# {name} = …  # {text}\n" if value is None else f"{name} = {_toml(value)}  # {text}\n"


def _toml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value).replace("'", '"')


def new_study(family: str, output: Path | None) -> int:
    """Write a study file; a file that exists is not replaced."""
    path = output or Path(f"{family}-study.toml")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("._-")
    text = study_template(name if is_name(name) else f"{family}-study", family)
    if path.is_symlink() or path.is_file() or path.is_dir():
        raise InputError([f"{path}: exists already; name another file with --output"])
    try:
        write_output(path, text.encode())
    except OSError as error:
        raise InputError([f"{path}: cannot be written ({error.strerror})"]) from error
    say_exactly(f"written: {path}", f"next: scalebench plan {shlex.quote(str(path))}")
    return 0
