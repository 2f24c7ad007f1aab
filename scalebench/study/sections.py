"""The study file: what to grow, over which axes, and how to fit it.

A study is TOML. Any field given as a list is an axis; axes multiply; ``[[zip]]`` lets axes advance together and
``[[exclude]]`` drops combinations. ``{ geom = [lo, hi], points = n }`` and ``{ log2 = [a, b], points = n }`` make
geometric axes. What only a family or the machine can say (names, defaults, sizes) is filled in by ``plan``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, PrivateAttr, model_validator

from scalebench.study.axes import Axis, Count, Finite, Fraction, LearningRate, Name, Share, WholeNumber, one_of

BUDGETS = ("steps", "tokens", "tokens_per_param", "flops")
WORKLOADS = ("training", "inference")
PRECISIONS = ("float32", "bfloat16", "float16")
WEIGHT_DTYPES = ("float32", "bfloat16", "int8")
SCHEDULES = ("constant", "linear", "cosine", "wsd")
IMPLEMENTATIONS = ("eager", "sdpa", "compile", "triton", "fused")
GRAPHS = ("auto", "none", "blocks", "model", "step")
MEMORY = ("tracked", "allocator")
DEVICES = ("auto", "cpu", "cuda")


class Section(BaseModel):
    """A table of the study file: strict types, unknown keys refused, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, populate_by_name=True)

    def given(self) -> dict[str, tuple[Any, ...]]:
        """Return the fields that hold values, defaults included, those absent left out."""
        return {name: value for name, value in self if value is not None}

    def named(self) -> dict[str, tuple[Any, ...]]:
        """Return only the fields that the file names."""
        return {
            name: value for name, value in self if name in self.model_fields_set or name in (self.model_extra or {})
        }


class ModelSection(Section):
    """Which family, and how large: the one dial ``params``, a published ``size``, or the family's own fields."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Axis[bool | int | float | str]]

    family: Axis[str] | None = None
    params: Axis[Finite] | None = None
    size: Axis[str] | None = None


class TrainSection(Section):
    """How each model is trained. Exactly one budget: steps, tokens, tokens_per_param or flops."""

    steps: Axis[Count] | None = None
    tokens: Axis[Count] | None = None
    tokens_per_param: Axis[Finite] | None = None
    flops: Axis[Finite] | None = None
    batch_size: Axis[Count] = (16,)
    accumulation: Axis[Count] = (1,)  # micro-batches that a step's batch is split into
    checkpointing: Axis[bool] = (False,)  # activation checkpointing: blocks recomputed in the backward pass
    sequence_length: Axis[Count] | None = None
    optimizer: Axis[str] = ("adamw",)
    learning_rate: Axis[LearningRate] = ("auto",)
    schedule: Axis[Annotated[str, one_of(SCHEDULES)]] = ("wsd",)
    warmup_steps: Axis[WholeNumber] = (20,)
    decay_fraction: Axis[Share] = (0.8,)
    weight_decay: Axis[NonNegativeFloat] | None = None  # the optimizer's own
    beta1: Axis[Fraction] = (0.9,)
    beta2: Axis[Fraction] = (0.95,)
    momentum: Axis[Fraction] = (0.9,)
    gradient_clip: Axis[Finite] = (1.0,)
    precision: Axis[Annotated[str, one_of(PRECISIONS)]] = ("float32",)
    implementation: Axis[Annotated[str, one_of(IMPLEMENTATIONS)]] = ("eager",)
    graph: Axis[Annotated[str, one_of(GRAPHS)]] = ("auto",)  # what runs as one: see ``TrainSpec.graph``
    device: Axis[Annotated[str, one_of(DEVICES)]] = ("auto",)
    seed: Axis[WholeNumber] = (0,)


class InferenceSection(Section):
    """What is measured of a model at work, in a study with ``workload = "inference"``.

    A family that generates reads ``prompt_length`` tokens and writes ``new_tokens``: greedily unless a ``temperature``
    or ``beams`` ask otherwise (``top_k`` = 0 and ``top_p`` = 1 leave nothing out). Others do one forward pass.
    """

    batch_size: Axis[Count] = (1,)
    prompt_length: Axis[Count] | None = None
    new_tokens: Axis[Count] | None = None
    weight_dtype: Axis[Annotated[str, one_of(WEIGHT_DTYPES)]] = ("float32",)
    temperature: Axis[Annotated[NonNegativeFloat, Field(allow_inf_nan=False)]] = (0.0,)
    top_k: Axis[WholeNumber] = (0,)
    top_p: Axis[Share] = (1.0,)
    beams: Axis[Count] = (1,)
    repeats: Axis[Count] = (100,)
    warmups: Axis[Count] = (3,)
    implementation: Axis[Annotated[str, one_of(IMPLEMENTATIONS)]] = ("eager",)
    device: Axis[Annotated[str, one_of(DEVICES)]] = ("auto",)
    seed: Axis[WholeNumber] = (0,)


class DataSection(Section):
    """What is learned. ``source`` is a name of ``scalebench list``, or ``text:PATH``; absent, the family's own.

    ``vocab_size`` trains byte pairs on a text, sets a chain's symbols, or states that of token shards.
    """

    source: Axis[str] | None = None
    vocab_size: Axis[Count] | None = None
    validation_fraction: Axis[Fraction] = (0.2,)
    validation_samples: Axis[Count] = (1024,)
    noise_std: Axis[Finite] = (0.5,)


class FitSection(Section):
    """How the results are read: which law, what is held out of it, and which axes are tuned rather than grown."""

    law: str = "power"
    holdout: Literal["largest", "none"] = "largest"
    best_over: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, raw: Any) -> Any:
        best = raw.get("best_over") if isinstance(raw, dict) else None
        return raw | {"best_over": tuple(best)} if isinstance(best, list) else raw


class RunSection(Section):
    """How trials are executed; nothing here changes a number, so nothing here is part of a trial's identity."""

    timeout_s: Finite | None = None
    checkpoint: bool = False  # keep the trained weights beside the record
    # How memory is split by category: by torch's MemTracker over two more steps, or from the sizes of the tensors and
    # the CUDA allocator's peak, without another step.
    memory: Annotated[str, one_of(MEMORY)] = "tracked"
    share_device: bool = False  # let trials (with --jobs) run on a GPU at the same time: their times are not exclusive


