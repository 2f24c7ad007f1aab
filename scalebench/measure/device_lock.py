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


class DeviceLock:
    """The lock of one GPU, free until ``take``. ``waited_s`` is how long taking it took, in seconds.

    Without a name (a CPU) there is nothing to take and nothing to wait for.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.path = (folder or FOLDER) / f"scalebench-{name}.lock" if name else None
        self.waited_s = 0.0
        self._file: int | None = None

    def take(self, *, shared: bool = False, waiting: Callable[[], None] = lambda: None) -> None:
        """Wait until nobody else has it and take it; with ``shared`` beside others that share it.

        ``waiting`` is called once if it is not free at once. Raises ``PermissionError`` when the file cannot be read.
        """
        if self.path is None or self._file is not None:
            return
        kind, file, begun = fcntl.LOCK_SH if shared else fcntl.LOCK_EX, _open(self.path), time.monotonic()
        try:
            try:
                fcntl.flock(file, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(file, kind)
        except BaseException:
            os.close(file)
            raise
        self._file, self.waited_s = file, time.monotonic() - begun

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
