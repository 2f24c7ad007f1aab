"""The HTML report: one self-contained file made from results folders. Nothing here imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scalebench.analysis.counting import Count
    from scalebench.analysis.study import StudyAnalysis
    from scalebench.store import Results
    from scalebench.store.comparisons import Comparisons

__all__ = ["check_page", "conclusions", "picture", "render", "report", "write"]

OTHER_FORMATS = {".pdf", ".png", ".svg", ".jpg", ".md", ".docx", ".json", ".csv", ".parquet"}

# The drawing libraries are imported on use, so that a command that draws nothing does not wait for them.


def report(paths: str | Path | Sequence[str | Path], output: str | Path, count: Count | None = None) -> Path:
    """Write the report on one results folder or several to ``output`` and return it; ``count`` as of a StudyAnalysis.

    Raises ``InputError`` for what is no path, and for an output that is named as another format; ``StoreError``.
    """
    from scalebench.analysis.study import analyse_all, damaged_elsewhere
    from scalebench.errors import expect
    from scalebench.store import read_results
    from scalebench.store.comparisons import read_comparisons

    expect(paths, str | Path | Sequence, "report: expected the paths of results folders")
    folders = [paths] if isinstance(paths, str | Path) else paths
    for path in (*folders, output):
        expect(path, str | Path, "report: expected a path")
    check_page(Path(output))
    results = read_results(*folders)
    studies = analyse_all(results, count)
    return write(studies, Path(output), damaged_elsewhere(results), read_comparisons(*map(Path, folders)))


def check_page(output: Path) -> None:
    """Raise ``InputError`` for a page that is named as a file of another format, ``StoreError`` where none can be."""
    from scalebench.errors import InputError
    from scalebench.store import StoreError, check_output

    if output.suffix.lower() in OTHER_FORMATS:
        raise InputError(f"{output}: a report is HTML: name a file that ends in .html; a browser prints it as PDF")
    try:
        check_output(output)
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error


def render(results: Results, compared: Comparisons | None = None) -> str:
    """Return the page on every study and comparison; the same results give the same bytes."""
    from scalebench.analysis.study import analyse_all, damaged_elsewhere
    from scalebench.reporting import page

    return page.render_page(analyse_all(results), damaged_elsewhere(results), compared)


def write(
    studies: Sequence[StudyAnalysis], output: Path, damaged: Sequence[str] = (), compared: Comparisons | None = None,
    *, live: bool = False,
) -> Path:  # fmt: skip
    """Write the page on analysed studies and comparisons to ``output`` and return it. Raises ``StoreError``.

    ``damaged`` are lines on files that belong to no study. A ``live`` page, of a run that goes on, loads itself again.
    """
    from scalebench.reporting import page

    return page.write_page(page.render_page(studies, damaged, compared, live=live), output)


def picture(study: StudyAnalysis, output: Path) -> Path:
    """Draw a study's first figure as a PNG and return its path."""
    from scalebench.reporting import page

    return page.draw_picture(study, output)


def conclusions(study: StudyAnalysis) -> list[str]:
    """Return the sentences at the head of a study's section."""
    from scalebench.reporting.sections import section_for

    return list(section_for(study).conclusions(study))
