"""Training by several processes, each on its share of every batch: DDP and FSDP2 of torch.

Under "ddp" (Li et al. 2020) every process holds the whole model and the gradients are averaged; under "fsdp" (FSDP2,
``fully_shard``; Zhao et al. 2023) parameters, gradients and optimizer state are divided between the processes, and a
block's parameters are gathered when it computes. Either way the gradients, and with them the losses, are those of the
whole batch in one process. Every process calls everything here in the same order; a process that trains alone, without
a process group, gets back what it passes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from scalebench.families import Family
from scalebench.measure.memory import PEAK_COLUMNS
from scalebench.tasks import Batch

PEAKS = tuple(column.name for column in PEAK_COLUMNS)


def processes() -> int:
    """Return how many processes train this model."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Return the number of this process among them, from 0; the first one writes what all have in common."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def share_of(batch: Batch) -> Batch:
    """Return this process' rows of a batch: consecutive ones, of equal number in every process."""
    if processes() == 1:
        return batch
    rows = len(batch[0]) // processes()
    return tuple(tensor[rank() * rows : (rank() + 1) * rows] for tensor in batch)


def replicated(model: nn.Module, device: torch.device) -> nn.Module:
    """Return the model under DDP: called in its place, it averages the gradients over the processes."""
    # A mixture of experts, or an unused output, leaves parameters without a gradient in a process.
    places = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=places, find_unused_parameters=True)


def shard(model: nn.Module, family: Family, device: torch.device) -> None:
    """Divide the parameters of a model between the processes, in place, as its family defines."""
    from torch.distributed.device_mesh import init_device_mesh

    family.parallelize(model, init_device_mesh(device.type, (processes(),)))


def exchange_gradients(model: nn.Module, *, now: bool) -> None:
    """Say whether the next backward pass is the step's last one: only then do gradients go between processes."""
    if isinstance(model, DistributedDataParallel):
        model.require_backward_grad_sync = now
    elif hasattr(model, "set_requires_gradient_sync"):  # under FSDP2, whose import takes most of a second
        model.set_requires_gradient_sync(now)  # type: ignore[operator]


def average(values: Tensor) -> None:
    """Replace a tensor, in place, by its mean over the processes."""
    if processes() > 1 and values.numel():
        distributed.all_reduce(values)
        values /= processes()


def average_buffers(model: nn.Module) -> None:
    """Give every process the mean of what their models keep beside parameters, such as batch norm's statistics."""
    buffer: Tensor  # nn.Module declares it as Tensor or Module
    for buffer in model.buffers():
        if buffer.is_floating_point():
            average(buffer)


def agree(value: int) -> bool:
    """Return whether all processes have the same value."""
    if processes() == 1:
        return True
    gathered: list[Any] = [None] * processes()
    distributed.all_gather_object(gathered, value)
    return len({*gathered}) == 1


def take_turns(action: Callable[[], object]) -> None:
    """Call ``action`` in one process after the other, so that two trials cannot each hold what the other waits for."""
    for turn in range(processes()):
        if turn == rank():
            action()
        if processes() > 1:
            distributed.barrier()


def of_all(columns: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the processes measured together: the largest peak of memory, the energy of all their devices."""
    mine = {name: columns.get(name) for name in (*PEAKS, "energy_j")}
    if processes() == 1:
        return {}
    gathered: list[Any] = [None] * processes()
    distributed.all_gather_object(gathered, mine)
    known = {name: [each[name] for each in gathered if each[name] is not None] for name in mine}
    energy = sum(known["energy_j"]) if len(known["energy_j"]) == processes() else None
    return {name: max(known[name], default=None) for name in PEAKS} | {"energy_j": energy}


def whole(value: Any) -> Any:
    """Return a tensor that is divided between the processes (a DTensor) as one tensor; anything else as it is."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def whole_model(model: nn.Module, copy: nn.Module) -> nn.Module:
    """Return ``copy``, a model of the same Config on the CPU, with the parameters and buffers of a divided one."""
    target = copy.state_dict()
    for name, value in model.state_dict().items():
        target[name].copy_(whole(value))
    return copy


def whole_state(optimizer: Optimizer) -> dict[int, dict[str, Any]]:
    """Return the optimizer's state by number of the parameter, with every tensor whole."""
    state = optimizer.state_dict()["state"]
    return {index: {name: whole(value) for name, value in values.items()} for index, values in state.items()}
