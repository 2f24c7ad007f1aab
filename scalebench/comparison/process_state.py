"""What the cases of one process of a comparison share, and its exit statuses."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from scalebench.comparison.failure import failure
from scalebench.comparison.operations import Operation
from scalebench.comparison.timing import Clock
from scalebench.measure.device_lock import DeviceLock

DEVICE_LOST = 70  # exit status after an error that leaves the device unusable: start again without that provider
WAITING = "waiting for the GPU"  # the phase in which no provider runs
CAPTURE_BROKEN = 71  # exit status after a broken capture, which is recorded: start again without that capture


@dataclass
class Process:
    """What all cases of this process share."""

    folder: Path
    index: int
    request: Mapping[str, Any]
    operation: Operation
    device: torch.device
    clock: Clock
    lock: DeviceLock
    crashed: list[dict[str, Any]] = field(default_factory=list)
    uncaptured: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, case: int, provider: str, phase: str) -> None:
        """Write which phase begins now; not synced, since it only has to survive this process, not the machine."""
        temporary = self.folder / ".phase.json.tmp"
        state = {"case": case, "provider": provider, "phase": phase, "time": time.time()}
        temporary.write_text(json.dumps(state), encoding="utf-8")
        temporary.replace(self.folder / "phase.json")

    def alone(self, case: int) -> AbstractContextManager[None]:
        """Hold the GPU's lock, for everything that runs on the GPU; the phase is ``WAITING`` until it is free."""
        return self.lock.holding(waiting=lambda: self.enter(case, "", WAITING))

    def crash_of(self, case: int, provider: str) -> dict[str, Any]:
        """Return how a provider ended this process before in a case, or {"status": "ok"}."""
        for crash in self.crashed:
            if crash["case"] == case and crash["provider"] == provider:
                return {key: crash[key] for key in ("status", "error_class", "error_message")}
        return {"status": "ok"}


def leave_if_lost(process: Process, error: Exception) -> None:
    """Exit if a failure has left the device unusable; otherwise every later provider would fail for it."""
    if process.device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(process.device)
        torch.zeros(1, device=process.device).add_(1).item()
    except RuntimeError:
        (process.folder / "lost.json").write_text(json.dumps(failure(error)), encoding="utf-8")
        sys.exit(DEVICE_LOST)
