"""Run trials as Slurm jobs: arrays whose tasks each start the worker of one attempt, in a folder that all nodes see.

Trials that ask for the same cores, GPUs, memory and time are one array, submitted with plain ``sbatch``: a task passes
a path and leaves files, so nothing is pickled (submitit would pickle the call and its result, and read them back).
What a cluster needs beside (account, partition, constraints) comes from sbatch's own variables, such as
``SBATCH_PARTITION``. Slurm requeues a task whose node fails or that is preempted; it then runs in the same folder.

``RESULTS/<study>/slurm/`` has a list of attempts for each array, and its job id. A run whose driver was lost finds its
tasks there, still in the queue, and waits for them instead of submitting those trials again.
"""

from __future__ import annotations

import math
import secrets
import shlex
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from scalebench.errors import InputError, number_of
from scalebench.running import processes
from scalebench.running.claims import take
from scalebench.running.engines.base import (
    Begin,
    Resources,
    Tick,
    close_attempt,
    has_record,
    no_tick,
    worker_command,
)
from scalebench.running.engines.slurm_queue import (
    ACTIVE,
    COMMANDS,
    State,
    Task,
    forget,
    queue,
    run_command,
    unfinished,
)
from scalebench.store import make_folder

POLL_S = 0.5
QUEUE_EVERY_S = 2.0  # a busy controller should not be asked more often
SETTLE_S = 5.0  # what a node wrote may take this long to be seen through a shared file system
ARRAY_TASKS = 1000  # Slurm's default limit (MaxArraySize)
START_S = 180.0  # to import, open the data and wait for the node's measured peak: no part of a trial's own time limit
ESTIMATE_FACTOR = 10.0  # how many times as long as estimated a trial without timeout_s may take
HOST_MIB = {"cpu": 1024, "gpu": 4096}  # what a process takes beside its tensors
MEMORY_STEP_MIB = 512
TIMED_OUT = 124  # the exit status of timeout(1) when the time is over

SCRIPT = """#!/bin/sh
attempt=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {tasks})
if [ -e "$attempt/record.json" ]; then exit 0; fi
exec {command} "$attempt" >>"$attempt/stdout.log" 2>>"$attempt/stderr.log"
"""

T = TypeVar("T")


def check(resources: Sequence[Resources]) -> None:
    """Raise ``InputError`` if Slurm is not installed, or no node has what a trial needs."""
    for program in COMMANDS:
        if shutil.which(program) is None:
            raise InputError(f"engine slurm: {program} was not found; run this where Slurm's commands are installed")
    for request, needs in {tuple(requested(needs)): needs for needs in resources}.items():
        done = run_command("sbatch", "--test-only", *request, script="#!/bin/sh\n")
        if done.returncode:
            cores, limit = number_of(needs.cpus, "core"), number_of(minutes(needs), "minute")
            needed = f"{cores}, {number_of(needs.gpus, 'GPU')}, {memory_mib(needs)} MiB, {limit}"
            raise InputError(f"engine slurm: sbatch refuses a trial with {needed}: {_last(done.stderr)}")


def place(
    attempts: Sequence[Path], resources: Sequence[Resources], *, jobs: int | None = None, tick: Tick = no_tick,
    begin: Begin = take,
) -> Iterator[Path]:  # fmt: skip
    """Run the attempts' workers as tasks of job arrays; see ``base.Engine``.

    A trial that an earlier run submitted, and that is still in the queue, is not submitted again: its folder is yielded
    in place of the new one.
    """
    if not attempts:
        return
    queued = {attempt.parent.name: (task, attempt) for task, attempt in unfinished(_study_dir(attempts)).items()}
    tasks: dict[Task, Path] = {}
    groups: dict[tuple[str, ...], list[tuple[Path, Resources]]] = {}
    for attempt, needs in zip(attempts, resources, strict=True):
        if not begin(attempt):  # another driver runs this trial
            continue
        if attempt.parent.name in queued:
            tasks |= [queued[attempt.parent.name]]
        else:
            groups.setdefault((*requested(needs), str(needs.timeout_s)), []).append((attempt, needs))
    arrays = [array for members in groups.values() for array in parts(members, ARRAY_TASKS)]
    try:
        for array in arrays:
            job = submit([attempt for attempt, _ in array], array[0][1], jobs, several=len(arrays) > 1)
            tasks |= {Task(job, number): attempt for number, (attempt, _) in enumerate(array)}
        yield from finished(tasks, tick)
    finally:
        for part in parts(list(tasks), 500):
            run_command("scancel", *map(str, part))
        forget(_study_dir(attempts), tasks)


