"""What an operation costs, to hold its time against a device's ceilings."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """FLOPs (a multiply-add as two) and the bytes that must cross the memory bus at least once each way."""

    flops: int
    bytes_read: int
    bytes_written: int

    @property
    def bytes_moved(self) -> int:
        """Bytes in both directions."""
        return self.bytes_read + self.bytes_written
