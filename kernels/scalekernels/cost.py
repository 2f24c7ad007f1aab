"""The cost of an operation, for comparing its time with a device's ceilings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOPs (a multiply-add is two), and the bytes that have to be read from and written to memory."""

    flops: int
    bytes_read: int
    bytes_written: int

    @property
    def bytes_moved(self) -> int:
        """Bytes in both directions."""
        return self.bytes_read + self.bytes_written
