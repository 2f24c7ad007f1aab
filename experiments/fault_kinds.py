"""Faults of drivers, workers, trials and disks, for ``faults.py``: each disturbs a case as often as it asks."""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil
from drivers import Driver
from fault_support import RETRY, Case

from scalebench import store

Inject = Callable[[Case], None]

ROUNDS = 3  # of drivers for each fault that is asked for; a case that needs more has not enough faults, and fails


def descendants(driver: Driver, word: str) -> list[psutil.Process]:
    """Return the processes below a driver with a word in their command line."""
    below = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
                below += [process] * any(word in part for part in process.cmdline())
    return below


# --- drivers ---------------------------------------------------------------------------------------------------------

# What a running driver adds to a folder: the moments at which it is disturbed, beside its planning.
MOMENTS = ("claim-*", "attempt-*/heartbeat.json", "attempt-*/record.json")


def moments(case: Case) -> Iterator[Driver]:
    """Start drivers, and yield each at another moment: while it plans, or as a trial is claimed, trained or finished.

    A study that is over is run again in another folder, until there were as many faults as asked for.
    """
    for number in range(ROUNDS * case.asked):
        if case.injected == case.asked:
            return
        driver, kind = case.start(), number % (len(MOMENTS) + 1)
        if kind == len(MOMENTS):
            time.sleep(random.random())
        else:
            before = len(case.files(MOMENTS[kind]))
            case.wait(lambda kind=kind, before=before: len(case.files(MOMENTS[kind])) > before, driver)
            time.sleep(random.random() * 0.2)
        yield driver
        if driver.wait(300) in (0, 1):  # the study is over
            case.another_folder()


def driver_killed(case: Case) -> None:
    """Kill the driver at random moments."""
    for driver in moments(case):
        driver.kill()
        case.injected += driver.wait() == -signal.SIGKILL
    case.finish(retry=False)  # a trial of a lost driver needs no --retry


def driver_interrupted(case: Case) -> None:
    """Interrupt the driver: Ctrl-C once, Ctrl-C twice, SIGTERM; each ends it with exit status 3."""
    ways = [[signal.SIGINT], [signal.SIGINT] * 2, [signal.SIGTERM], [signal.SIGTERM] * 3]
    for driver in moments(case):
        numbers = ways[case.injected % len(ways)]
        for number in numbers:
            driver.send_signal(number)
            time.sleep(0.05)
        code = driver.wait(60)
        case.injected += code == 3
        if code not in (0, 1, 3):  # else it had ended by itself
            case.wrong.append(f"exit status {code} after {[number.name for number in numbers]}")
    case.finish(retry=False)


def together(case: Case, preparations: Sequence[str]) -> None:
    """Run drivers at once, each after Python code of its own, until every one of them has run trials."""
    for _ in range(ROUNDS):
        drivers = [case.start(before=code) for code in preparations]
        codes = [driver.wait(600) for driver in drivers]
        if any(codes):
            case.wrong.append(f"exit codes {codes}")
        executed = [json.loads(driver.out.splitlines()[-1])["executed"] for driver in drivers]
        case.injected = max(case.injected, sum(number > 0 for number in executed))
        if case.injected == case.asked:
            break
        case.another_folder()
    case.finish()


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


# --- workers and trials ----------------------------------------------------------------------------------------------


def workers_killed(case: Case) -> None:
    """Kill workers in the middle of their trials."""
    signalled(case, signal.SIGKILL, "killed")


def workers_stopped(case: Case, timeout_s: float = 4) -> None:
    """Stop workers with SIGSTOP until their time limit is over."""
    signalled(case, signal.SIGSTOP, "timeout", "--set", f"run.timeout_s={timeout_s}")


