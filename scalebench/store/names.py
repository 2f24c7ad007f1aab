"""Names that become parts of paths: those read from files are checked before they are used."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from scalebench.errors import InputError
from scalebench.store.files import StoreError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
RULE = "letters, digits, '.', '_' and '-', at most 100, the first a letter or digit"
STAMP = "%Y%m%dT%H%M%S%fZ"


def is_name(value: Any) -> bool:
    """Whether a value can name a file or folder: no separators, no "..", no control characters, not hidden."""
    return isinstance(value, str) and NAME.fullmatch(value) is not None


def check_name(label: str, value: Any) -> str:
    """Return ``value`` if it can name a file or folder; otherwise ``StoreError`` with the rule."""
    if not is_name(value):
        raise StoreError(f"{label}: {str(value)[:60]!a} cannot name a file or folder; allowed: {RULE}")
    return str(value)


def following(prefix: str, present: Iterable[str]) -> str:
    """Return a unique name that begins with ``prefix`` and the time, and sorts after all that are ``present``.

    A clock that was set back would otherwise make the newest of them sort before an older one.
    """
    now, newest = datetime.now(UTC), max((name for name in present if name.startswith(prefix)), default="")
    try:
        last = datetime.strptime(newest.removeprefix(prefix).partition("-")[0], STAMP).replace(tzinfo=UTC)
        now = max(now, last + timedelta(microseconds=1))
    except (ValueError, OverflowError):  # there is none, or it was named by hand
        pass
    return f"{prefix}{now.strftime(STAMP)}-{secrets.token_hex(3)}"


def check_inside(folder: Path, path: Path) -> None:
    """Raise ``StoreError`` where symbolic links lead from ``path`` out of ``folder``; neither needs to exist."""
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder)):
        raise StoreError(f"{path}: a symbolic link leads out of {folder}; nothing is written there")


def make_folder(results: Path, folder: Path) -> None:
    """Make a folder within the results. Raises ``StoreError`` where a symbolic link leads out of them, ``OSError``."""
    check_inside(results, folder)
    folder.mkdir(parents=True, exist_ok=True)


def expanded(path: str | Path) -> Path:
    """Return a path with the home folder in the place of ``~`` or ``~name``.

    Raises ``InputError`` where there is no user of that name.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"{path}: there is no such user as after the ~; write the whole path") from error
