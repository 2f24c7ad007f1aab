"""The study file: what to grow, over which axes, and how to fit it.

A study is TOML. Any field given as a list is an axis; axes multiply; ``[[zip]]`` lets axes advance together and
``[[exclude]]`` drops combinations. ``{ geom = [lo, hi], points = n }`` and ``{ log2 = [a, b], points = n }`` make
geometric axes. What depends on a family or the machine (names, defaults, sizes) is filled in by ``plan``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, create_model, model_validator

from scalebench.measure.secrets import hide
from scalebench.store import expanded
from scalebench.study.axes import Axis, Count, Finite, Fraction, Name, Samples, Size, one_of

MEMORY = ("tracked", "allocator")
ON_OOM = ("end", "accumulate")
MOST_TOGETHER = 1024  # trials of one ensemble


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
        return {f"{name}.{key}": values for name, section in self for key, values in section.fields_in_file().items()}


class WorkloadTable(Protocol):
    """What the study file needs of a workload: its table's name and the fields of the table."""

    @property
    def TABLE(self) -> str:  # noqa: N802
        """Name of the table in the study file."""

    @property
    def Section(self) -> type[Section]:  # noqa: N802
        """Fields of the table, each with a default."""


class Study(Section):
    """A whole study file, validated. Every axis field holds a tuple of values; a scalar is a tuple of one.

    ``study_class`` adds the tables of the workloads, one field each.
    """

    TABLES: ClassVar[Mapping[str, str]] = {}  # workload -> name of its table

    schema_version: Literal[1] = Field(alias="schema")
    name: Name
    title: str = ""
    workload: str = "training"
    model: ModelSection = Field(default_factory=lambda: ModelSection.model_validate({}))
    data: DataSection = DataSection()
    start: FromSection | None = Field(default=None, alias="from")
    fit: FitSection = FitSection()
    run: RunSection = RunSection()
    zipped: tuple[Point, ...] = Field(default=(), alias="zip")
    excluded: tuple[Point, ...] = Field(default=(), alias="exclude")
    _text: str = PrivateAttr(default="")
    _origin: str = PrivateAttr(default="")
    _settings: tuple[str, ...] = PrivateAttr(default=())

    @property
    def text(self) -> str:
        """The file's own text, with what ``--set`` changed in comments; empty for a study made in Python."""
        return self._text

    @property
    def origin(self) -> str:
        """The file that this study was read from, or its name."""
        return self._origin or self.name

    @property
    def settings(self) -> tuple[str, ...]:
        """What ``--set`` changed, as ``key=value``."""
        return self._settings

    @property
    def parents(self) -> ParentSection | None:
        """The parents of this study's trials: those of [from], or those that the workload's own table names."""
        return self.start or self.own_parents

    @property
    def own_parents(self) -> ParentSection | None:
        """Which trials the workload's own table names, such as the teachers of a student."""
        table = getattr(self, self.TABLES.get(self.workload, ""), ())
        return next((value for _, value in table if isinstance(value, ParentSection)), None)

    def __repr__(self) -> str:
        """Return one line: the name, the axes with more than one value."""
        axes = ", ".join(f"{name} ({len(values)})" for name, values in self.axes().items() if len(values) > 1)
        return f"Study {self.name!r}: {self.workload}; axes: {axes or 'none'}"

    __str__ = __repr__  # pydantic prints every field

    def _repr_html_(self) -> str:
        """Return the axes as a table, for notebooks."""
        rows = "".join(
            f"<tr><td>{escape(name)}</td><td>{escape(', '.join(map(str, values)))}</td></tr>"
            for name, values in self.axes().items()
            if len(values) > 1
        )
        head = "<tr><th>axis</th><th>values</th></tr>"
        return f"<p>{escape(self.title or self.name)}</p><table>{head}{rows}</table>"

    def read_from(self, path: Path, settings: Sequence[str]) -> Study:
        """Remember the file that this study was read from, and return the study."""
        self._origin, self._settings = str(path), tuple(settings)
        changes = "".join(f"# --set {hide(setting)}\n" for setting in settings)
        self._text = path.read_text(encoding="utf-8-sig") + changes
        return self

    def axes(self) -> dict[str, tuple[Any, ...]]:
        """Return every field's values by dotted name, zipped ones included: the grid before zipping and excluding.

        Fields that the file does not name have their defaults; with parents they are left out, as the parent decides.
        """
        axes: dict[str, tuple[Any, ...]] = {}
        for table in ("model", self.TABLES[self.workload], "data"):
            section: Section = getattr(self, table)
            values = section.filled_fields() if self.parents is None else section.fields_in_file()
            axes |= {f"{table}.{key}": value for key, value in values.items() if isinstance(value, tuple)}
        for entry in self.zipped:
            axes |= entry.axes()
        return axes

    def combinations(self) -> int:
        """Return the size of the grid, before [[exclude]]."""
        together = [entry.axes() for entry in self.zipped]
        zipped = {name for entry in together for name in entry}
        lengths = [len(values) for name, values in self.axes().items() if name not in zipped]
        return math.prod([*lengths, *(len(next(iter(entry.values()))) for entry in together if entry)])

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


def study_class(workloads: Mapping[str, WorkloadTable]) -> type[Study]:
    """Return the class of a study file in which every workload has its table."""
    return _study_class(tuple((name, workload.TABLE, workload.Section) for name, workload in workloads.items()))


@lru_cache(maxsize=8)
def _study_class(workloads: tuple[tuple[str, str, type[Section]], ...]) -> type[Study]:
    tables: dict[str, Any] = {table: (section, section()) for _, table, section in workloads}
    point = create_model("Point", __base__=Point, **tables)
    entries: Any = tuple[point, ...]  # type: ignore[valid-type]
    names = tuple(name for name, _, _ in workloads)
    fields: dict[str, Any] = {
        "workload": (Annotated[str, one_of(names)], "training"),
        "zipped": (entries, Field(default=(), alias="zip")),
        "excluded": (entries, Field(default=(), alias="exclude")),
    }
    study_class = create_model("Study", __base__=Study, **fields, **tables)
    study_class.TABLES = {name: table for name, table, _ in workloads}
    return study_class
