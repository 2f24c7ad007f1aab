"""Checkpoints of a run under way (``run.checkpoint_steps``), each a folder with weights and state from which to branch.

``attempt/step-N/`` has what an attempt keeps at its end; ``attempt/checkpoints.json`` maps N, the steps done, to the
SHA-256 of both files and to the step count of the whole chain.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scalebench.store import StoreError, read_json, write_json

INDEX = "checkpoints.json"
KINDS = {"weights_sha256": str, "state_sha256": str, "end": int}


def checkpoint_folder(attempt: Path, step: int) -> Path:
    """Return where a checkpoint after ``step`` steps of the attempt is, or would be."""
    return attempt / f"step-{step}"


def add_checkpoint(attempt: Path, step: int, about: dict[str, Any]) -> None:
    """Enter a checkpoint whose files are written."""
    write_json(
        attempt / INDEX, {str(number): each for number, each in checkpoints(attempt).items()} | {str(step): about}
    )


def checkpoints(attempt: Path) -> dict[int, dict[str, Any]]:
    """Return the checkpoints of an attempt by their step: ``weights_sha256``, ``state_sha256`` and ``end``.

    Raises ``StoreError`` for a file with any other content.
    """
    path = attempt / INDEX
    content = read_json(path) if path.exists() else {}
    for step, about in content.items():
        kinds = {name: type(value) for name, value in about.items()} if isinstance(about, dict) else {}
        if not (step.isascii() and step.isdigit()) or kinds != KINDS:
            raise StoreError(f"{path}: {step[:60]!r}: not the step of a checkpoint with its SHA-256")
    return {int(step): about for step, about in content.items()}


def has_checkpoints(attempt: Path, steps: Iterable[int]) -> bool:
    """Return whether an attempt kept a checkpoint after each of these steps; False if its list is damaged."""
    try:
        return set(steps) <= set(checkpoints(attempt))
    except StoreError:
        return False


def copy_checkpoints(earlier: Path, attempt: Path, done: int) -> None:
    """Copy the checkpoints of the first ``done`` steps of an interrupted attempt to the one that resumes it."""
    if earlier == attempt:
        return
    for step, about in checkpoints(earlier).items():
        if step <= done:
            shutil.copytree(checkpoint_folder(earlier, step), checkpoint_folder(attempt, step))
            add_checkpoint(attempt, step, about)
