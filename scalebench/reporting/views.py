"""What the template fills in: figures with their data, and files carried in the page."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pandas as pd
from markupsafe import Markup

from scalebench.reporting.figures import Words
from scalebench.reporting.quantities import quantity
from scalebench.reporting.svg import Marks, canvas, to_svg
from scalebench.reporting.tables import Table


@dataclass(frozen=True)
class FigureView:
    """One figure of the page; ``svg`` is empty where nothing was measured, or where ``caption`` gives a refusal."""

    title: str
    svg: Markup
    caption: str
    table: Table | None


@dataclass(frozen=True)
class Download:
    """A file carried in the page."""

    name: str
    uri: str
    sha256: str
    size: str


def drawn(
    name: str, title: str, draw: Callable[[Marks], Words | str | None], *, possible: bool = True
) -> FigureView | None:
    """Draw one figure; where ``draw`` has nothing to say, the figure says so, or is None unless ``possible``."""
    with canvas(name) as marks:
        words = draw(marks)
        if words is None and not possible:
            return None
        if words is None or isinstance(words, str):
            return FigureView(title, Markup(""), words or "Not measured in these trials.", None)
        # Safe: ElementTree has escaped every text and attribute of it.
        thinned = " Crowded groups of marks are thinned evenly." if marks.thinned else ""
        caption = words.caption + thinned
        return FigureView(title, Markup(to_svg(marks, name, title, caption)), caption, words.table)  # noqa: S704


def downloads(name: str, raw: pd.DataFrame, limit: int) -> Iterator[Download]:
    """Carry the rows as CSV and JSON of at most ``limit`` bytes each.

    The attempt's folder stays out: it is a path of one machine.
    """
    rows = raw.drop(columns="attempt_dir", errors="ignore")
    records = json.dumps(json.loads(rows.to_json(orient="records", double_precision=15)), indent=1, sort_keys=True)
    for suffix, kind, text in (("csv", "text/csv", rows.to_csv(index=False)), ("json", "application/json", records)):
        content = text.encode()
        if len(content) <= limit:
            uri = f"data:{kind};charset=utf-8;base64,{base64.b64encode(content).decode()}"
            digest = hashlib.sha256(content).hexdigest()
            yield Download(f"{name}.{suffix}", uri, digest, quantity(len(content), "B"))
