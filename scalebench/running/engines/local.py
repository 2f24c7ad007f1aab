"""Run trials on this machine: ``jobs`` workers at a time, each on its own cores, each in its own process group."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalebench.errors import InputError, number_of
from scalebench.measure.hardware import usable_cpus
from scalebench.running import processes
from scalebench.running.batches import members_of
from scalebench.running.claims import take
from scalebench.running.engines.base import (
    Begin,
    Resources,
    Tick,
    close_ended,
    limit_pauses,
    no_tick,
    worker_environment,
    write_placement,
)
from scalebench.running.forked import start_worker
from scalebench.running.slots import Slots, gpu_names

POLL_S = 0.05


@dataclass
class _Worker:
    attempt: Path
    cpus: tuple[int, ...]
    process: processes.Process
    timeout_s: float | None
    deadline: float | None
    gpus: tuple[str, ...] = ()


def check(resources: Sequence[Resources], slots: int | None = None) -> None:
    """Raise ``InputError`` for a trial that asks for more GPUs than this machine, or its ``slots``, has."""
    gpus = max((needs.gpus for needs in resources), default=0)
    if gpus and gpus > (available := len(gpu_names(slots))):
        where = "this machine has" if slots is None else "there are slots for"
        raise InputError(f"engine local: a trial asks for {number_of(gpus, 'GPU')} and {where} {available}")


def place(
    attempts: Sequence[Path], resources: Sequence[Resources], *, jobs: int | None = None, tick: Tick = no_tick,
    begin: Begin = take, slots: int | None = None,
) -> Iterator[Path]:  # fmt: skip
    """Run the attempts' workers as processes of this machine; see ``base.Engine``.

    By default there is one worker per usable core for trials on a CPU, and one per GPU, of which ``slots`` are used,
    for trials on a GPU. More workers on a GPU take turns on it (``measure/device_lock.py``) unless their trials share
    it.
    """
    gpus = Slots(gpu_names(slots) if any(needs.gpus for needs in resources) else (), share=jobs is not None)
    free = core_sets(worker_count(resources, jobs, len(gpus.names)))
    own_cores = len(set(free)) == len(free)
    waiting = start_order(attempts, resources, len(free), len(gpus.names))
    running: list[_Worker] = []
    try:
        while waiting or running:
            while free and (following := _next(waiting, gpus)):
                attempt, needs, devices = following
                if not begin(attempt):  # another driver runs this trial
                    gpus.give_back(devices)
                    continue
                exclusive = _exclusive(needs, own_cores=own_cores)
                running.append(_start(attempt, needs, free.pop(0), devices, exclusive=exclusive))
            for worker in [worker for worker in running if _finished(worker)]:
                running.remove(worker)
                free.append(worker.cpus)
                gpus.give_back(worker.gpus)
                yield worker.attempt
            tick([worker.attempt for worker in running])
            time.sleep(POLL_S)
    finally:
        for worker in running:
            processes.stop(worker.process)


@dataclass(frozen=True)
class Packed:
    """This engine with a number of the machine's GPUs (``--slots gpu=4``)."""

    slots: int

    def check(self, resources: Sequence[Resources]) -> None:
        """See ``check``. Also raises ``InputError`` where no trial runs on a GPU."""
        if resources and not any(needs.gpus for needs in resources):
            reason = "no trial of this study runs on a GPU here (`scalebench doctor` shows what this machine has)"
            raise InputError([f"--slots gpu={self.slots}: {reason}; leave it out"])
        check(resources, self.slots)

    def place(
        self, attempts: Sequence[Path], resources: Sequence[Resources], *, jobs: int | None = None,
        tick: Tick = no_tick, begin: Begin = take,
    ) -> Iterator[Path]:  # fmt: skip
        """See ``place``."""
        return place(attempts, resources, jobs=jobs, tick=tick, begin=begin, slots=self.slots)


def _next(waiting: list[tuple[Path, Resources]], gpus: Slots) -> tuple[Path, Resources, tuple[str, ...]] | None:
    """Take the first attempt for which enough GPUs are free, out of ``waiting``; None if no attempt fits."""
    for index, (attempt, needs) in enumerate(waiting):
        if (devices := gpus.take(needs.gpus)) is not None:
            del waiting[index]
            return attempt, needs, devices
        if needs.keep_order:
            return None
    return None


def worker_count(resources: Sequence[Resources], jobs: int | None, gpus: int = 1) -> int:
    """Return how many workers run at a time on a machine with this number of ``gpus``."""
    if jobs is not None:
        return jobs
    if any(needs.gpus for needs in resources):
        return max(1, min(gpus // min(max(1, needs.gpus) for needs in resources), len(resources)))
    widest = max((needs.cpus for needs in resources), default=1)
    return max(1, min(len(usable_cpus()) // widest, len(resources)))


def core_sets(workers: int) -> list[tuple[int, ...]]:
    """Deal the usable cores to ``workers`` in disjoint sets of equal size; if there are too few, share single cores."""
    cpus = usable_cpus()
    if workers >= len(cpus):
        return [(cpus[worker % len(cpus)],) for worker in range(workers)]
    each = len(cpus) // workers
    return [tuple(cpus[worker * each : (worker + 1) * each]) for worker in range(workers)]


def start_order(
    attempts: Sequence[Path], resources: Sequence[Resources], workers: int, gpus: int = 1
) -> list[tuple[Path, Resources]]:
    """Return attempts in the order they start: as given if one runs at a time or asked for, else the longest first.

    The longest trial, started last, would keep one worker busy while the others have nothing left to do.
    """
    pairs = list(zip(attempts, resources, strict=True))
    take_turns = any(needs.gpus * workers > gpus and not needs.share_device for needs in resources)
    as_given = workers == 1 or take_turns or any(needs.keep_order for needs in resources)
    return pairs if as_given else sorted(pairs, key=lambda pair: -pair[1].expected_s)


def _exclusive(needs: Resources, *, own_cores: bool) -> bool:
    return not needs.share_device if needs.gpus else own_cores


def _start(
    attempt: Path, needs: Resources, cpus: tuple[int, ...], gpus: tuple[str, ...], *, exclusive: bool
) -> _Worker:
    write_placement(attempt, "local", cpus=cpus, gpus=gpus, exclusive=exclusive)
    process = start_worker(attempt, worker_environment())
    timeout_s = time_limit_s(attempt, needs)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    return _Worker(attempt, cpus, process, timeout_s, deadline, gpus)


def time_limit_s(attempt: Path, needs: Resources) -> float | None:
    """Return the limit of a worker that has begun: that of a trial, for each trial that it runs."""
    return None if needs.timeout_s is None else needs.timeout_s * len(members_of(attempt))


def _finished(worker: _Worker) -> bool:
    """Whether a worker is done; then its process group is gone and its record is written."""
    code = worker.process.poll()
    if code is None and not _late(worker):
        return False
    processes.stop(worker.process)  # a late worker, or what the trial started and left behind
    close_ended(worker.attempt, code)
    return True


def _late(worker: _Worker) -> bool:
    """Whether a running worker is past its time limit, which does not count while it waits for a GPU."""
    if worker.timeout_s is None or worker.deadline is None:
        return False
    if limit_pauses(worker.attempt, worker.process.pid):
        worker.deadline = time.monotonic() + worker.timeout_s
    return time.monotonic() >= worker.deadline
