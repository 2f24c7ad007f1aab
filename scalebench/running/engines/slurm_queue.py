"""A study's Slurm tasks: those in the queue, and the attempts of each array as listed in the results folder."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from scalebench.running.engines.base import has_record, worker_environment
from scalebench.store import StoreError, read_bytes

COMMANDS = ("sbatch", "squeue", "scancel")
ACTIVE = {"PENDING", "RUNNING", "CONFIGURING", "COMPLETING", "SUSPENDED", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED",
          "RESIZING", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED"}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """One task of a job array."""

    job: str
    number: int

    def __str__(self) -> str:
        return f"{self.job}_{self.number}"


@dataclass(frozen=True)
class State:
    """The state of a task: Slurm's name for it, the exit status (negative for a signal), and the reason it waits."""

    name: str
    code: int = 0
    reason: str = ""


def queue() -> dict[Task, State] | None:
    """Return the state of this user's tasks, recently ended ones included; None if Slurm does not answer."""
    fields = "ArrayJobID:32,ArrayTaskID:16,State:24,exit_code:16,Reason:64"
    done = run_command("squeue", "--me", "--noheader", "--array", "--states=all", "-O", fields)
    if done.returncode:
        return None
    states = {}
    for words in map(str.split, done.stdout.splitlines()):
        if len(words) >= 4 and words[1].isdigit():
            states[Task(words[0], int(words[1]))] = State(words[2], exit_code(words[3]), " ".join(words[4:]))
    return states


def exit_code(text: str) -> int:
    """Return the exit status, negative for a signal, of Slurm's number for it: a wait status, or ``status:signal``."""
    status, colon, number = text.partition(":")
    if not colon:
        status, number = str(int(text) >> 8), str(int(text) & 0x7F)
    code, sent = int(status), int(number)
    # A shell, and timeout(1), report the signal that ended their program as 128 and its number.
    return -sent if sent else 128 - code if code > 128 else code


def submitted(study_dir: Path) -> dict[Task, Path]:
    """Return every task submitted for a study whose list of attempts is still there, with its attempt."""
    return {Task(job, number): attempt for _, job, tasks in _arrays(study_dir) for number, attempt in enumerate(tasks)}


def _arrays(study_dir: Path) -> Iterator[tuple[Path, str, list[Path]]]:
    """Yield each array's file, its job id and the attempts of its tasks: none where its list cannot be read any more.

    Nor where it names another place than the study's trials.
    """
    trials = (study_dir / "trials").resolve()
    for file in sorted((study_dir / "slurm").glob("*.job")):
        try:
            job = read_bytes(file).decode().strip()
            # At line feeds alone, as sed does: a path may have what else ends a line for Python.
            lines = read_bytes(file.with_suffix(".tasks")).decode().split("\n")
            attempts = [Path(line) for line in lines if line]
        except (StoreError, UnicodeDecodeError):
            yield file, "", []
            continue
        inside = all(path.parent.parent == trials and ".." not in path.parts for path in attempts)
        yield file, job, attempts if inside else []


def unfinished(study_dir: Path) -> dict[Task, Path]:
    """Return the study's tasks that are in Slurm's queue now and have no record yet."""
    tasks = submitted(study_dir)
    states = queue() or {} if tasks and shutil.which("squeue") else {}
    active = {task for task, state in states.items() if state.name in ACTIVE}
    return {task: attempt for task, attempt in tasks.items() if task in active and not has_record(attempt)}


def waiting(study_dir: Path) -> Counter[str]:
    """Count the study's tasks in Slurm's queue by state: {"running": 3, "pending": 20}."""
    states = queue() or {} if (study_dir / "slurm").is_dir() and shutil.which("squeue") else {}
    names = (states[task].name for task in submitted(study_dir) if task in states)
    return Counter(name.lower() for name in names if name in ACTIVE)


def forget(study_dir: Path, withdrawn: Collection[Task]) -> None:
    """Delete the lists of arrays without tasks in the queue; ``withdrawn`` ones are on their way out (COMPLETING)."""
    active = {task.job for task in unfinished(study_dir) if task not in withdrawn}
    for file, job, _ in _arrays(study_dir):
        if job not in active:
            file.unlink(missing_ok=True)
            file.with_suffix(".tasks").unlink(missing_ok=True)


def run_command(*command: str, script: str = "") -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's programs with a worker's variables, which sbatch hands on, and the program's own."""
    own = tuple(f"{program.upper()}_" for program in COMMANDS)
    environment = worker_environment() | {name: text for name, text in os.environ.items() if name.startswith(own)}
    return subprocess.run(command, input=script, capture_output=True, text=True, env=environment)
