"""Advisory file locks, released when their process ends; one per GPU, so that only one process measures on it.

A lock is a ``flock`` on an empty file. A GPU's is named by its UUID, in a folder that all users of the machine share.
The file is never deleted; the lock is gone as soon as its process is, so a crash leaves nothing behind. Only work on
the GPU has to hold the GPU's lock; imports, data and a CUDA context may come before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

FOLDER = Path("/tmp")  # noqa: S108 - TMPDIR may differ between users
WAITING = "waiting"  # file in an attempt's folder while its worker waits for the GPU, or for the peak of the node
TRIES, PAUSE_S = 20, 0.05  # a file just created by another user becomes readable a moment later


def gpu_uuid(device: torch.device) -> str:
    """Return the UUID of a GPU (or of a part of one); "" for a CPU, which has no lock."""
    if device.type != "cuda":
        return ""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)


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


class DeviceLock(FileLock):
    """The lock of a GPU with this UUID; none for "", a CPU."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        super().__init__((folder or FOLDER) / f"scalebench-{name}.lock" if name else None)

    @staticmethod
    def open(path: Path) -> int:
        """Open a file that all users of the machine share."""
        return _open(path)


def _open(path: Path) -> int:
    """Open the file for reading, which is all a local ``flock`` needs; create it, readable by all, if it is missing.

    An existing file is not opened with O_CREAT: Linux forbids that for another user's file in a shared folder.
    """
    for left in reversed(range(TRIES)):
        try:
            return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                file = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o444)
                os.fchmod(file, 0o444)  # whatever the umask is
                return file
        except PermissionError:
            if not left:
                raise
            time.sleep(PAUSE_S)
    raise FileNotFoundError(f"{path}: deleted again after every attempt to create it")
