"""A worker's memory limit, and what follows when memory runs out: smaller micro-batches with ``on_oom``."""

from __future__ import annotations

import resource
from pathlib import Path

from scalebench.study import Trial


def limit_memory(limit_bytes: float | None) -> None:
    """Limit the memory that this process may allocate from now on, in bytes; None is no limit.

    What the interpreter and the libraries have allocated already is not counted. Beyond the limit an allocation fails,
    as on a machine without more memory, and the trial ends as oom. Memory of a GPU is not limited.
    """
    if limit_bytes is None:
        return
    total = int(limit_bytes) + data_bytes()
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (total if hard == resource.RLIM_INFINITY else min(total, hard), hard))


def allocation_failed(error: BaseException) -> bool:
    """Whether an exception means that memory ran out.

    On a CPU torch reports that as a plain RuntimeError; oneDNN names what it could not create, which under a limit of
    memory is for lack of it.
    """
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error):
        return True
    return _is_limited() and str(error).startswith(("could not create a primitive", "could not create a memory"))


def shortage() -> str:
    """Return a message for an exception about memory; Python's own has none."""
    return "an allocation failed" + (" at the limit, run.memory_limit_bytes" if _is_limited() else "")


def _is_limited() -> bool:
    return resource.getrlimit(resource.RLIMIT_DATA)[0] != resource.RLIM_INFINITY


def data_bytes() -> int:
    """Return the bytes of private writable memory of this process, which RLIMIT_DATA limits; 0 where unknown."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)


def with_smaller_micro_batches(trial: Trial) -> Trial | None:
    """Return the trial with twice as many micro-batches of half the size; None if they cannot be smaller."""
    accumulation, batch_size = getattr(trial.spec, "accumulation", None), getattr(trial.spec, "batch_size", 0)
    if accumulation is None or 2 * accumulation > batch_size:
        return None
    spec = trial.spec.model_copy(update={"accumulation": 2 * accumulation})
    return trial.model_copy(update={"spec": spec})
