"""Work that a call leaves behind: Python threads are waited for inside the clock, native work is detected later."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from threading import enumerate as running_threads
from typing import Any

Work = Callable[[], Mapping[str, Any]]

JOIN_S = 1.0  # a thread that runs longer is a worker that stays; its first second counts
TRIES, CLEAN = 5, 2  # calls at most, and those without work left behind that clear a provider
SLEEP_S, LONGEST_SLEEP_S = 20e-3, 0.5
SETTLE_S = 25.0  # for what thousands of timed calls may have left
# Sleeping itself takes some 60 µs of processor time, which is subtracted.
FLOOR_S, SHARE = 200e-6, 0.05


def joining(work: Work) -> Work:
    """Return ``work`` followed by a wait for the Python threads that it started, up to ``JOIN_S`` for each."""

    def call() -> Mapping[str, Any]:
        before = running_threads()
        results = work()
        for thread in running_threads():
            # A dummy stands for a thread of a library that entered Python; it can not be joined.
            if thread not in before and not isinstance(thread, threading._DummyThread):
                thread.join(JOIN_S)
        return results

    return call


def work_left_behind(work: Work, call_s: float, refresh: Callable[[], None] = lambda: None) -> float | None:
    """Return the processor time in seconds that a call's native threads take after it returned, None for none.

    The process sleeps for 20 ms or twice ``call_s``, the duration of a call, before and after each of up to five calls.
    What it takes more after than before is work left behind if it is more than 200 µs and more than 5 % of a call; the
    least of these is returned. Two calls without any clear the provider: once in a while the threads of a busy machine
    get no time during the sleep. ``refresh`` runs before each call.
    """
    pause = min(max(SLEEP_S, 2 * call_s), LONGEST_SLEEP_S)
    left, clean, limit = math.inf, 0, max(FLOOR_S, SHARE * call_s)
    work, end = joining(work), time.monotonic() + SETTLE_S
    for _ in range(TRIES):
        refresh()
        idle = _settled(pause, end)
        results = work()
        spent = _processor_time(pause) - idle
        del results  # only now, as freeing takes time too
        clean += spent <= limit
        if clean == CLEAN:
            return None
        left = left if spent <= limit else min(left, spent)
    return left


def _settled(pause: float, end: float) -> float:
    """Wait until earlier work has ended, or until ``end``, and return the processor time of a pause."""
    while (spent := _processor_time(pause)) > FLOOR_S and time.monotonic() < end:
        pass
    return spent


def _processor_time(pause: float) -> float:
    begun = time.process_time()
    time.sleep(pause)
    return time.process_time() - begun
