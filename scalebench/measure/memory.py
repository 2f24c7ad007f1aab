"""Peak memory of the allocator and the process, and memory by category from a separate pass."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from scalebench.store import Column

if TYPE_CHECKING:
    import torch
    from torch import nn
    from torch.optim import Optimizer

# MemTracker's categories, in the record's words. Temporaries of backward and untracked tensors are "other".
CATEGORIES = {
    "Parameter": "parameters",
    "Gradient": "gradients",
    "Optstate": "optimizer",
    "Activation": "activations",
    "Buffer": "other",
    "Temp": "other",
    "Other": "other",
}

PEAK_COLUMNS = (
    Column("peak_memory_allocated_bytes", "B", "peak memory allocated by the CUDA allocator"),
    Column("peak_memory_reserved_bytes", "B", "peak memory reserved by the CUDA allocator"),
    Column("peak_rss_bytes", "B", "peak resident set size of the process"),
)
METHOD = Column("memory_split_method", "", "how the memory by category was measured")
TRACKED = Column("memory_tracked_peak_bytes", "B", "peak memory of all tracked tensors together")
SPLIT_COLUMNS = (
    *(
        Column(f"memory_{name}_bytes", "B", f"peak memory of {name} within a step")
        for name in dict.fromkeys(CATEGORIES.values())
    ),
    *(
        Column(f"memory_at_peak_{name}_bytes", "B", f"memory of {name} at the peak of the total")
        for name in dict.fromkeys(CATEGORIES.values())
    ),
    TRACKED,
    METHOD,
)
CALL_COLUMNS = tuple(
    column
    for column in SPLIT_COLUMNS
    if column in (TRACKED, METHOD)
    or column.name.removeprefix("memory_at_peak_") in ("parameters_bytes", "activations_bytes", "other_bytes")
)


def reset_peaks(device: torch.device) -> None:
    """Reset the allocator's peak statistics (CUDA only; a process' peak cannot be reset)."""
    if device.type == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_columns(device: torch.device) -> dict[str, int | None]:
    """Return peak memory: of the CUDA allocator (null on a CPU) and the process' resident set."""
    import torch

    cuda = device.type == "cuda"
    kilo = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, in KiB on Linux
    return {
        "peak_memory_allocated_bytes": torch.cuda.max_memory_allocated(device) if cuda else None,
        "peak_memory_reserved_bytes": torch.cuda.max_memory_reserved(device) if cuda else None,
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo,
    }


def _by_category(snapshot: Mapping[torch.device, Mapping[Any, int]]) -> dict[str, int]:
    """Sum a MemTracker snapshot over devices into the record's categories."""
    sums = dict.fromkeys(CATEGORIES.values(), 0)
    for sizes in snapshot.values():
        for kind, size in sizes.items():
            if kind != "Total":
                sums[CATEGORIES[kind.value]] += size
    return sums


def split_columns(
    model: nn.Module, optimizer: Optimizer, backward: Callable[[int], Any]
) -> dict[str, int | str | None]:
    """Run a step under torch's MemTracker and return the memory columns by category.

    ``backward(step)`` runs forward and backward of one step. An optimizer that has no state yet allocates it in a step
    before that one. ``memory_<category>_bytes`` is each category's own maximum over the step,
    ``memory_at_peak_<category>_bytes`` what it held when the total was highest (gradients may be zero then).
    """
    from scalebench.measure.tracker import Tracker

    optimizer.zero_grad()
    steps = 1 if optimizer.state else 2
    tracker = Tracker(model)
    tracker.track_external(optimizer)
    snapshots: list[dict[str, int]] = []
    with tracker:
        for step in range(steps):
            backward(step)
            snapshots.append(_by_category(tracker.get_tracker_snapshot("current")))  # here the gradients exist
            optimizer.step()
            snapshots.append(_by_category(tracker.get_tracker_snapshot("current")))
            optimizer.zero_grad()
        at_peak = _by_category(tracker.get_tracker_snapshot("peak"))
    own = {name: max(snapshot[name] for snapshot in [at_peak, *snapshots]) for name in at_peak}
    return {
        **{f"memory_{name}_bytes": size for name, size in own.items()},
        **{f"memory_at_peak_{name}_bytes": size for name, size in at_peak.items()},
        "memory_tracked_peak_bytes": sum(at_peak.values()),
        "memory_split_method": "torch MemTracker over an untimed step",
    }


