"""The scheduler of the Gluon emulator: partitions as threads of which one runs at a time, in virtual time."""

from __future__ import annotations

import heapq
import itertools
import random
import threading
from collections.abc import Callable
from typing import Any


class HazardError(RuntimeError):
    """The kernel did something that hardware does not define."""


class DeadlockError(RuntimeError):
    """Every partition waits for something that cannot happen any more."""


class _Aborted(BaseException):
    """Raised in the other partitions when one has failed."""


class Schedule:
    """Delays in virtual time. Seed 0: loads land late and in any order; 1: at once; others: random speeds for all.

    A speed is drawn for each partition and for loads, so that some are 100 times slower than others.
    """

    def __init__(self, seed: int, program: int) -> None:
        self.seed, self.random, self.scale = seed, random.Random(1000 * seed + program), {}

    def delay(self, actor: str) -> float:
        """Return the time that the next operation of a partition ("partition 0", ...) or a "load" or "store" takes."""
        if self.seed < 2:
            late = 1e6 * (1.0 + self.random.random()) if self.seed == 0 else 0.0
            return 1.0 if actor.startswith("partition") else late
        if actor not in self.scale:
            self.scale[actor] = self.random.choice((0.1, 1.0, 10.0))
        return self.scale[actor] * self.random.expovariate(1.0)


class Machine:
    """The scheduler of one program: partitions and asynchronous events in virtual time.

    The scheduler has no thread: whichever partition waits picks what happens next, and wakes another partition only
    where it is not its own turn again. Switching threads is what a run would spend most of its time on.
    """

    def __init__(self, schedule: Schedule, program: int, programs: int) -> None:
        self.schedule, self.program, self.programs = schedule, program, programs
        self.queue: list[tuple[float, int, Any]] = []
        self.now, self.order, self.names = 0.0, itertools.count(), itertools.count()
        self.error: BaseException | None = None
        self.ended = _held_lock()
        self.alive: list[Partition] = []

    def at(self, delay: float, action: Any) -> None:
        """Queue a partition to go on, or a function to call."""
        heapq.heappush(self.queue, (self.now + delay, next(self.order), action))

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run a program to its end, asynchronous stores included."""
        Partition(self, function, arguments, None)
        try:
            self.advance(None)
            self.ended.acquire()
            if self.error:
                raise self.error
            if self.alive:
                waits = "; ".join(f"{partition.name} waits for {partition.waits_for}" for partition in self.alive)
                raise DeadlockError(f"program {self.program}: {waits}")
        finally:
            for partition in list(self.alive):
                partition.abort()

    def advance(self, caller: Partition | None) -> bool:
        """Do what is queued up to the turn of a partition; return whether it is the caller's, else wake its thread."""
        while self.queue and not self.error:
            self.now, _, action = heapq.heappop(self.queue)
            if isinstance(action, Partition):
                action.waits_for = ""
                if action is not caller:
                    action.turn.release()
                return action is caller
            try:
                action()
            except BaseException as error:  # noqa: BLE001 - handed to the thread that launched
                self.error = error
        self.ended.release()
        return False


class Partition:
    """One thread of the kernel: a group of warps that runs in step."""

    def __init__(self, machine: Machine, function: Any, arguments: tuple[Any, ...], parent: Partition | None) -> None:
        self.machine, self.parent, self.children = machine, parent, 0
        self.name, self.waits_for, self.aborted = f"partition {next(machine.names)}", "", False
        self.products: list[Any] = []
        self.stores: list[Any] = []
        self.additions = 0  # by TMA, not yet made
        self.dirty: list[Any] = []  # ranges and barriers written without a fence since
        self.turn = _held_lock()
        self.thread = threading.Thread(target=self._body, args=(function, arguments), daemon=True)
        machine.alive.append(self)
        self.thread.start()
        machine.at(machine.schedule.delay(self.name), self)

    def _body(self, function: Any, arguments: tuple[Any, ...]) -> None:
        _HERE.partition = self
        self.turn.acquire()
        try:
            if not self.aborted:
                function(*arguments)
                if self.stores or self.products:
                    raise HazardError(f"{self.name} ends with a TMA store or a product in flight")
                if self.parent:
                    self.parent.children -= 1
                    if not self.parent.children:
                        self.machine.at(0.0, self.parent)
        except _Aborted:
            pass
        except BaseException as error:  # noqa: BLE001 - handed to the thread that launched
            self.machine.error = error
        self.machine.alive.remove(self)
        if not self.aborted:
            self.machine.advance(None)

    def block(self, why: str) -> None:
        """Give control back until something queues this partition."""
        self.waits_for = why
        if not self.machine.advance(self):
            self.turn.acquire()
        if self.aborted:
            raise _Aborted

    def step(self) -> None:
        """Let time pass before an operation, in which others may run."""
        machine, delay = self.machine, self.machine.schedule.delay(self.name)
        if not machine.error and not (machine.queue and machine.queue[0][0] <= machine.now + delay):
            machine.now += delay  # nothing else is due before
            return
        machine.at(delay, self)
        self.block("its turn")

    def abort(self) -> None:
        """End the thread."""
        self.aborted = True
        self.turn.release()
        self.thread.join()


def _held_lock() -> threading.Lock:
    """Return a lock that one thread acquires to wait until another releases it."""
    lock = threading.Lock()
    lock.acquire()
    return lock


_HERE = threading.local()


def here() -> Partition:
    """Return the partition that runs."""
    return _HERE.partition
