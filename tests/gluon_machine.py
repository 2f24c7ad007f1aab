"""The scheduler of the Gluon emulator: partitions as greenlets, which hand over in virtual time.

Threads would do the same, but switching them is what a run would spend most of its time on.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from heapq import heappop, heappush
from math import log
from typing import Any

from greenlet import getcurrent, greenlet


class HazardError(RuntimeError):
    """The kernel did something that hardware does not define."""


class DeadlockError(RuntimeError):
    """Every partition waits for something that cannot happen any more."""


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
        return self.scale[actor] * -log(1.0 - self.random.random())  # as ``random.expovariate`` with a mean of 1


class Machine:
    """The scheduler of one program: partitions and asynchronous events in virtual time."""

    def __init__(self, schedule: Schedule, program: int, programs: int) -> None:
        self.schedule, self.program, self.programs = schedule, program, programs
        self.queue: list[tuple[float, int, Any]] = []
        self.now, self.order, self.names = 0.0, itertools.count(), itertools.count()
        self.alive: list[Partition] = []

    def at(self, delay: float, action: Any) -> None:
        """Queue a partition to go on, or a function to call."""
        heappush(self.queue, (self.now + delay, next(self.order), action))

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run a program to its end, asynchronous stores included."""
        Partition(self, function, arguments, None)
        try:
            while self.queue:
                self.go_on(None)
            if self.alive:
                waits = "; ".join(f"{partition.name} waits for {partition.waits_for}" for partition in self.alive)
                raise DeadlockError(f"program {self.program}: {waits}")
        finally:
            for partition in self.alive:
                partition.throw()

    def go_on(self, waiting: Partition | None) -> bool:
        """Do what is due next; return whether it is the partition that waits, or one that has run meanwhile."""
        self.now, _, action = heappop(self.queue)
        if not isinstance(action, Partition):
            action()
            return False
        action.waits_for = ""
        if action is not waiting:
            action.switch()
        return True


class Partition(greenlet):
    """One thread of the kernel: a group of warps that runs in step. An error in it is raised in ``Machine.run``."""

    def __init__(self, machine: Machine, function: Any, arguments: tuple[Any, ...], creator: Partition | None) -> None:
        super().__init__(parent=creator.parent if creator else None)
        self.machine, self.creator, self.children = machine, creator, 0
        self.body, self.name, self.waits_for = (function, arguments), f"partition {next(machine.names)}", ""
        self.products: list[Any] = []
        self.stores: list[Any] = []
        self.additions = 0  # by TMA, not yet made
        self.dirty: list[Any] = []  # ranges and barriers written without a fence since
        machine.alive.append(self)
        machine.at(machine.schedule.delay(self.name), self)

    def run(self) -> None:
        """Run the function of the kernel, which ends with nothing in flight."""
        function, arguments = self.body
        function(*arguments)
        if self.stores or self.products:
            raise HazardError(f"{self.name} ends with a TMA store or a product in flight")
        self.machine.alive.remove(self)
        if self.creator:
            self.creator.children -= 1
            if not self.creator.children:
                self.machine.at(0.0, self.creator)

    def block(self, why: str) -> None:
        """Let others run until something queues this partition."""
        self.waits_for = why
        while self.machine.queue:
            if self.machine.go_on(self):
                return
        self.parent.switch()  # nothing can happen any more

    def step(self) -> None:
        """Let time pass before an operation, in which others may run."""
        machine = self.machine
        due, queue = machine.now + machine.schedule.delay(self.name), machine.queue
        if not (queue and queue[0][0] <= due):
            machine.now = due  # nothing else is due before
            return
        heappush(queue, (due, next(machine.order), self))
        self.block("its turn")


def here() -> Partition:
    """Return the partition that runs."""
    partition = getcurrent()
    assert isinstance(partition, Partition)
    return partition
