"""The faults that ``faults.py`` injects, by name, each with the study that it disturbs."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import psutil
from drivers import Driver
from fault_support import RETRY, STUDY, Case, Unavailable, judge

from scalebench import store

FORTY, TEN, FOUR = STUDY % list(range(40)), STUDY % list(range(10)), STUDY % list(range(4))
LONG = TEN.replace("steps = 40", "steps = 400")
RANKS = (STUDY % [0, 1]).replace("batch_size = 8", "batch_size = 8\nprocesses = 2").replace("steps = 40", "steps = 300")


def descendants(driver: Driver, word: str) -> list[psutil.Process]:
    """Return the processes below a driver with a word in their command line."""
    below = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
                below += [process] * any(word in part for part in process.cmdline())
    return below


def driver_killed(case: Case, times: int = 30) -> None:
    """Kill the driver at random moments: while it plans, and while trials run."""
    for number in range(times):
        driver, before = case.start(), len(case.records())
        if number % 3:  # else while it plans
            case.wait(lambda before=before: len(case.records()) > before, driver)
        time.sleep(random.random() * (0.3 if number % 3 else 2.0))
        if driver.poll() is None:
            driver.kill()
            case.injected += 1
        driver.wait()
    case.finish()


def workers_killed(case: Case, times: int = 12) -> None:
    """Kill workers in the middle of their trials."""
    signalled(case, signal.SIGKILL, times)


def workers_stopped(case: Case) -> None:
    """Stop workers with SIGSTOP until their time limit is over."""
    signalled(case, signal.SIGSTOP, 3, "--set", "run.timeout_s=4")


def signalled(case: Case, number: signal.Signals, times: int, *words: str) -> None:
    driver = case.start(*words)
    while driver.poll() is None:
        if case.injected < times and (running := driver.workers()) and random.random() < 0.2:
            try:
                random.choice(running).send_signal(number)
                case.injected += 1
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.05)
    case.finish()


# Trials that misbehave, by their seed: the driver is patched before its fork server is forked from it.
FAULTY = """
import os, signal, time
import torch
from scalebench.workloads import loop
take_step = loop.Step.__call__
kept, taken = [], [0]
def step(self, batch):
    loss, seed = take_step(self, batch), self.spec.seed
    taken[0] += 1
    if taken[0] < 15:
        return loss
    if seed == 0:  # leaks memory
        kept.append(torch.ones(20_000_000))
    elif seed == 1 and taken[0] == 15:  # prints 100 MB
        for _ in range(100):
            os.write(1, b"x" * 999_999 + b"\\n")
    elif seed == 2:
        return loss * float("nan")
    elif seed == 3:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    elif seed == 4:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    elif seed == 5:
        raise RuntimeError("a defect")
    elif seed == 6:
        os._exit(0)
    return loss
