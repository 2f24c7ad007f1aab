"""The HTML report: one self-contained file made from results folders. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalebench.store import Results
    from scalebench.store.comparisons import Comparisons

__all__ = ["picture", "render", "report", "verdict"]

# The drawing libraries are imported on use, so that a command that draws nothing does not wait for them.


def report(paths: Sequence[str | Path], output: str | Path) -> Path:
    """Write the report on the results folders ``paths`` to ``output`` and return it. Raises ``StoreError``."""
    from scalebench.reporting import page

    return page.report([Path(path) for path in paths], Path(output))


def render(results: Results, compared: Comparisons | None = None) -> str:
    """Return the page on every study and comparison; the same results give the same bytes."""
    from scalebench.reporting import page

    return page.render(results, compared)


def picture(results: Results, study: str, output: Path) -> Path:
    """Draw a study's first figure, loss against size or loss of each choice, as a PNG and return its path."""
    from scalebench.reporting import page

    return page.picture(results, study, output)


def verdict(results: Results) -> list[str]:
    """Return the sentences that stand first in each study's part of the report."""
    from scalebench.reporting import page

    return page.verdicts(results)
