"""Which provider is being sampled, written to a memory-mapped file, so that it takes almost no time."""

from __future__ import annotations

import contextlib
import mmap
from collections.abc import Callable, Iterator
from pathlib import Path

SIZE = 256


@contextlib.contextmanager
def turns(path: Path) -> Iterator[Callable[[str], None]]:
    """Yield a function that writes a name into the file at ``path``, where it survives the process."""
    path.write_bytes(bytes(SIZE))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), SIZE) as memory:

        def turn(name: str) -> None:
            memory[:] = name.encode()[:SIZE].ljust(SIZE, b"\0")

        yield turn


def last_turn(path: Path) -> str:
    """Return the name written last, "" if there is none."""
    return path.read_bytes().rstrip(b"\0").decode(errors="replace") if path.exists() else ""
