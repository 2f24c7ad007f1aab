"""A trial under measurement: its columns fill as it goes on, its samples are kept, and it tells that it lives."""

from __future__ import annotations

import io
import json
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

from scalebench.measure.device_lock import WAITING, DeviceLock, gpu_uuid
from scalebench.store import write_atomically
from scalebench.study import Trial

if TYPE_CHECKING:
    import torch

HEARTBEAT_EVERY_S = 1.0


def identity_columns(header: dict[str, Any], trial: Trial) -> dict[str, Any]:
    """Return the columns that say which trial this is: the axes by their own names."""
    return {
        **trial.model,
        **dict(trial.work),
        "precision": trial.work.precision,
        "workload": "inference" if trial.inference else "training",
        "source": trial.data.source,
        "data_vocab_size": trial.data.vocab_size,
        "data_sha256": trial.data.sha256,
        "validation_fraction": trial.data.validation_fraction,
        "noise_std": trial.data.noise_std,
        "study": header["study"],
        "trial_id": header["trial_id"],
        "command": header["command"],
        "requested_params": header["requested"].get("params"),
        "size": header["requested"].get("size"),
        "family": trial.family,
        "device_kind": trial.device_kind,
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def count_columns(counts: Any) -> dict[str, Any]:
    """Return the columns of a model's size."""
    return {"params": counts.total, "params_non_embedding": counts.non_embedding, "params_active": counts.active}


def process_age_s() -> float:
    """Return how long this process has run: interpreter, imports, data and model, before the first step."""
    return time.time() - psutil.Process().create_time()


class Measured:
    """A trial under measurement: ``columns`` fills as the run gets on, so that a broken one keeps what it had."""

    def __init__(self, attempt: Path, header: dict[str, Any], trial: Trial, placement: dict[str, Any]) -> None:
        self.attempt, self.header, self.trial, self.placement = attempt, header, trial, placement
        self.beaten = time.monotonic()
        self.columns: dict[str, Any] = identity_columns(header, trial)
        self.columns["timing_exclusive"] = placement["exclusive"]
        self.lock = DeviceLock("")

    def claim(self, device: torch.device) -> None:
        """Wait for the GPU, and have it until this process ends, as this trial's memory is taken as long.

        Trials that share a GPU hold the lock together, and wait only for those that do not. The file ``waiting`` lies
        in the attempt's folder as long as this waits.
        """
        self.lock, mark = DeviceLock(gpu_uuid(device)), self.attempt / WAITING
        try:
            self.lock.take(shared=not self.placement["exclusive"], waiting=mark.touch)
        finally:
            mark.unlink(missing_ok=True)

    def age_s(self) -> float:
        """Return how long this process has run, without the time that it waited for the GPU."""
        return process_age_s() - self.lock.waited_s

    def run(self) -> None:
        """Do what the trial asks for, filling ``columns``."""
        raise NotImplementedError

    def save_samples(self) -> None:
        """Write every sample taken so far."""
        raise NotImplementedError

    def beat(self, done: int, of: int) -> None:
        """Tell the engine, at most once a second and at the end, how far this trial is."""
        self.columns["stop_step"] = done
        now = time.monotonic()
        if now - self.beaten >= HEARTBEAT_EVERY_S or done == of:
            self.beaten = now
            # Once a second: not synced.
            (self.attempt / "heartbeat.json").write_text(json.dumps({"step": done, "steps": of}), encoding="utf-8")

    def save_frame(self, name: str, frame: Any) -> None:
        """Write a table of samples as Parquet, atomically."""
        buffer = io.BytesIO()
        frame.to_parquet(buffer, index=False)
        write_atomically(self.attempt / name, buffer.getvalue())
