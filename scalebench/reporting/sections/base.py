"""The contract of a kind of section, and the section that it builds for the page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.sections.operations import Operation
from scalebench.reporting.svg import Marks
from scalebench.reporting.tables import Table
from scalebench.reporting.views import Caption, Download

Subject = StudyAnalysis | Operation
OWN_FILE = re.compile(r"^(app|cli)\.py (?=\w)")  # that the program was started as


def as_typed(command: str) -> str:
    """Return a recorded command as it is typed: its first word may be the file that the program was started as."""
    return OWN_FILE.sub("scalebench ", command)


@dataclass(frozen=True)
class SectionView:
    """A section ready to be printed; ``id`` begins the ids of its elements, ``template`` prints it."""

    id: str
    title: str
    template: Path
    conclusions: tuple[str, ...]
    environment: Table
    downloads: tuple[Download, ...]
    methods: tuple[str, ...]


MAX_FINDINGS = 6  # bullets below the lead
MANY = 6  # sections of a kind on one page: with more, each shows its most important figures only


@dataclass(frozen=True)
class Room:
    """What a section may take of its page, beside ``neighbours`` - 1 others of its kind.

    ``max_bytes`` is the limit of each file that is embedded.
    """

    max_bytes: int
    neighbours: int = 1

    @property
    def brief(self) -> bool:
        """Whether to leave out diagnostics, and the tables behind figures."""
        return self.neighbours > MANY


class Section(Protocol):
    """A kind of section: which subjects it is for, what it concludes of one, and how one is laid out."""

    @property
    def template(self) -> Path:
        """The Jinja template that prints the view; it finds the other templates of the report by name."""

    def applies(self, subject: Subject) -> bool:
        """Return whether this kind of section is for a subject."""

    def conclusions(self, subject: Subject) -> Sequence[str]:
        """Return the conclusions in sentences, most important first, at least one."""

    def headline(self, marks: Marks, subject: Subject) -> Caption | str | None:
        """Draw the first figure of the section; return as the ``draw`` of a figure does."""

    def build(self, subject: Subject, name: str, room: Room) -> SectionView:
        """Lay out a subject as the section with id ``name``."""
