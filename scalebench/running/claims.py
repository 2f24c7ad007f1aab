"""Claims of trials: any number of drivers, on one machine or several, share a results folder without a server.

Before a trial is started its driver links the attempt's ``trial.json`` to ``trials/<trial_id>/claim-<number>``. A hard
link is made by one process only, also over NFS. ``number`` is one more than that of the last claim the driver knew of,
so the second driver finds the name taken. Claims are never removed: one is settled once its attempt has a record,
and void once its driver has ended.

A driver is alive as long as ``drivers/<name>.json`` is there and changes. An observer in the same process namespace
looks for its process instead. Any other waits ``STALE_S`` by its own monotonic clock; clocks are never compared.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from scalebench.measure.contention import start_ticks
from scalebench.measure.environment import machine_id
from scalebench.store import StoreError, make_folder, read_header, read_json

BEAT_EVERY_S = 1.0
STALE_S = 30.0
# File systems without hard links report one of these.
NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


@dataclass(frozen=True)
class Claim:
    """The latest claim of a trial: its number, the attempt that it is for, and the driver that made it."""

    number: int
    attempt: Path
    driver: str

    @property
    def settled(self) -> bool:
        """Whether its attempt has a record."""
        return (self.attempt / "record.json").exists()


def last_claim(trial_dir: Path) -> Claim | None:
    """Return the claim with the highest number, None for a trial that was never claimed."""
    # Programs that copy or synchronise folders leave files of similar names.
    paths = (path for path in trial_dir.glob("claim-*") if path.name.removeprefix("claim-").isdecimal())
    path = max(paths, default=None, key=lambda path: int(path.name.removeprefix("claim-")))
    if path is None:
        return None
    try:
        header: dict[str, Any] = read_json(path)
    except StoreError:  # damaged, or removed meanwhile: void, and the next number follows
        header = {}
    attempt = Path(str(header.get("attempt", "no attempt"))).name
    return Claim(int(path.name.removeprefix("claim-")), trial_dir / attempt, str(header.get("driver", "")))


def claim_path(trial_dir: Path, number: int) -> Path:
    """Return where a trial's claim of this number is, or would be."""
    return trial_dir / f"claim-{number:06d}"


def take(attempt: Path) -> bool:
    """Claim the trial of an attempt for the driver that made it; False where another driver was faster.

    ``trial.json`` has the number of the claim. An attempt without one (of a test, or another program) needs no claim.
    """
    header = read_header(attempt)
    if "claim" not in header:
        return True
    claim = claim_path(attempt.parent, header["claim"])
    try:
        os.link(attempt / "trial.json", claim)
    except FileExistsError:
        return claim.samefile(attempt / "trial.json")  # over NFS a link can be made and its answer be lost
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        return _create(claim, header)
    return True


def _create(claim: Path, header: dict[str, Any]) -> bool:
    try:
        with claim.open("x", encoding="utf-8") as file:
            json.dump({name: header[name] for name in ("attempt", "driver", "claim")}, file)
    except FileExistsError:
        return False
    return True


# --- drivers ---------------------------------------------------------------------------------------------------------


def process_space() -> str:
    """Return an id of the namespace in which process ids are unique: the boot of a machine, and the container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return machine_id()


def process_start(pid: int) -> float | None:
    """Return a number that tells a process from later ones with its id; None if it does not run.

    On Linux these are the ticks of the clock from boot to its start; psutil adds the time of day at boot, which is
    another once the clock is set.
    """
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(start_ticks(pid)) if sys.platform == "linux" else process.create_time()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None


@contextlib.contextmanager
def driving(study_dir: Path) -> Iterator[str]:
    """Register as a driver of a study during a ``with`` block, and return its name; a thread updates its file."""
    name, end = secrets.token_hex(8), threading.Event()
    path = study_dir / "drivers" / f"{name}.json"
    make_folder(study_dir.parent, path.parent)
    _beat(path, 0)
    thread = threading.Thread(target=_keep_beating, args=(path, end), daemon=True)
    thread.start()
    try:
        yield name
    finally:
        end.set()
        thread.join()
        path.unlink(missing_ok=True)


def _keep_beating(path: Path, end: threading.Event) -> None:
    beat = 1
    while not end.wait(BEAT_EVERY_S):
        with contextlib.suppress(OSError):  # such as a full disk: the next one may succeed
            _beat(path, beat)
        beat += 1


def _beat(path: Path, number: int) -> None:
    """Replace the driver's file. It is not synced: after a power cut the driver is gone."""
    content = {"space": process_space(), "pid": os.getpid(), "start": process_start(os.getpid()), "beat": number}
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(content), encoding="utf-8")
    temporary.replace(path)


@dataclass
class Observer:
    """Judges whether the drivers of a study are alive."""

    study_dir: Path
    _beats: dict[str, tuple[Any, float]] = field(default_factory=dict)

    def alive(self, driver: str) -> bool:
        """Whether a driver runs: its process is there, or its file has changed within the last ``STALE_S``."""
        try:
            state = read_json(self.study_dir / "drivers" / f"{Path(driver).name}.json")
        except StoreError:
            return False
        if state.get("space") == process_space():
            return isinstance(state.get("pid"), int) and process_start(state["pid"]) == state.get("start")
        now = time.monotonic()
        beat, since = self._beats.get(driver, (None, now))
        if beat != state.get("beat"):
            since = now
        self._beats[driver] = (state.get("beat"), since)
        return now - since < STALE_S

    def running(self, trial_dir: Path) -> Path | None:
        """Return the attempt of a trial that is running; None if it is not."""
        claim = last_claim(trial_dir)
        return claim.attempt if claim and not claim.settled and self.alive(claim.driver) else None
