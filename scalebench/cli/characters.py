"""Characters for terminals and files whose encoding lacks those that the commands print."""

from __future__ import annotations

import codecs
import io
import sys

# What is written where the terminal's encoding lacks a character; any other is written as an escape.
PLAIN = {
    "−": "-", "–": "-", "—": "-", "×": "x", "·": "*", "±": "+-", "µ": "u", "μ": "u", "→": "->", "…": "...", "≤": "<=",
    "≥": ">=", "✗": "x", "²": "^2", "\u00a0": " ", "α": "alpha", "β": "beta", "δ": "delta", "λ": "lambda",
}  # fmt: skip


def plain_characters(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks, as an error handler of ``codecs``."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    text = "".join(PLAIN.get(letter) or letter.encode("ascii", "backslashreplace").decode() for letter in missing)
    return text, error.end


def use_plain_characters() -> None:
    """Let standard output and errors replace what their encoding lacks."""
    codecs.register_error("scalebench", plain_characters)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="scalebench")
