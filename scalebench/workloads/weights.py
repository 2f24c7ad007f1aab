"""Trained weights on disk, written by safetensors beside the record; and files that are known by their SHA-256."""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors

from scalebench.store import StoreError, open_regular

if TYPE_CHECKING:
    from torch import nn

WEIGHTS = "weights.safetensors"
STATE = "state.safetensors"  # of a training run, see ``state``


def save_weights(model: nn.Module, attempt: Path) -> tuple[str, int]:
    """Write the model's parameters and persistent buffers, tied ones once. Return the file's SHA-256 and its bytes.

    ``trial.json`` in the same folder describes the model. The file is written whole or not at all.
    """
    from safetensors.torch import save_model

    path = attempt / WEIGHTS
    with replaced(path) as temporary:
        save_model(model, str(temporary))
    return sha256_of(path), path.stat().st_size


def load_weights(model: nn.Module, attempt: Path, sha256: str | None = None) -> None:
    """Read the weights that an attempt kept into ``model``.

    Raises ``StoreError`` when the file is missing or damaged, is not of this model, or has another SHA-256.
    """
    from safetensors.torch import load_model

    path = attempt / WEIGHTS
    if sha256 is not None:
        check_sha256(path, sha256)
    try:
        load_model(model, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise StoreError(f"{path}: not the weights of this trial ({str(error).splitlines()[0]})") from error


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path; what is written there becomes ``path``, synced, unless an error is raised."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a regular file in hexadecimal digits. Raises ``StoreError`` where it cannot be read."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_sha256(path: Path, expected: str) -> None:
    """Raise ``StoreError`` unless the file is there and has this SHA-256."""
    actual = sha256_of(path)
    if actual != expected:
        raise StoreError(f"{path}: SHA-256 {actual[:16]}…, expected {expected[:16]}…: the file changed")
