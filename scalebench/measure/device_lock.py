"""One lock per GPU, so that only one process measures on it.

It is a ``flock`` on an empty file that is named by the GPU's UUID, in a folder that all users of the machine share.
The file is never deleted. Only work on the GPU has to hold the lock; imports, data and a CUDA context may come before.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from scalebench.store.locks import FileLock

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
