"""What is generic in a measured trial: its columns, its turn on the GPU, its heartbeat, its files."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from scalebench.measure.contention import core_use, start_ticks
from scalebench.measure.device_lock import WAITING, DeviceLock, gpu_uuid
from scalebench.store import Column, write_atomically

if TYPE_CHECKING:
    import torch

HEARTBEAT_EVERY_S = 1.0
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # of blocks or inodes; of a quota; of a file's size
COLUMNS = (
    Column("startup_time_s", "s", "from the start of the process to the first measured step (waiting for a GPU apart)"),
    Column(
        "wall_time_s",
        "s",
        "from the start of the process to the end of the trial (waiting for a GPU apart); null if resumed",
    ),
    Column("timing_exclusive", "", "whether the trial had its cores, or the GPU, to itself"),
    Column("others_cpu_share", "1", "share of the time of the trial's cores that other processes used"),
    Column("peak_flops_per_s", "FLOP/s", "peak rate of the device at the trial's precision"),
    Column("peak_source", "", "where the peak rate comes from"),
)


def process_age_s() -> float:
    """Return how long this process has run, in seconds, since it was started or forked."""
    if hasattr(time, "CLOCK_BOOTTIME"):  # Linux; psutil adds a time of boot in whole seconds
        return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks() / os.sysconf("SC_CLK_TCK")
    return time.time() - psutil.Process().create_time()


class Recorder:
    """Collects what a workload measures. ``columns`` becomes the record, also of a trial that fails on the way.

    ``header`` is the attempt's ``trial.json`` and ``placement`` its ``placement.json``.
    """

    def __init__(self, attempt: Path, header: dict[str, Any], placement: dict[str, Any]) -> None:
        self.attempt, self.header, self.placement = attempt, header, placement
        self.columns: dict[str, Any] = {**header["identity"], "timing_exclusive": placement["exclusive"]}
        self._lock = DeviceLock("")
        self._begun = core_use(placement.get("cpus", ()))
        self._last_beat_s = -math.inf

    @property
    def keeps_weights(self) -> bool:
        """Whether the study wants the trained weights kept (``run.checkpoint``)."""
        return bool(self.header["checkpoint"])

    @property
    def checkpoint_steps(self) -> tuple[int, ...]:
        """After how many steps weights and state are kept (``run.checkpoint_steps``)."""
        return tuple(self.header.get("checkpoint_steps", ()))

    @property
    def snapshots(self) -> bool:
        """Whether the study wants a trial to go on where it was interrupted."""
        return bool(self.header.get("checkpoint_every_steps") or self.header.get("checkpoint_every_s"))

    def snapshot_steps(self, steps: int) -> Sequence[int]:
        """Return after how many of ``steps`` steps a snapshot is due (``run.checkpoint_every_steps``)."""
        every = self.header.get("checkpoint_every_steps")
        return range(every, steps, every) if every else ()

    def snapshot_due(self, done: int, since_s: float) -> bool:
        """Return whether to write a snapshot after ``done`` steps, ``since_s`` seconds after the last one."""
        every, every_s = self.header.get("checkpoint_every_steps"), self.header.get("checkpoint_every_s")
        return bool((every and done % every == 0) or (every_s and since_s >= every_s))

    @property
    def memory_method(self) -> str:
        """How memory is split by category: "tracked" or "allocator" (``run.memory``).

        Where trials of the study have several processes, which torch's tracker does not know, all use the allocator.
        """
        if self.header.get("most_processes", 1) > 1:
            return "allocator"
        return str(self.header.get("memory", "tracked"))

    def claim(self, device: torch.device) -> None:
        """Wait for the GPU, and hold it until this process ends, since its memory is taken as long.

        Trials that share a GPU hold the lock together, and wait only for those that do not. The file ``waiting`` is in
        the attempt's folder as long as this waits.
        """
        self._lock, mark = DeviceLock(gpu_uuid(device)), self.attempt / WAITING
        try:
            self._lock.take(shared=not self.placement["exclusive"], waiting=mark.touch)
        finally:
            mark.unlink(missing_ok=True)

    def age_s(self) -> float:
        """Return how long this process has run, without waiting for the GPU and for the measured peak of the CPU."""
        return process_age_s() - self._lock.waited_s - float(self.placement.get("peaks_time_s", 0.0))

    def exclusivity(self) -> dict[str, Any]:
        """Return the columns on who else ran: on a CPU, others that used the trial's cores make its times not its own.

        A GPU is the trial's own by its lock.
        """
        now = core_use(self.placement.get("cpus", ()))
        if now is None or self._begun is None:
            return {}
        on_gpu = self._lock.path is not None
        alone = self.placement["exclusive"] and (on_gpu or now.undisturbed(self._begun))
        return {"others_cpu_share": now.others_share(self._begun), "timing_exclusive": alone}

    def peak_flops_per_s(self, precision: str) -> float | None:
        """Return the device's peak rate at a precision and record it with its source; None where it is not known."""
        peak = self.placement["peaks"][precision]
        self.columns |= {"peak_flops_per_s": peak["flops_per_s"], "peak_source": peak["source"]}
        rate: float | None = peak["flops_per_s"]
        return rate

    def progress(self, done: int, total: int, loss: Callable[[], float] | None = None) -> None:
        """Record the steps done, and write a heartbeat: the first time, at most one a second, and one at the end.

        The heartbeat has the ``loss`` of the last step, if there is one, and the memory of this process. A full disk
        may have room again before the trial ends: until then heartbeats are left out.
        """
        self.columns["stop_step"] = done
        now = time.monotonic()
        if now - self._last_beat_s >= HEARTBEAT_EVERY_S or done == total:
            self._last_beat_s = now
            # Once a second: not synced.
            beat: dict[str, float] = {"step": done, "steps": total, "memory_bytes": psutil.Process().memory_info().rss}
            value = None if loss is None else loss()
            if value is not None and math.isfinite(value):
                beat["loss"] = value
            temporary = self.attempt / ".heartbeat.tmp"
            try:
                temporary.write_text(json.dumps(beat), encoding="utf-8")
                temporary.replace(self.attempt / "heartbeat.json")  # whole, also where the worker is stopped in between
            except OSError as error:
                if error.errno not in DISK_FULL:
                    raise

    def save_samples(self, name: str, frame: Any) -> None:
        """Write a table of samples as Parquet, atomically. Where that fails the trial keeps its result without them."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        try:
            write_atomically(self.attempt / name, buffer.getvalue())
        except OSError as error:
            print(f"{self.attempt / name}: not written ({error.strerror}): samples are lost", file=sys.stderr)
