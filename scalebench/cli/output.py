"""What commands print with: lines, tables, JSON, and how numbers and times are written.

Everything fits the terminal's width; into a file or a pipe, 80 columns (or the environment variable COLUMNS).
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.cells import cell_len

from scalebench.errors import number_of
from scalebench.reporting import quantities
from scalebench.store import json_safe

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
WIDTH = 80  # where there is no terminal
GAP = 2  # spaces between columns
LONGEST_MESSAGE = 500  # characters of an error
NARROWEST_TEXT = 16  # a column of text is wrapped down to this, unless a word in it is longer


def width() -> int:
    """Return how many columns a line may have."""
    return max(40, shutil.get_terminal_size((WIDTH, 24)).columns)


def wrapped(line: str, columns: int) -> list[str]:
    """Break a line between words, never within one; what follows is indented by two more spaces than the line."""
    if cell_len(line) <= columns:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.wrap(
        line, columns, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )  # fmt: skip


def say(*lines: str) -> None:
    """Print lines, broken between words where they are wider than the terminal."""
    for line in lines:
        print("\n".join(wrapped(visible(line), width())))


def visible(text: str) -> str:
    """Return a text with plain spaces, and with escapes for control characters, which could change other lines."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text.replace(quantities.NBSP, " "))


def one_line(message: object) -> str:
    """Return an error's message in one line, and only the beginning of one that would fill the screen."""
    text = " ".join(str(message).split())
    return text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}… ({len(text):,} characters)"


def say_exactly(*lines: str) -> None:
    """Print lines as they are: commands to copy, paths, generated text."""
    for line in lines:
        print(line)


def say_written(*paths: Path | None) -> None:
    """Print which files were written: those that were asked for."""
    say_exactly(*(f"written: {path}" for path in paths if path is not None))


def warn(*lines: str) -> None:
    """Print lines to standard error, broken between words on a terminal, whole elsewhere, to be searchable."""
    for line in lines:
        print("\n".join(wrapped(line, width())) if sys.stderr.isatty() else line, file=sys.stderr)


def print_json(command: str, value: Mapping[str, Any]) -> None:
    """Print what ``--json`` of a command gives: one object that names the command, null for what is not finite."""
    print(json.dumps(json_safe({"command": command, **value}), indent=1, allow_nan=False))


def print_json_line(command: str, event: str, value: Mapping[str, Any]) -> None:
    """Print one event of a long command as a JSON object on one line."""
    print(json.dumps(json_safe({"command": command, "event": event, **value}), allow_nan=False), flush=True)


# --- tables ----------------------------------------------------------------------------------------------------------


def table(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    text_columns: int = 1,
    last_is_text: bool = False,
) -> None:
    """Print a table; texts to the left (the first ``text_columns`` columns, and the last one if so), numbers right.

    A row of a single cell is a heading of the rows below it.

    Where it is too wide its texts are wrapped between words. Where that is not enough it is printed in parts, each of
    which repeats the first column.
    """
    if title:
        say(title)
    rows = [[visible(cell) for cell in row] for row in rows]
    is_text = [i < text_columns or (last_is_text and i == len(header) - 1) for i in range(len(header))]
    parts = _parts(header, rows, is_text)
    for part in parts:
        # A row with nothing to show in a later part is left out of it.
        part_rows = [
            row for row in rows if part == parts[0] or _is_heading(row, header) or any(row[i] for i in part[1:])
        ]
        cells = [row if _is_heading(row, header) else [row[i] for i in part] for row in part_rows]
        _print_part([header[i] for i in part], cells, [is_text[i] for i in part])


def _is_heading(row: Sequence[str], header: Sequence[str]) -> bool:
    return len(row) == 1 < len(header)


def _parts(header: Sequence[str], rows: Sequence[Sequence[str]], is_text: Sequence[bool]) -> list[list[int]]:
    """Return the columns of each part, by number: as many as fit beside the first one."""
    full = [row for row in rows if not _is_heading(row, header)]
    least = [_least(name, [row[i] for row in full], is_text=is_text[i]) for i, name in enumerate(header)]
    parts: list[list[int]] = [[0]]
    for i in range(1, len(header)):
        if len(parts[-1]) > 1 and sum(least[j] + GAP for j in [*parts[-1], i]) - GAP > width():
            parts.append([0])
        parts[-1].append(i)
    return parts


def _least(name: str, cells: Sequence[str], *, is_text: bool) -> int:
    """Return the narrowest a column can be."""
    whole = max(map(cell_len, (name, *cells)), default=0)
    words = [cell_len(word) for cell in (name, *cells) for word in cell.split()]
    return min(whole, max(NARROWEST_TEXT, *words, 0)) if is_text else whole


def _print_part(header: Sequence[str], rows: Sequence[Sequence[str]], texts: Sequence[bool]) -> None:
    full = [row for row in rows if not _is_heading(row, header)]
    columns = list(zip(*[header, *full], strict=True))
    widths = [max(map(cell_len, column)) for column in columns]
    spare = width() - sum(widths) - GAP * (len(widths) - 1)
    # The widest texts give way first.
    for i in sorted((i for i, is_text in enumerate(texts) if is_text), key=lambda i: -widths[i]):
        least = _least(header[i], columns[i][1:], is_text=True)
        narrower = max(least, widths[i] + min(0, spare))
        spare += widths[i] - narrower
        widths[i] = narrower
    styled = sys.stdout.isatty()
    for number, row in enumerate([header, *rows]):
        for line in [row[0]] if _is_heading(row, header) else _row_lines(row, widths, texts):
            print(f"\x1b[1m{line}\x1b[0m" if styled and number == 0 else line)


def _row_lines(row: Sequence[str], widths: Sequence[int], texts: Sequence[bool]) -> list[str]:
    """Return the lines of one row: more than one where a text is wrapped."""
    cells = [
        textwrap.wrap(cell, max(1, size), break_long_words=False, break_on_hyphens=False) or [""] if is_text else [cell]
        for cell, size, is_text in zip(row, widths, texts, strict=True)
    ]
    lines = []
    for number in range(max(map(len, cells))):
        parts = [cell[number] if number < len(cell) else "" for cell in cells]
        padded = [
            part + " " * (size - cell_len(part)) if is_text else " " * (size - cell_len(part)) + part
            for part, size, is_text in zip(parts, widths, texts, strict=True)
        ]
        lines.append((" " * GAP).join(padded).rstrip())
    return lines


# --- numbers ---------------------------------------------------------------------------------------------------------


def quantity(value: float | None, unit: str = "") -> str:
    """Write a value with three digits and its unit as in the report, with a plain space: 1.23 MFLOPs, 9.5 KiB."""
    return quantities.quantity(value, unit).replace(quantities.NBSP, " ")


def trials(number: int) -> str:
    """Write how many trials: 1 trial, 2 trials."""
    return number_of(number, "trial")


def duration(seconds: float) -> str:
    """Write a time: 42 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.2g} s" if seconds < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86400:.3g} days"