def finished(tasks: dict[Task, Path], tick: Tick) -> Iterator[Path]:
    """Yield the attempts as they end, taking their tasks out of ``tasks``."""
    ended: dict[Task, float] = {}  # tasks that left the queue without a record, and when that was noticed
    states: dict[Task, State] | None = None
    last_query = -QUEUE_EVERY_S
    while tasks:
        for task in [task for task, attempt in tasks.items() if has_record(attempt)]:
            yield tasks.pop(task)
        if time.monotonic() - last_query >= QUEUE_EVERY_S:
            states, last_query = queue(), time.monotonic()
            for task in tasks if states is not None else ():
                assert states is not None
                if (state := states.get(task)) is None or state.name not in ACTIVE:
                    ended.setdefault(task, last_query)
                else:
                    ended.pop(task, None)  # requeued
        for task in [task for task, since in ended.items() if task in tasks and time.monotonic() - since > SETTLE_S]:
            close_task(task, tasks[task], (states or {}).get(task))
            yield tasks.pop(task)
        running = {task for task, state in (states or {}).items() if state.name == "RUNNING"}
        tick([attempt for task, attempt in tasks.items() if task in running])
        time.sleep(POLL_S)


# --- requests --------------------------------------------------------------------------------------------------------


def requested(needs: Resources) -> list[str]:
    """Return the options of sbatch for what a trial needs."""
    options = ["--nodes=1", "--ntasks=1", f"--cpus-per-task={needs.cpus}", f"--mem={memory_mib(needs)}M"]
    options += [f"--gres=gpu:{needs.gpus}"] * bool(needs.gpus)
    return [*options, f"--time={minutes(needs)}"]


def memory_mib(needs: Resources) -> int:
    """Return the memory of the node to ask for: 1.25 times the estimate; a GPU's tensors do not count."""
    tensors = 0 if needs.gpus else 1.25 * needs.memory_bytes / 2**20
    least = tensors + needs.processes * HOST_MIB["gpu" if needs.gpus else "cpu"]
    return MEMORY_STEP_MIB * math.ceil(least / MEMORY_STEP_MIB)


def minutes(needs: Resources) -> int:
    """Return the time limit of the job, longer than the trial's own, or than its estimated duration without one."""
    limit = ESTIMATE_FACTOR * needs.expected_s if needs.timeout_s is None else needs.timeout_s
    return math.ceil((limit + START_S) / 60)


def submit(attempts: Sequence[Path], needs: Resources, jobs: int | None, *, several: bool) -> str:
    """Submit an array with a task for each attempt and return its job id; raises ``InputError`` where Slurm refuses.

    At most ``jobs`` of its tasks run at a time; one of ``several`` arrays then starts when the one before has ended.
    """
    folder = _study_dir(attempts) / "slurm"
    make_folder(folder.parents[1], folder)
    tasks = folder / f"{secrets.token_hex(6)}.tasks"
    lines = [str(attempt.resolve()) for attempt in attempts]
    if any("\n" in line for line in lines):
        raise InputError(f"engine slurm: the results folder has a line break in its name: {lines[0]!r}")
    tasks.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    *command, _ = worker_command(attempts[0])
    if needs.timeout_s is not None:
        command = ["timeout", f"--kill-after={processes.GRACE_S}", str(needs.timeout_s), *command]
    limit = f"%{jobs}" if jobs else ""
    options = [f"--array=0-{len(attempts) - 1}{limit}", f"--job-name=scalebench-{folder.parent.name}"]
    options += ["--requeue", "--output=/dev/null"]
    options += ["--dependency=singleton"] * (several and bool(jobs))
    script = SCRIPT.format(tasks=shlex.quote(str(tasks.resolve())), command=shlex.join(command))
    done = run_command("sbatch", "--parsable", *options, *requested(needs), script=script)
    if done.returncode:
        raise InputError(f"engine slurm: sbatch refused {number_of(len(attempts), 'trial')}: {_last(done.stderr)}")
    job = done.stdout.strip().partition(";")[0]  # the name of a cluster may follow
    tasks.with_suffix(".job").write_text(job, encoding="utf-8")
    return job


def close_task(task: Task, attempt: Path, state: State | None) -> None:
    """Write the record of a task that ended without one."""
    name = "left the queue" if state is None else state.name
    code = 0 if state is None else state.code
    where = f"Slurm job {task}: {name}"
    if name == "OUT_OF_MEMORY":
        close_attempt(attempt, "oom", "OutOfMemory", f"{where}: more than the memory asked for")
    elif name in ("TIMEOUT", "DEADLINE") or (name == "FAILED" and code == TIMED_OUT):
        close_attempt(attempt, "timeout", "Timeout", f"{where}: stopped at the time limit")
    elif name in ("FAILED", "COMPLETED") and code >= 0:
        reason = processes.exit_reason(code, processes.last_lines(attempt / "stderr.log"))
        close_attempt(attempt, "failed", "WorkerEnded", f"{where}: the worker ended without a record: {reason}")
    else:
        ending = f": {processes.exit_reason(code)}" if code < 0 else ""
        close_attempt(attempt, "killed", "JobEnded", f"{where}{ending}")


def _study_dir(attempts: Sequence[Path]) -> Path:
    return attempts[0].parents[2]


def parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the values in parts of at most ``size``."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _last(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]