class Point(Section):
    """An entry of ``[[zip]]`` or ``[[exclude]]``: fields of the sections, written as in them (``model.params = …``)."""

    model: ModelSection = Field(default_factory=lambda: ModelSection.model_validate({}))
    train: TrainSection = TrainSection()
    inference: InferenceSection = InferenceSection()
    data: DataSection = DataSection()

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return the named fields as {"model.params": (…), …}."""
        sections = {"model": self.model, "train": self.train, "inference": self.inference, "data": self.data}
        return {
            f"{name}.{key}": values for name, section in sections.items() for key, values in section.named().items()
        }


class Study(Section):
    """A whole study file, validated. Every axis field holds a tuple of values; a scalar is a tuple of one."""

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    title: str = ""
    workload: Annotated[str, one_of(WORKLOADS)] = "training"
    model: ModelSection
    train: TrainSection = TrainSection()
    inference: InferenceSection = InferenceSection()
    data: DataSection = DataSection()
    fit: FitSection = FitSection()
    run: RunSection = RunSection()
    zipped: tuple[Point, ...] = Field(default=(), alias="zip")
    excluded: tuple[Point, ...] = Field(default=(), alias="exclude")
    _text: str = PrivateAttr(default="")
    _origin: str = PrivateAttr(default="")

    @property
    def text(self) -> str:
        """The file's own text, with what ``--set`` changed in comments; empty for a study made in Python."""
        return self._text

    @property
    def origin(self) -> str:
        """The file that this study was read from, or its name."""
        return self._origin or self.name

    def read_from(self, path: Path, settings: Sequence[str]) -> Study:
        """Remember the file that this study was read from, and return the study."""
        self._origin = str(path)
        self._text = path.read_text(encoding="utf-8") + "".join(f"# --set {setting}\n" for setting in settings)
        return self

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return every field's values by dotted name, zipped ones included: the grid before zipping and excluding."""
        axes = {f"model.{key}": value for key, value in self.model.given().items()}
        name, work = ("train", self.train) if self.workload == "training" else ("inference", self.inference)
        axes |= {f"{name}.{key}": value for key, value in work.given().items()}
        axes |= {f"data.{key}": value for key, value in self.data.given().items()}
        for entry in self.zipped:
            axes |= entry.axes()
        return axes

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the axes as {"model.params": 1e4, …}, in the order of the file."""
        free = self.axes()
        together = [entry.axes() for entry in self.zipped]
        for name in {name for entry in together for name in entry}:
            free.pop(name)
        bundles = [[{name: value} for value in values] for name, values in free.items()]
        bundles += [[dict(zip(e, row, strict=True)) for row in zip(*e.values(), strict=True)] for e in together]
        drops = [entry.axes() for entry in self.excluded]
        for combination in itertools.product(*bundles):
            point = {name: value for bundle in combination for name, value in bundle.items()}
            if not any(all(point.get(name) in values for name, values in drop.items()) for drop in drops):
                yield point
