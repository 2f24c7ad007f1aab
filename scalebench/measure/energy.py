"""Energy of the GPU over a window of time, from the driver's counter."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scalebench.store import Column

if TYPE_CHECKING:
    import torch

# The counter is updated every 20 to 100 ms: too coarse for windows below two seconds.
MINIMUM_WINDOW_S = 2.0

COLUMNS = (
    Column("energy_j", "J", "energy of the GPU over the measured steps or calls"),
    Column("energy_method", "", "counter that the energy was read from, or why it was not measured"),
)


@dataclass
class EnergyMeter:
    """Read NVML's total-energy counter at both ends of a window. On a CPU, counters need root."""

    device: torch.device
    _start_mj: int | None = None
    _start_s: float = 0.0

    def start(self) -> None:
        """Begin the window."""
        self._start_mj, self._start_s = self._counter_mj(), time.monotonic()

    def columns(self) -> dict[str, float | str | None]:
        """End the window and return energy_j and energy_method; null with the reason if it was not measured."""
        window_s = time.monotonic() - self._start_s
        end_mj = self._counter_mj()
        if self.device.type != "cuda":
            return {"energy_j": None, "energy_method": "none: no counter readable on a CPU without root"}
        if end_mj is None or self._start_mj is None:
            return {"energy_j": None, "energy_method": "none: the driver offers no energy counter"}
        if window_s < MINIMUM_WINDOW_S:
            return {"energy_j": None, "energy_method": f"none: window of {window_s:.2g} s is below 2 s"}
        if end_mj <= self._start_mj:  # reset with the driver, or stuck
            return {"energy_j": None, "energy_method": "none: the driver's energy counter did not advance"}
        return {"energy_j": (end_mj - self._start_mj) * 1e-3, "energy_method": "nvml total energy counter"}

    def _counter_mj(self) -> int | None:
        if self.device.type != "cuda":
            return None
        import pynvml
        import torch

        torch.cuda.synchronize(self.device)

        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(self.device).uuid)
            return int(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")))
        except pynvml.NVMLError:
            return None
