"""Run the parts of a stage as processes of their own: side by side or alone, resumable, until a deadline."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

POLL_S = 0.05
GRACE_S = 10.0  # between asking a part to stop and stopping it: a sweep puts its results in order


@dataclass(frozen=True)
class Part:
    """A process that a stage consists of: it is done when its exit status is 0."""

    name: str
    command: tuple[str, ...]
    timeout_s: float = 600.0


@dataclass
class Run:
    """Where everything goes, and how it runs."""

    out: Path
    minutes: float
    jobs: int
    dry: bool
    operations: tuple[str, ...]
    environment: dict[str, str]
    code: str
    cases: int | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def device(self) -> str:
        """What kernels run on."""
        return "cpu" if self.dry else "cuda"


def record_path(run: Run, stage: str, part: Part) -> Path:
    """Return where a part's record is; its log lies beside it."""
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", part.name).strip("-")
    return run.out / "parts" / stage / f"{slug}.json"


def is_done(run: Run, stage: str, part: Part) -> bool:
    """Tell whether this very part ended well before, by the same code."""
    path = record_path(run, stage, part)
    if not path.exists():
        return False
    before = json.loads(path.read_text(encoding="utf-8"))
    same = (before["code"], before["command"]) == (run.code, list(part.command))
    return bool(same and before["status"] == "ok")


def run_parts(run: Run, stage: str, parts: Sequence[Part], jobs: int, deadline: float) -> None:
    """Run the parts that are not done, ``jobs`` at a time, until the deadline; a record for each."""
    waiting = [part for part in parts if not is_done(run, stage, part)]
    run.rows += [
        {"stage": stage, "name": p.name, "status": "ok", "detail": "done before"} for p in parts if p not in waiting
    ]
    running: dict[Part, tuple[subprocess.Popen[bytes], float]] = {}
    try:
        while (waiting and time.monotonic() < deadline) or running:
            while waiting and len(running) < jobs and time.monotonic() < deadline:
                part = waiting.pop(0)
                running[part] = (start(run, stage, part), time.monotonic())
            for part, (process, begun) in list(running.items()):
                late = time.monotonic() >= deadline
                if process.poll() is None and (late or time.monotonic() - begun > part.timeout_s):
                    stop(process)
                    status = "did not fit" if late else "timeout"
                elif process.poll() is None:
                    continue
                else:
                    status = ended(process.returncode)
                del running[part]
                record(run, stage, part, status, time.monotonic() - begun)
            time.sleep(POLL_S)
    finally:
        for process, _ in running.values():
            stop(process)
    for part in waiting:
        run.rows.append({"stage": stage, "name": part.name, "status": "did not fit", "detail": "not begun"})


def start(run: Run, stage: str, part: Part) -> subprocess.Popen[bytes]:
    """Start a part in a process group of its own, its output in a log."""
    path = record_path(run, stage, part)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(
            part.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=run.environment, cwd=run.out,
            start_new_session=True,
        )  # fmt: skip


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a part's whole process group: ask as Ctrl-C does, wait, then insist."""
    for number in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(GRACE_S)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
    process.wait()


def ended(code: int) -> str:
    """Return what an exit status means; a process that a fault took down is told by its signal."""
    if code < 0:
        return f"crashed by {signal.Signals(-code).name}"
    return "ok" if code == 0 else "failed"


def record(run: Run, stage: str, part: Part, status: str, seconds: float) -> None:
    """Write a part's record and tell of it."""
    path = record_path(run, stage, part)
    lines = path.with_suffix(".log").read_text(encoding="utf-8", errors="replace").strip().splitlines()
    row = {"stage": stage, "name": part.name, "status": status, "detail": "" if status == "ok" else "".join(lines[-1:])}
    path.write_text(json.dumps(row | {"seconds": seconds, "command": part.command, "code": run.code}, indent=1))
    run.rows.append(row | {"seconds": seconds})
    print(f"{stage}: {part.name}: {status} ({seconds:.0f} s) {row['detail'][:200]}", flush=True)