def signalled(case: Case, number: signal.Signals, status: str, *words: str) -> None:
    """Send workers a signal until as many as asked have ended with a status; one that ended before does not count."""
    for _ in range(ROUNDS * case.asked):
        driver, sent = case.start(RETRY, *words), set[int]()
        while driver.poll() is None:
            running = [worker for worker in driver.workers() if worker.pid not in sent]
            if running and case.injected + len(sent) < case.asked and case.files("attempt-*/heartbeat.json"):
                worker = random.choice(running)
                time.sleep(random.random() * 0.3)
                with contextlib.suppress(psutil.NoSuchProcess):
                    worker.send_signal(number)
                    sent.add(worker.pid)
            time.sleep(0.02)
        case.injected = min(case.asked, case.ended(status))
        if case.injected == case.asked:
            break
        if driver.returncode == 0:
            case.another_folder()
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
    if (code := driver.wait(300)) != 1:
        case.wrong.append(f"exit status {code}")
    frame = store.load_results(case.results).set_index("seed")
    for seed, status in EXPECTED.items():
        if frame["status"][seed] == status:
            case.injected += 1
        else:
            case.wrong.append(f"seed {seed}: {frame['status'][seed]} instead of {status}")
    case.finish()


# --- disks and files -------------------------------------------------------------------------------------------------

LIMITED = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (%d, %d))\n"


def disk_full(case: Case, sizes: Sequence[int] = (0, 200, 1_000, 3_000, 5_000, 8_000, 20_000)) -> None:
    """Let no file grow beyond a size, in the driver and in the workers, one size after the other."""
    for size in sizes:
        driver = case.start(RETRY, before=LIMITED % (size, size))
        code = driver.wait(300)
        case.injected += 1
        if code not in (0, 1, 2, 3):
            case.wrong.append(f"at most {size} bytes: exit status {code}")
    if "Traceback" in case.errors():
        case.wrong.append("a traceback")
    case.finish()


def files_damaged(case: Case, ends: int = 300) -> None:
    """Truncate and replace each file of a finished trial: its row is the same or said to be damaged, others hold.

    Files are cut at every byte of their first and last ``ends``.
    """
    case.finish()
    rows = {row["trial_id"]: row for row in store.load_results(case.results).to_dict("records")}
    attempt = Path(next(iter(rows.values()))["attempt_dir"])
    whole, _ = store.latest_record(attempt.parent)
    for path in sorted(attempt.iterdir()):
        content = path.read_bytes()
        for damaged in damages(content, ends):
            path.write_bytes(damaged)
            case.injected += 1
            row, lines = store.latest_record(attempt.parent)
            if row != whole and not (row is None and (lines or path.name == "record.json")):
                case.wrong.append(f"{path.name}: {len(damaged)} bytes: read as another row")
        path.write_bytes(content)
    for path in sorted(attempt.iterdir()):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (case.results / "tiny" / "study.json").write_bytes(b"\xff" * 100)
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


def copied(case: Case) -> None:
    """Copy the folder while trials run; each copy, finished, has all of them."""
    copies: list[str] = []
    for _ in range(ROUNDS * case.asked):
        driver = case.start()
        while len(copies) < case.asked and driver.poll() is None:
            before = len(case.records())
            case.wait(lambda before=before: len(case.records()) > before, driver)
            name = f"copy-{len(copies)}"
            copy_folder(case, case.folder / name)
            if driver.poll() is None:  # else it is a copy of a finished study
                copies.append(name)
            else:
                shutil.rmtree(case.folder / name)
        driver.wait(600)
        if len(copies) == case.asked:
            break
        case.another_folder()
    case.injected = len(copies)
    for name in copies:
        case.finish(name)
    case.folders = [*copies, *case.folders]


def copy_folder(case: Case, target: Path) -> None:
    """Copy the results as they are; temporary files that were renamed meanwhile are left out."""
    try:
        shutil.copytree(case.results, target)
    except shutil.Error as error:
        case.wrong += [str(each) for each in error.args[0] if not (".tmp" in str(each) or "-" in str(each))]