loop.Step.__call__ = step
"""
EXPECTED = {0: "oom", 1: "ok", 2: "diverged", 3: "killed", 4: "timeout", 5: "failed", 6: "failed"}


def misbehaving(case: Case) -> None:
    """Run trials that leak, print 100 MB, give NaN, segfault, ignore SIGTERM, raise or exit; then sound ones."""
    driver = case.start("--set", "run.timeout_s=10", "--set", "run.memory_limit_bytes=1e9", before=FAULTY)
    assert driver.wait(300) == 1
    frame = store.load_results(case.folder / "results").set_index("seed")
    for seed, status in EXPECTED.items():
        case.injected += 1
        if frame["status"][seed] != status:
            case.notes.append(f"seed {seed}: {frame['status'][seed]} instead of {status}")
    case.finish()


def disk_full(case: Case, sizes: Sequence[int] = (0, 200, 1_000, 3_000, 5_000, 8_000, 20_000)) -> None:
    """Let no file grow beyond a size, in the driver and in the workers, one size after the other."""
    for size in sizes:
        driver = case.start(RETRY, before=LIMITED % (size, size))
        code = driver.wait(300)
        case.injected += 1
        if code not in (0, 1, 2, 3):
            case.notes.append(f"at most {size} bytes: exit status {code}")
    if "Traceback" in case.errors():
        case.notes.append("a traceback")
    case.finish()


LIMITED = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (%d, %d))\n"


def files_damaged(case: Case, ends: int = 300) -> None:
    """Truncate and replace each file of a finished trial: its row is the same or said to be damaged, others hold.

    Files are cut at every byte of their first and last ``ends``.
    """
    case.finish()
    rows = {row["trial_id"]: row for row in store.load_results(case.folder / "results").to_dict("records")}
    attempt = Path(next(iter(rows.values()))["attempt_dir"])
    whole, _ = store.latest_record(attempt.parent)
    for path in sorted(attempt.iterdir()):
        content = path.read_bytes()
        for damaged in damages(content, ends):
            path.write_bytes(damaged)
            case.injected += 1
            row, lines = store.latest_record(attempt.parent)
            if row != whole and not (row is None and (lines or path.name == "record.json")):
                case.notes.append(f"{path.name}: {len(damaged)} bytes: read as another row")
        path.write_bytes(content)
    for path in sorted(attempt.iterdir()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (case.folder / "results" / "tiny" / "study.json").write_bytes(b"\xff" * 100)
    case.finish()
    for path in attempt.iterdir():  # a new attempt has the result; what is damaged counts for nothing
        path.unlink()
    attempt.rmdir()


def damages(content: bytes, ends: int) -> Iterator[bytes]:
    """Yield a file's content cut at every byte of its first and last ``ends`` and in the middle, and as garbage."""
    size = len(content)
    cuts = {*range(min(size, ends)), *range(max(0, size - ends), size), size // 2}
    yield from (content[:end] for end in sorted(cuts))
    yield from (random.randbytes(size), b"\0" * size, b"[" * 100_000, b"null", b'{"status": "ok"}')


def clocks(case: Case) -> None:
    """Let two drivers share the study, whose clocks are days behind and ahead."""
    together(case, [OTHER_CLOCK % days for days in (-3, 3)])


OTHER_CLOCK = """
import datetime, time
shift = %d * 86400
now = time.time
time.time = lambda: now() + shift
class Shifted(datetime.datetime):
    @classmethod
    def now(cls, zone=None):
        return datetime.datetime.fromtimestamp(time.time(), zone)
from scalebench.store import trials
trials.datetime = Shifted
"""


def together(case: Case, preparations: Sequence[str]) -> None:
    """Run drivers at once, each after Python code of its own."""
    drivers = [case.start(before=code) for code in preparations]
    codes = [driver.wait(600) for driver in drivers]
    case.injected += len(drivers)
    if any(codes):
        case.notes.append(f"exit codes {codes}")


def copied(case: Case) -> None:
    """Copy the folder while trials run; each copy, finished, has all of them."""
    driver = case.start()
    names = []
    for number in range(3):
        case.wait(lambda number=number: len(case.records()) > 2 * number, driver)
        names.append(f"copy{number}")
        try:
            shutil.copytree(case.folder / "results", case.folder / names[-1])
        except shutil.Error as error:  # temporary files that were renamed meanwhile
            case.notes += [] if all(".tmp" in str(each) or "-" in str(each) for each in error.args[0]) else [str(error)]
    driver.wait(600)
    for name in names:
        case.injected += 1
        case.finish(name)
        if any(judge(case, name).values()):
            case.notes.append(f"{name}: {judge(case, name)}")


def rank_killed(case: Case) -> None:
    """Kill one process of a trial that two processes train, after its first snapshot."""
    driver = case.start()
    snapshot = case.folder / "results" / "tiny" / "trials"
    if case.wait(lambda: [*snapshot.glob("*/*/resume.json")], driver):
        random.choice(descendants(driver, "running.worker")).kill()
        case.injected += 1
    driver.wait(300)
    case.finish()
    frame = store.load_results(case.folder / "results")
    case.notes.append(f"resumed from step {frame['resumed_from_step'].max()}")


def ray_killed(case: Case) -> None:
    """Kill the head of Ray's embedded cluster, then a worker: that driver runs the worker's trial again itself."""
    if importlib.util.find_spec("ray") is None:
        raise Unavailable("Ray is not installed")
    quick = {"RAY_gcs_rpc_server_reconnect_timeout_s": "1"}  # else a driver looks for its head for a minute
    for word in ("gcs_server", "ray::run_worker"):
        driver, before = case.start("--engine", "ray", RETRY, **quick), len(case.records())
        running = partial(descendants, driver, "ray::run_worker")
        case.wait(running if before else lambda: len(case.records()) > 0, driver, 300)
        children = descendants(driver, word)
        if children:
            random.choice(children).kill()
            case.injected += 1
        case.notes.append(f"{word} {'killed' if children else 'missing'}")
        try:
            driver.wait(300)
        except subprocess.TimeoutExpired:
            case.notes.append(f"the driver went on without {word}")
            driver.kill()
    case.finish()


def slurm_disturbed(case: Case) -> None:
    """Cancel one Slurm task and requeue another."""
    from slurm_node import CannotStartError, slurm_node

    try:
        with slurm_node() as variables:
            driver = case.start("--engine", "slurm", **variables)
            environment = os.environ | variables
            trials = case.folder / "results" / "tiny" / "trials"
            for command in (["scancel"], ["scontrol", "requeue"]):
                if case.wait(lambda: [*trials.glob("*/*/resume.json")], driver):
                    listed = ["squeue", "--me", "-h", "-r", "-t", "R", "-o", "%i"]
                    tasks = subprocess.run(listed, env=environment, capture_output=True, text=True).stdout.split()
                    done = subprocess.run([*command, *tasks[:1]], env=environment, capture_output=True)
                    case.injected += bool(tasks) and done.returncode == 0
                    time.sleep(1)
            while driver.poll() is None:  # Slurm would wait two minutes before it runs a requeued task again
                listed = ["squeue", "--me", "-h", "-r", "-t", "PD", "-o", "%i"]
                for task in subprocess.run(listed, env=environment, capture_output=True, text=True).stdout.split():
                    update = ["scontrol", "update", f"JobId={task}", "StartTime=now"]
                    subprocess.run(update, env=environment, capture_output=True)
                time.sleep(1)
    except CannotStartError as reason:
        raise Unavailable(f"no Slurm here: {reason}") from reason
    case.finish()


FAULTS: dict[str, tuple[Callable[[Case], None], str]] = {
    "driver killed": (driver_killed, FORTY),
    "workers killed": (workers_killed, LONG),
    "workers stopped": (workers_stopped, LONG),
    "trials misbehave": (misbehaving, TEN),
    "disk full": (disk_full, FOUR),
    "files damaged": (files_damaged, FOUR),
    "clocks differ": (clocks, TEN),
    "two drivers": (partial(together, preparations=[""] * 2), TEN),
    "four drivers": (partial(together, preparations=[""] * 4), TEN),
    "folder copied": (copied, TEN),
    "rank killed": (rank_killed, RANKS),
    "Ray killed": (ray_killed, FOUR.replace("steps = 40", "steps = 400")),
    "Slurm disturbed": (slurm_disturbed, (STUDY % [0, 1]).replace("steps = 40", "steps = 4_000")),
}
