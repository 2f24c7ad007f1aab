"""The command `new study`: a study file of a family, with every field of it explained in comments."""

from __future__ import annotations

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from scalebench.cli.output import say_exactly
from scalebench.errors import InputError, unknown
from scalebench.families import FAMILIES, Family
from scalebench.running.shipped import studies_dir
from scalebench.study.file import read_toml
from scalebench.workloads.training_spec import TrainSpec

TEMPLATE = """\
# {summary}
# Any field given as a list is an axis, and axes multiply. `scalebench plan {name}.toml` shows what this runs.
schema = 1
name = "{name}"
title = "{family}: loss, time and memory against size"

[model]
family = "{family}"
params = {{ geom = {ends}, points = 5 }}  # model size; the family chooses the shape
{sizes}{model_fields}
[train]
steps = 300                   # or tokens, tokens_per_param, flops (isoFLOP)
batch_size = 16
seed = [0, 1]                 # repeats: their spread is the noise of the intervals
{length}# learning_rate = [0.003, 0.01, 0.03]  # default: the family's rule for each size
# optimizer = "adamw"         # `scalebench list` shows all
# schedule = "wsd"            # constant, linear, cosine, wsd
# precision = "bfloat16"      # float32, bfloat16, float16 (GPU)
# implementation = "compile"  # {implementations}
{train_fields}
[data]
source = "{data}"
# validation_fraction = 0.2   # share held out
# validation_samples = 1024

[fit]
law = "power"                 # L = E + A N^-alpha; `scalebench list` shows all
# best_over = ["learning_rate"]  # use the best value of this axis at each size

[run]
# checkpoint = true           # keep the trained weights: for `scalebench generate` and [from]
# timeout_s = 600             # of one trial
# ensemble = 8                # train that many seeds or learning rates at once: faster for small models, no times
"""
SHOWN = ("accumulation", "warmup_steps", "decay_fraction", "weight_decay", "gradient_clip", "graph")


def study_template(name: str, family_name: str) -> str:
    """Return the text of a study file for a family. Raises ``InputError`` for a family that is not known."""
    if family_name not in FAMILIES:
        raise InputError([f"new study: family {unknown(family_name, FAMILIES)}"])
    family = FAMILIES[family_name]
    example = read_toml(studies_dir() / f"{family_name}.toml")
    length = example["train"].get("sequence_length")
    return TEMPLATE.format(
        summary=family.SUMMARY,
        name=name,
        family=family_name,
        ends=_ends(example["model"]["params"]),
        sizes=f'# size = "{next(iter(family.SIZES))}"  # instead of params: {", ".join(family.SIZES)}\n'
        if family.SIZES
        else "",
        model_fields=_model_fields(family),
        length=f"sequence_length = {length}\n" if length else "",
        implementations=", ".join(family.IMPLEMENTATIONS),
        train_fields=_train_fields(),
        data=example.get("data", {}).get("source", family.DATA),
    )


def _sizes(family: Family) -> str:
    names = list(family.SIZES)
    return f'# size = "{names[0]}"  # instead of params: {", ".join(names)}\n' if names else ""


def _ends(params: Any) -> str:
    """Return the smallest and the largest size of the family's own study."""
    if not isinstance(params, dict):
        ends = [min(params), max(params)]
    else:
        ends = params.get("geom") or [2.0**power for power in params["log2"]]
    return f"[{ends[0]:g}, {ends[-1]:g}]"


def _model_fields(family: Family) -> str:
    """Return a comment for each field of the family's Config that may be fixed beside ``params``."""
    lines = []
    for field in fields(family.Config):
        default = "" if field.default is MISSING else f"  # default: {_toml(field.default)}"
        lines.append(f"# {field.name} = …{default}")
    return "# Fields of the family that may be fixed, each a value or a list:\n" + "\n".join(lines) + "\n"


def _train_fields() -> str:
    described = {name: TrainSpec.model_fields[name].description for name in SHOWN}
    return "".join(f"# {name} = …  # {text}\n" for name, text in described.items())


def _toml(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value).replace("'", '"')


def new_study(family: str, output: Path | None) -> int:
    """Write a study file; a file that exists is not replaced."""
    path = output or Path(f"{family}-study.toml")
    text = study_template(path.stem, family)
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError as error:
        raise InputError([f"{path}: exists already; name another file with --output"]) from error
    except OSError as error:
        raise InputError([f"{path}: cannot be written ({error.strerror})"]) from error
    say_exactly(f"written: {path}", f"next: scalebench plan {path}")
    return 0
