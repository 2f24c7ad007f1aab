"""Files that a command writes to a path the user gave: through devices, FIFOs and links, keeping the file's mode."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path

SPECIAL_FOLDERS = ("/dev", "/proc")  # what stands here is written in place, a redirected standard output too


def write_output(path: Path, content: bytes) -> None:
    """Write a file that the user named. Raises ``OSError``.

    A regular file, or the one that a link names, holds either all of ``content`` or what it held before, and keeps its
    mode and owner. Devices and FIFOs are written to, never replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.stat() if path.exists() else None
    if before is not None and (not stat.S_ISREG(before.st_mode) or str(path.absolute()).startswith(SPECIAL_FOLDERS)):
        with path.open("wb") as file:
            file.write(content)
    else:
        target = Path(os.path.realpath(path))
        if target.is_symlink():  # links in a circle
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        _replace(target, content, before)


def check_output(path: Path) -> None:
    """Raise ``OSError`` where ``write_output`` could not write: before the work that makes the content."""
    if path.is_dir():
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if path.is_file() or not path.exists():
        folder = next(parent for parent in Path(os.path.realpath(path)).parents if parent.exists())
        probe = folder / f".probe-{secrets.token_hex(4)}"
        probe.touch()
        probe.unlink()


def _replace(target: Path, content: bytes, before: os.stat_result | None) -> None:
    """Replace a regular file as a whole."""
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")  # the target's name may be as long as names can be
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            with contextlib.suppress(PermissionError):  # only root may give files away
                os.chown(temporary, before.st_uid, before.st_gid)
            temporary.chmod(stat.S_IMODE(before.st_mode))
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
