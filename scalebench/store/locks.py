"""Advisory file locks, released when their process ends: a crash leaves nothing behind but an empty file."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path


class FileLock:
    """An advisory lock on a file, not held until ``take``; released when the process ends.

    ``waited_s`` is how long ``take`` waited, in seconds. Without a path, nothing is locked.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.waited_s = 0.0
        self._file: int | None = None

    def take(self, *, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> None:
        """Wait until the lock is free and take it; a ``shared`` lock can be held by several processes.

        ``waiting`` is called once if the lock is not free at once. Raises ``OSError`` if the file cannot be locked,
        such as ``PermissionError`` if it cannot be read.
        """
        if self._file is not None:
            return
        begun = time.monotonic()
        if not self.try_take(shared=shared):
            waiting()
            self._lock(shared=shared, wait=True)
        self.waited_s = time.monotonic() - begun

    def try_take(self, *, shared: bool = False) -> bool:
        """Take the lock if it is free; return whether this process holds it now."""
        try:
            self._lock(shared=shared, wait=False)
        except BlockingIOError:
            return False
        return True

    def _lock(self, *, shared: bool, wait: bool) -> None:
        if self.path is None or self._file is not None:
            return
        file = self.open(self.path)
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BaseException:
            os.close(file)
            raise
        self._file = file

    @staticmethod
    def open(path: Path) -> int:
        """Open or create the file; for writing, since an exclusive lock over NFS needs that."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)

    def release(self) -> None:
        """Release the lock."""
        file, self._file = self._file, None  # first: the next process waiting goes on as soon as it is closed
        if file is not None:
            os.close(file)

    @contextlib.contextmanager
    def holding(self, *, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock during a ``with`` block; see ``take``."""
        self.take(shared=shared, waiting=waiting)
        try:
            yield
        finally:
            self.release()
