"""The report on results folders, with compute at other sizes counted."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scalebench import reporting
from scalebench.running.dials import count_dial


def report(paths: str | Path | Sequence[str | Path], output: str | Path) -> Path:
    """Write the report on one results folder or several to ``output`` and return it.

    Raises ``InputError`` for what is no path, ``StoreError``.
    """
    return reporting.report(paths, output, count_dial)
