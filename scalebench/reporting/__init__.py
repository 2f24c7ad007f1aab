"""The HTML report: one self-contained file made from results folders. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalebench.analysis.study import StudyAnalysis
    from scalebench.store import Results
    from scalebench.store.comparisons import Comparisons

__all__ = ["picture", "render", "report", "verdict", "write"]

# The drawing libraries are imported on use, so that a command that draws nothing does not wait for them.


def report(paths: Sequence[str | Path], output: str | Path) -> Path:
    """Write the report on the results folders ``paths`` to ``output`` and return it. Raises ``StoreError``."""
    from scalebench.reporting import page

    return page.report([Path(path) for path in paths], Path(output))


def render(results: Results, compared: Comparisons | None = None) -> str:
    """Return the page on every study and comparison; the same results give the same bytes."""
    from scalebench.reporting import page

    return page.render(results, compared)


def write(
    studies: Sequence[StudyAnalysis], output: Path, damaged: Sequence[str] = (), compared: Comparisons | None = None
) -> Path:
    """Write the page on analysed studies and comparisons to ``output`` and return it. Raises ``StoreError``.

    ``damaged`` are lines on files that belong to no study.
    """
    from scalebench.reporting import page

    return page.write(studies, output, damaged, compared)


def picture(study: StudyAnalysis, output: Path) -> Path:
    """Draw a study's first figure, loss against size or loss of each choice, as a PNG and return its path."""
    from scalebench.reporting import page

    return page.picture(study, output)


def verdict(study: StudyAnalysis) -> list[str]:
    """Return the sentences that stand first in a study's part of the report."""
    from scalebench.reporting import sentences

    return list(sentences.verdict(study))
