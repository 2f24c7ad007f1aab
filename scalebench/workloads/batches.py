"""Training batches on the device, in step order: made ahead by a thread, copied on a separate CUDA stream."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch

from scalebench.tasks import Batch, Task
from scalebench.workloads.parallel import share_of

AHEAD = 2  # batches made in advance
POLL_S = 0.1  # how often a thread with a full queue checks whether it should stop


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Move a batch; on a GPU from pinned memory, without waiting."""
    if device.type == "cpu":
        return batch
    # A view would be made contiguous on the way, in memory that is not pinned, and the copy would wait.
    return tuple(tensor.contiguous().pin_memory().to(device, non_blocking=True) for tensor in batch)


def batches(task: Task, steps: Sequence[int], device: torch.device) -> Generator[Batch]:
    """Yield the batch of each step on the device: made on demand on a CPU, in advance on a GPU.

    With several processes each gets its own rows.
    """
    if device.type == "cpu":
        for step in steps:
            yield share_of(task.batch(step))
        return
    yield from prefetched(lambda step: share_of(task.batch(step)), steps, device)


def prefetched(make: Callable[[int], Batch], steps: Sequence[int], device: torch.device) -> Generator[Batch]:
    """Yield ``make(step)`` on the device for each step, made in a thread; errors in it are raised here.

    On a GPU the copies run on a separate stream; the compute stream waits for them, the host does not.
    """
    ready: queue.Queue[Any] = queue.Queue(AHEAD)
    closed = threading.Event()
    thread = threading.Thread(target=_fill, args=(make, steps, device, ready, closed), daemon=True)
    thread.start()
    try:
        for _ in steps:
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            batch, sent = item
            if sent is not None:
                stream = torch.cuda.current_stream(device)
                stream.wait_event(sent)
                for tensor in batch:
                    tensor.record_stream(stream)  # else its memory could be the next batch's while it is still read
            yield batch
    finally:
        closed.set()
        thread.join()


def _fill(
    make: Callable[[int], Batch],
    steps: Sequence[int],
    device: torch.device,
    ready: queue.Queue[Any],
    closed: threading.Event,
) -> None:
    """Make and send one batch after another until all are sent or the consumer has stopped."""
    try:
        stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        for step in steps:
            if not _put(ready, _sent(make(step), device, stream), closed):
                return
    except BaseException as error:  # noqa: BLE001 - raised again in the consumer
        _put(ready, error, closed)


def _sent(batch: Batch, device: torch.device, stream: torch.cuda.Stream | None) -> tuple[Batch, Any]:
    """Return the batch on the device, and the event that marks the end of its copy."""
    if stream is None:
        return to_device(batch, device), None
    with torch.cuda.device(device), torch.cuda.stream(stream):
        return to_device(batch, device), stream.record_event()


def _put(ready: queue.Queue[Any], item: Any, closed: threading.Event) -> bool:
    """Put an item when there is room; False once the consumer has stopped."""
    while not closed.is_set():
        try:
            ready.put(item, timeout=POLL_S)
        except queue.Full:
            continue
        return True
    return False
