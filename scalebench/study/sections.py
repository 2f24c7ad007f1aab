"""The tables of a study file.

A study is TOML. Any field given as a list is an axis; axes multiply; ``[[zip]]`` lets axes advance together,
``[[exclude]]`` drops combinations, and ``[sample]`` draws values from ranges. ``{ geom = [lo, hi], points = n }`` and
``{ log2 = [a, b], points = n }`` make geometric axes. What depends on a family or the machine (names, defaults, sizes)
is filled in by ``plan``.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from scalebench.store import expanded
from scalebench.study.axes import (
    MOST_VALUES,
    Axis,
    Count,
    Finite,
    Fraction,
    Name,
    Points,
    Samples,
    Size,
    WholeNumber,
    one_of,
    whole,
)
from scalebench.study.sampling import sampled

MEMORY = ("tracked", "allocator")
ON_OOM = ("end", "accumulate")
MOST_TOGETHER = 1024  # trials of one ensemble


def parts_of(annotation: Any) -> list[Any]:
    """Return an annotation and all that it is made of."""
    return [annotation, *(part for inner in get_args(annotation) for part in parts_of(inner))]


class Section(BaseModel):
    """A table of the study file: strict types, unknown keys refused, frozen."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)
    EXCLUSIVE: ClassVar[tuple[tuple[str, ...], ...]] = ()  # groups of fields of which a file may name one

    def filled_fields(self) -> dict[str, tuple[Any, ...]]:
        """Return the fields that hold values, defaults included, those absent left out."""
        return {name: value for name, value in self if value is not None}

    def fields_in_file(self) -> dict[str, tuple[Any, ...]]:
        """Return only the fields that the file names."""
        return {
            name: value for name, value in self if name in self.model_fields_set or name in (self.model_extra or {})
        }


class ModelSection(Section):
    """Which family, and how large: the one dial ``params``, a published ``size``, or the family's own fields."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Axis[bool | int | float | str]]

    family: Axis[str] | None = None
    params: Axis[Size] | None = None
    size: Axis[str] | None = None


class DataSection(Section):
    """The data. ``source`` is a name of ``scalebench list``, or ``text:PATH``; by default the family's.

    ``vocab_size`` trains byte pairs on a text, sets the symbols of a chain, or gives that of token shards.
    """

    source: Axis[str] | None = None
    vocab_size: Axis[Count] | None = None
    validation_fraction: Axis[Fraction] = (0.2,)
    validation_samples: Axis[Samples] = (1024,)
    noise_std: Axis[Finite] = (0.5,)


class FitSection(Section):
    """How the results are fitted: which law, what is held out of it, and which axes are tuned at each size."""

    law: str = "power"
    holdout: Literal["largest", "none"] = "largest"
    best_over: tuple[str, ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _lists(cls, raw: Any) -> Any:
        best = raw.get("best_over") if isinstance(raw, dict) else None
        return raw | {"best_over": tuple(best)} if isinstance(best, list) else raw


class RunSection(Section):
    """How trials are executed. Nothing here changes a result, so nothing here is part of a trial's identity."""

    timeout_s: Finite | None = None
    memory_limit_bytes: Finite | None = None  # what a trial may allocate on a CPU; beyond it ends as oom
    # When a training trial runs out of memory: let it end as oom, or halve its micro-batches and start it again.
    on_oom: Annotated[str, one_of(ON_OOM)] = "end"
    checkpoint: bool = False  # keep weights and optimizer state beside the record
    checkpoint_steps: Axis[Count] = ()  # and after these numbers of steps, to branch from ([from] step)
    # While a trial trains, keep the newest state to go on from after an interruption: every N steps, or seconds
    # (at the check of the losses that follows, every 20 steps).
    checkpoint_every_steps: Count | None = None
    checkpoint_every_s: Finite | None = None
    # How memory is split by category: by torch's MemTracker over two more steps, or from the sizes of the tensors and
    # the CUDA allocator's peak, without another step.
    memory: Annotated[str, one_of(MEMORY)] = "tracked"
    # Train up to this many trials that differ in seed, learning rate or weight decay only together in one process,
    # where that is faster: their losses are those of training one by one, their times and memory are not measured.
    ensemble: Annotated[int, Field(ge=2, le=MOST_TOGETHER)] | None = None
    share_device: bool = False  # let trials (with --jobs) run on a GPU at the same time: their times are not exclusive


class ParentSection(Section):
    """The parents: the ok trials of another study that kept their weights. They are an axis, one point each.

    With ``step`` the parents are checkpoints during a run (``run.checkpoint_steps``), one point per step.
    """

    KEY: ClassVar[str]  # where it stands in a study file
    STARTS: ClassVar[bool]  # whether trials start from the parents' weights, and so have their family and model

    study: Name | None = None  # in the same results folder
    # Or the path of a results folder.
    results: Annotated[str, AfterValidator(lambda path: str(expanded(path)))] | None = None
    where: str | None = None  # which of its trials: an expression as for --where
    step: Axis[Count] | None = None

    @property
    def continues(self) -> bool:
        """Whether a trial continues its parent's run."""
        return False


class FromSection(ParentSection):
    """The trials whose weights this study's trials start from.

    A child has its parent's family, model, data and seed unless the file names others. With ``optimizer_state`` it
    continues the parent's run: all else in [train] is the parent's, too.
    """

    KEY: ClassVar[str] = "from"
    STARTS: ClassVar[bool] = True

    optimizer_state: bool = False

    @property
    def continues(self) -> bool:
        """Whether a trial continues its parent's run."""
        return self.optimizer_state


class Point(Section):
    """An entry of ``[[zip]]`` or ``[[exclude]]``: fields of the tables, written as in them (``model.params = …``)."""

    model: ModelSection = Field(default_factory=lambda: ModelSection.model_validate({}))
    data: DataSection = DataSection()

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return the named fields as {"model.params": (…), …}."""
        sections = {name: section for name, section in self if isinstance(section, Section)}
        return {
            f"{name}.{key}": values
            for name, table in sections.items()
            for key, values in table.fields_in_file().items()
        }


class Sample(Point):
    """The table ``[sample]``: fields that take the values of ``points`` places in their ranges, all of them at once.

    A range is ``{ log = [lo, hi] }``, ``{ linear = [lo, hi] }`` or a list. More points leave the first as they are.
    """

    points: Points
    seed: WholeNumber = 0

    @model_validator(mode="before")
    @classmethod
    def _draw(cls, raw: Any) -> Any:
        if not isinstance(raw, dict):
            return raw
        tables = {name: content for name, content in raw.items() if isinstance(content, dict)}
        numbers = {name: whole(value) for name, value in raw.items() if name not in tables}
        points, seed = numbers.get("points"), numbers.get("seed", 0)
        if type(points) is not int or type(seed) is not int or not 1 <= points <= MOST_VALUES or seed < 0:
            return numbers  # which are refused
        return numbers | sampled(tables, points, seed, cls._is_count)

    @classmethod
    def _is_count(cls, table: str, field: str) -> bool | None:
        """Whether a field takes whole numbers alone; None for a family's own, which are known to ``plan``."""
        section = cls.model_fields[table].annotation if table in cls.model_fields else None
        known = getattr(section, "model_fields", {}).get(field)
        return None if known is None else {int} == {int, float, Any} & set(parts_of(known.annotation))
