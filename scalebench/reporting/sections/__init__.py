"""The kinds of section a report is made of.

To add one: write a module with a ``Section`` (see ``base``), with its template beside it, and enter it in ``SECTIONS``.
"""

from __future__ import annotations

from scalebench.reporting.sections import (
    branches,
    choices,
    comparison,
    data,
    distill,
    finetune,
    generic,
    inference,
    prune,
    quantize,
    scaling,
    serving,
    training,
)
from scalebench.reporting.sections.base import Section, Subject

# The first that applies to a study or an operation shows it; FALLBACK shows a study for which none does.
SECTIONS: tuple[Section, ...] = (
    inference.SECTION,
    serving.SECTION,
    finetune.SECTION,
    branches.SECTION,
    quantize.SECTION,
    prune.SECTION,
    distill.SECTION,
    scaling.SECTION,
    data.SECTION,
    choices.SECTION,
    training.SECTION,
    comparison.SECTION,
)
FALLBACK: Section = generic.SECTION


def section_for(subject: Subject) -> Section:
    """Return the kind of section that shows a study or an operation."""
    return next((section for section in SECTIONS if section.applies(subject)), FALLBACK)
