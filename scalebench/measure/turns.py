"""Times of several calls, measured in turns in one process, so that whatever slows the machine slows all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

METHOD = "perf_counter_ns, device synchronised, in turns"
WARMUPS = 5
FEWEST_TURNS, MOST_TURNS = 20, 300
ENOUGH_S = 0.5


def times_in_turns(
    calls: Sequence[Callable[[], object]], device: torch.device, *, seconds: float = ENOUGH_S, most: int = MOST_TURNS
) -> list[NDArray[np.float64]]:
    """Return the times of each call in seconds, (turns,) each: every turn makes all calls once, in random order.

    After ``WARMUPS`` turns that do not count, turns are taken for ``seconds``: at least ``FEWEST_TURNS``, at most
    ``most``. On a GPU each call starts on an idle device and ends when the device has finished it.
    """
    for _ in range(WARMUPS):
        for call in calls:
            _seconds(call, device)
    times: list[list[float]] = [[] for _ in calls]
    order, shuffle = list(range(len(calls))), random.Random(0)
    end = time.monotonic() + seconds
    while len(times[0]) < most and (len(times[0]) < FEWEST_TURNS or time.monotonic() < end):
        shuffle.shuffle(order)
        for i in order:
            times[i].append(_seconds(calls[i], device))
    return [np.array(each, dtype=np.float64) for each in times]


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    _wait(device)
    begun = time.perf_counter_ns()
    call()
    _wait(device)
    return (time.perf_counter_ns() - begun) * 1e-9


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)
