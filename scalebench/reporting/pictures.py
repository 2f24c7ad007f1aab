"""Figures as files of their own, on white, for a README or a slide: PNG, SVG or PDF by the file's suffix."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

from scalebench.errors import InputError
from scalebench.reporting.svg import Marks, canvas, quiet
from scalebench.store import StoreError, check_output, write_output

# What would make two files of one figure differ.
METADATA = {".png": {"Software": None}, ".svg": {"Date": None}, ".pdf": {"CreationDate": None}}
DOTS_PER_INCH = 150


def check_plot(output: Path | None) -> None:
    """Raise ``InputError`` for a file whose suffix names no format, ``StoreError`` for one that cannot be written."""
    if output is None:
        return
    if output.suffix.lower() not in METADATA:
        raise InputError([f"--plot {output}: suffix {output.suffix!r} is not one of {', '.join(METADATA)}"])
    try:
        check_output(output)
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error


@quiet()
def draw_plot(figure: Callable[[Marks], None], output: Path | None) -> None:
    """Draw a figure into a file, if there is one to draw it into. Raises ``StoreError``."""
    if output is None:
        return
    with canvas(output.name, height=4.2) as marks:
        figure(marks)
        save(marks, output)


def save(marks: Marks, output: Path) -> Path:
    """Write what was drawn to a file and return its path. Raises ``StoreError``."""
    picture, suffix = io.BytesIO(), output.suffix.lower()
    suffix = suffix if suffix in METADATA else ".png"
    marks.figure.savefig(picture, format=suffix[1:], dpi=DOTS_PER_INCH, facecolor="white", metadata=METADATA[suffix])
    try:
        write_output(output, picture.getvalue())
    except OSError as error:
        raise StoreError(f"{output}: cannot be written ({error.strerror})") from error
    return output
