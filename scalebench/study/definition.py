"""The study file as a whole: what to grow, over which axes, and how to fit it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from pydantic import Field, PrivateAttr, create_model

from scalebench.measure.secrets import hide
from scalebench.study.axes import Name, one_of
from scalebench.study.sections import (
    DataSection,
    FitSection,
    FromSection,
    ModelSection,
    ParentSection,
    Point,
    RunSection,
    Sample,
    Section,
)


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
    sampled: Sample | None = Field(default=None, alias="sample")
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
        for entry in self.together.values():
            axes |= entry.axes()
        return axes

    @property
    def together(self) -> dict[str, Point]:
        """The entries whose axes advance together, by where they stand in the file: those of [[zip]], and [sample]."""
        return {place: entry for place, entry in self.entries.items() if not place.startswith("exclude")}

    @property
    def entries(self) -> dict[str, Point]:
        """The entries of [[zip]], [sample] and [[exclude]] by where they stand in the file."""
        zipped = {f"zip[{index}]": entry for index, entry in enumerate(self.zipped)}
        sampled = {} if self.sampled is None else {"sample": self.sampled}
        return zipped | sampled | {f"exclude[{index}]": entry for index, entry in enumerate(self.excluded)}

    @property
    def tuned(self) -> tuple[str, ...]:
        """The fields of which each size keeps the best value: those of the file, or else those sampled in its table.

        What trains for longer is no better choice, and a seed is no choice at all.
        """
        if self.sampled is None or "best_over" in self.fit.model_fields_set:
            return self.fit.best_over
        section: Section = getattr(self.sampled, self.TABLES[self.workload])
        return tuple(name for name in section.fields_in_file() if name not in ("seed", *sum(section.EXCLUSIVE, ())))

    def combinations(self) -> int:
        """Return the size of the grid, before [[exclude]]."""
        together = [entry.axes() for entry in self.together.values()]
        zipped = {name for entry in together for name in entry}
        lengths = [len(values) for name, values in self.axes().items() if name not in zipped]
        return math.prod([*lengths, *(len(next(iter(entry.values()))) for entry in together if entry)])

    def points(self) -> Iterator[dict[str, Any]]:
        """Yield every combination of the axes as {"model.params": 1e4, …}, in the order of the file."""
        free = self.axes()
        together = [entry.axes() for entry in self.together.values()]
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
    point, sample = (create_model(base.__name__, __base__=base, **tables) for base in (Point, Sample))
    entries: Any = tuple[point, ...]  # type: ignore[valid-type]
    names = tuple(name for name, _, _ in workloads)
    fields: dict[str, Any] = {
        "workload": (Annotated[str, one_of(names)], "training"),
        "zipped": (entries, Field(default=(), alias="zip")),
        "sampled": (sample | None, Field(default=None, alias="sample")),
        "excluded": (entries, Field(default=(), alias="exclude")),
    }
    study_class = create_model("Study", __base__=Study, **fields, **tables)
    study_class.TABLES = {name: table for name, table, _ in workloads}
    return study_class
