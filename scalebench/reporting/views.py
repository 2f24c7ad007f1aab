"""What templates fill in: figures with their captions and data, and files embedded in the page."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import pandas as pd
from markupsafe import Markup

from scalebench.reporting.inline_svg import to_svg
from scalebench.reporting.quantities import printable, quantity
from scalebench.reporting.svg import Marks, canvas
from scalebench.reporting.tables import Table

Subject = TypeVar("Subject")

# What numpy, pandas and matplotlib raise on data that a figure did not expect.
DRAWING_ERRORS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)


@dataclass(frozen=True)
class Caption:
    """The text below a figure, and its data as a table."""

    text: str
    table: Table


@dataclass(frozen=True)
class FigureSpec(Generic[Subject]):
    """A figure that can be drawn of a subject.

    ``draw`` returns the caption; a sentence with the reason where the figure cannot be drawn; or None where nothing
    was measured. An ``optional`` figure is then left out; any other shows the reason in its place. A ``diagnostic``
    figure is folded into the page's appendix.
    """

    key: str
    title: str
    draw: Callable[[Marks, Subject], Caption | str | None]
    optional: bool = False
    diagnostic: bool = False


@dataclass(frozen=True)
class FigureView:
    """A figure of the page. Without ``table`` nothing is drawn, and ``caption`` is the reason."""

    title: str
    svg: Markup
    caption: str
    table: Table | None
    id: str = ""
    diagnostic: bool = False


@dataclass(frozen=True)
class Download:
    """A file embedded in the page."""

    name: str
    uri: str
    sha256: str
    size: str


def draw_figure(name: str, spec: FigureSpec[Subject], subject: Subject) -> FigureView | None:
    """Draw a figure whose ids begin with ``name``; None where an optional one has nothing to show.

    A figure that fails on unexpected data is replaced by the error, so that the rest of the page is still written.
    """
    with canvas(name) as marks:
        try:
            caption = spec.draw(marks, subject)
            if isinstance(caption, Caption):
                return _drawn(marks, name, spec, caption)
        except DRAWING_ERRORS as error:
            caption = f"This figure could not be drawn: {type(error).__name__}: {error}"
    if caption is None and spec.optional:
        return None
    return FigureView(spec.title, Markup(""), caption or "Not measured in these trials.", None, name, spec.diagnostic)


def draw_figures(section: str, specs: Iterable[FigureSpec[Subject]], subject: Subject) -> tuple[FigureView, ...]:
    """Draw the figures of a section in order."""
    views = (draw_figure(f"{section}-{spec.key}", spec, subject) for spec in specs)
    return tuple(view for view in views if view is not None)


def _drawn(marks: Marks, name: str, spec: FigureSpec[Any], caption: Caption) -> FigureView:
    text = caption.text + (" Large groups of marks are thinned evenly." if marks.thinned else "")
    # Safe: ElementTree has escaped every text and attribute of it.
    svg = Markup(to_svg(marks, name, spec.title, f"{marks.description()} {text}"))  # noqa: S704
    return FigureView(spec.title, svg, text, caption.table, name, spec.diagnostic)


def as_json(table: Table) -> Markup:
    """Return a table for a script, on a page that has no room for its elements: a cell is its text, or [text, number].

    Whole numbers are exact, others have nine digits. No character of it ends the element that it is in.
    """
    rows = [[[text, int(key) if key == int(key) else float(f"{key:.9g}")]
             if isinstance(key, int | float) and math.isfinite(key) else text
             for text, key in row] for row in table.rows]  # fmt: skip
    content = {"caption": table.caption, "columns": table.columns, "units": table.units, "rows": rows}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(printable(text).replace("<", "\\u003c"))  # noqa: S704 - no markup is left in it


def downloads(name: str, rows: pd.DataFrame, limit: int, *, compress: bool = False) -> Iterator[Download]:
    """Embed the rows as CSV and as JSON, each of them only if it has at most ``limit`` bytes.

    With ``compress``, and where the CSV has more, the CSV alone as .gz. The attempt's folder is left out: it
    is a path on one machine.
    """
    rows = rows.drop(columns="attempt_dir", errors="ignore")
    table = rows.to_csv(index=False).encode("utf-8", "replace")
    compress = compress or len(table) > limit
    yield from _embedded(f"{name}.csv", "text/csv", table, limit, compress=compress)
    if not compress:  # else JSON is too large, too: the names of the columns are in each row
        records = json.dumps(json.loads(rows.to_json(orient="records", double_precision=15)), indent=1, sort_keys=True)
        yield from _embedded(f"{name}.json", "application/json", records.encode("utf-8", "replace"), limit)


def _embedded(name: str, kind: str, content: bytes, limit: int, *, compress: bool = False) -> Iterator[Download]:
    """Embed one file, where it has at most ``limit`` bytes."""
    stated = f"{kind};charset=utf-8"
    if compress:
        name, stated, content = f"{name}.gz", "application/gzip", gzip.compress(content, 6, mtime=0)
    if len(content) <= limit:
        uri = f"data:{stated};base64,{base64.b64encode(content).decode()}"
        yield Download(name, uri, hashlib.sha256(content).hexdigest(), quantity(len(content), "B"))
