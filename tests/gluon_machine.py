"""The scheduler of the Gluon emulator: partitions as greenlets, which hand over in virtual time.

Threads would do the same, but switching them is what a run would spend most of its time on.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
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
        return self.scale[actor] * self.random.expovariate(1.0)


class Machine:
    """The scheduler of one program: partitions and asynchronous events in virtual time."""

    def __init__(self, schedule: Schedule, program: int, programs: int) -> None:
        self.schedule, self.program, self.programs = schedule, program, programs
        self.queue: list[tuple[float, int, Any]] = []
        self.now, self.order, self.names = 0.0, itertools.count(), itertools.count()
        self.alive: list[Partition] = []

    def at(self, delay: float, action: Any) -> None:
        """Queue a partition to go on, or a function to call."""
        heapq.heappush(self.queue, (self.now + delay, next(self.order), action))

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        """Run a program to its end, asynchronous stores included."""
        Partition(self, function, arguments, None)
        try:
            while self.queue:
                self.now, _, action = heapq.heappop(self.queue)
                if isinstance(action, Partition):
                    action.waits_for = ""
                    action.switch()
                else:
                    action()
            if self.alive:
                waits = "; ".join(f"{partition.name} waits for {partition.waits_for}" for partition in self.alive)
                raise DeadlockError(f"program {self.program}: {waits}")
        finally:
            for partition in self.alive:
                partition.throw()


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
        """Give control back until something queues this partition."""
        self.waits_for = why
        self.parent.switch()

    def step(self) -> None:
        """Let time pass before an operation, in which others may run."""
        machine, delay = self.machine, self.machine.schedule.delay(self.name)
        if not (machine.queue and machine.queue[0][0] <= machine.now + delay):
            machine.now += delay  # nothing else is due before
            return
        machine.at(delay, self)
        self.block("its turn")


def here() -> Partition:
    """Return the partition that runs."""
    partition = getcurrent()
    assert isinstance(partition, Partition)
    return partition
