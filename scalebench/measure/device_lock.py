"""One measurement at a time on a GPU, whoever starts it: an advisory lock that ends with the process that holds it.

The lock is a ``flock`` on an empty file named by the GPU's UUID, in a folder that all users of the machine share. The
file is never deleted: a lock is gone when its process is, so nothing can be left behind. Only what runs on the GPU has
to hold it; imports, data and a CUDA context may come before.
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

FOLDER = Path("/tmp")  # noqa: S108 - TMPDIR may be another one for every user
WAITING = "waiting"  # the file in an attempt's folder that says that its worker waits for the GPU
TRIES, PAUSE_S = 20, 0.05  # a file just made by another user is readable a moment later


def gpu_uuid(device: torch.device) -> str:
    """Return what tells this GPU (or part of one) from every other; "" for a CPU, which has no lock."""
    if device.type != "cuda":
        return ""
    import torch

    return str(torch.cuda.get_device_properties(device).uuid)


class FileLock:
    """An advisory lock on a file, free until ``take``; it ends with the process that holds it.

    ``waited_s`` is how long taking it took, in seconds. Without a path there is nothing to take and nothing to wait
    for.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.waited_s = 0.0
        self._file: int | None = None

    def take(self, *, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> None:
        """Wait until nobody else has it and take it; with ``shared`` beside others that share it.

        ``waiting`` is called once if it is not free at once. Raises ``OSError`` when the file cannot be locked,
        ``PermissionError`` among them when it cannot be read.
        """
        begun = time.monotonic()
        if not self.try_take(shared=shared):
            waiting()
            self._lock(shared=shared, wait=True)
        self.waited_s = time.monotonic() - begun

    def try_take(self, *, shared: bool = False) -> bool:
        """Take it if it is free; return whether this process has it now."""
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
        """Open the file that is locked, making it if it is not there; for writing, as network file systems want it."""
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)

    def release(self) -> None:
        """Let the next one have it."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    @contextlib.contextmanager
    def held(self, *, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold it for the length of a ``with``; see ``take``."""
        self.take(shared=shared, waiting=waiting)
        try:
            yield
        finally:
            self.release()


class DeviceLock(FileLock):
    """The lock of one GPU, by its UUID; "" stands for a CPU, which has none."""

    def __init__(self, name: str, folder: Path | None = None) -> None:
        super().__init__((folder or FOLDER) / f"scalebench-{name}.lock" if name else None)

    @staticmethod
    def open(path: Path) -> int:
        """Open a file that all users of the machine share."""
        return _open(path)


def _open(path: Path) -> int:
    """Open the file for reading, which is all that ``flock`` needs, making it readable by all if it is not there.

    It is not opened to be created where it exists: Linux forbids that in a shared folder for another user's file.
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
    raise FileNotFoundError(f"{path} is deleted as often as it is made")