def held_columns(
    model: nn.Module, optimizer: Optimizer, peak_bytes: int | None, copies_bytes: int = 0, gradient_bytes: int = 0
) -> dict[str, int | str | None]:
    """Return the memory columns by category without running another step.

    Parameters (with ``copies_bytes`` in another dtype), gradients (``gradient_bytes``, or as many as the parameters')
    and the optimizer's state are what their tensors take. Activations are what else the allocator held at its peak of
    ``peak_bytes``: temporaries and workspaces too; null on a CPU, whose allocator has no statistics.
    """
    parameters = _held_bytes(model.parameters())
    state = _held_bytes(value for tensors in optimizer.state.values() for value in tensors.values())
    categories = {
        "parameters": parameters + copies_bytes,
        "gradients": gradient_bytes or parameters,
        "optimizer": state,
        "other": _held_bytes(model.buffers()),
    }
    return {
        **{f"memory_{name}_bytes": size for name, size in categories.items()},
        "memory_activations_bytes": None if peak_bytes is None else max(0, peak_bytes - sum(categories.values())),
        "memory_split_method": "sizes of tensors; activations: what else the CUDA allocator held at its peak",
    }


def call_columns(model: nn.Module, call: Callable[[], Any]) -> dict[str, int | str | None]:
    """Run one call of a model under torch's MemTracker, without gradients, and return its peak by category.

    A cache of keys and values is among the activations.
    """
    import torch

    from scalebench.measure.tracker import Tracker

    tracker = Tracker(model)
    with torch.no_grad(), tracker:
        call()
        at_peak = _by_category(tracker.get_tracker_snapshot("peak"))
    categories = {name: size for name, size in at_peak.items() if name not in ("gradients", "optimizer")}
    return {
        **{f"memory_at_peak_{name}_bytes": size for name, size in categories.items()},
        "memory_tracked_peak_bytes": sum(at_peak.values()),
        "memory_split_method": "torch MemTracker over one untimed call",
    }


def _tensor_bytes(values: Iterable[Any]) -> int:
    import torch

    return sum(value.numel() * value.element_size() for value in values if isinstance(value, torch.Tensor))


def _held_bytes(values: Iterable[Any]) -> int:
    """Return the bytes in this process: of a tensor that is divided between processes, those of its own part."""
    return _tensor_bytes(value.to_local() if hasattr(value, "to_local") else value for value in values)


def checkpoint_bytes(model: nn.Module, optimizer: Optimizer) -> int:
    """Return the bytes of stored parameters and optimizer state, tied parameters once, without headers."""
    state = (value for tensors in optimizer.state.values() for value in tensors.values())
    return _tensor_bytes(model.parameters()) + _tensor_bytes(model.buffers()) + _tensor_bytes(state)


def weight_bytes(model: nn.Module) -> int:
    """Return the bytes of the model's parameters and persistent buffers, tied ones once: its size when stored."""
    stored = set(model.state_dict())
    buffers = [buffer for name, buffer in model.named_buffers() if name in stored]
    return sum(_bytes_inside(tensor) for tensor in [*model.parameters(), *buffers])


def _bytes_inside(tensor: torch.Tensor) -> int:
    """Return the bytes of a tensor; of a quantised or sparse one, those of the tensors inside."""
    inner = getattr(tensor, "__tensor_flatten__", None)
    return sum(_bytes_inside(getattr(tensor, name)) for name in inner()[0]) if inner else tensor.nbytes
