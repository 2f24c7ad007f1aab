"""Tables in device memory through which one launch finds all tensors: addresses, lengths, groups, and chunks.

A table is compared with the tensors of every step and only the rows that changed travel to the device: all of them at
the first step, the gradients' row whenever ``zero_grad`` let them move, none in a settled loop. What travels goes
through a fresh piece of pinned memory without waiting; torch's allocator hands pinned memory out again only after the
copy from it has run. Tables, scalars and partial sums are written and read on the stream that is current in the step:
steps on different streams have to be ordered by the caller, as their updates of the same parameters have to be anyway.
Each optimizer has tables of its own, so that different optimizers may step on different streams at once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from scalekernels.optimizer.kernels import CHUNK, GRAD, GROUP, NUMEL, PARAM, ROWS, SCALARS, STEP

EMPTY = 1  # in the gradients' row: a gradient without elements, whose step counts although nothing is read
NAMES = ("param", "grad", "step", "first", "second", "third", "first_scale", "second_scale", "numel", "group")


def to_device(values: Tensor, out: Tensor) -> None:
    """Copy a CPU tensor into device memory without waiting for the device.

    Raises ``RuntimeError`` while a CUDA graph is being captured: the graph would repeat the copy of today's values.
    """
    if out.device.type != "cuda":
        out.copy_(values)
        return
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the tables of the fused optimizer changed while a CUDA graph is captured: run a step before capturing, "
            "keep the gradients where they are (zero_grad(set_to_none=False)) and give the learning rate as a tensor"
        )
    out.copy_(values.pin_memory(), non_blocking=True)


def chunk_table(lengths: Sequence[int], members: Sequence[int]) -> Tensor:
    """Return [chunks, 2] int32 of (tensor, chunk within it) covering the tensors ``members`` of these lengths."""
    counts = torch.tensor([-(-lengths[member] // CHUNK) for member in members], dtype=torch.int64)
    tensors = torch.repeat_interleave(torch.tensor(members, dtype=torch.int64), counts)
    starts = torch.repeat_interleave(counts.cumsum(0) - counts, counts)
    return torch.stack([tensors, torch.arange(len(tensors)) - starts], dim=1).to(torch.int32)


class Tables:
    """The device tables of one set of tensors; ``uploads`` counts copies to the device by row."""

    def __init__(self) -> None:
        self.uploads: Counter[str] = Counter()
        self._layout: list[tuple[int, torch.dtype, torch.device]] = []
        self._rows: list[list[int]] = []

    def bind(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor | None],
        groups: Sequence[int],
        state: Sequence[Sequence[Tensor]],
    ) -> None:
        """Update the tables for these tensors; ``state``: steps, three states, two scales, each maybe empty."""
        layout = [(param.numel(), param.dtype, param.device) for param in params]
        if layout != self._layout:
            self._lay_out(layout)
        kept = next((tensors[0].dtype for tensors in state[1:3] if tensors), torch.float32)
        self.state_dtype = torch.int8 if kept == torch.uint8 else kept
        rows = [[param.data_ptr() for param in params], [address_of(grad) for grad in grads]]
        rows += [[tensor.data_ptr() for tensor in tensors] for tensors in state]
        rows += [[entry[0] for entry in layout], list(groups)]
        for row, values in enumerate(rows):
            self._send(row, values)

    def bind_grads(self, grads: Sequence[Tensor | None]) -> None:
        """Update the tables for other gradients of the same tensors."""
        self._send(GRAD, [address_of(grad) for grad in grads])

    def _send(self, row: int, values: list[int]) -> None:
        if values and values != self._rows[row]:
            to_device(torch.tensor(values, dtype=torch.int64), self.pointers[row])
            self._rows[row] = values
            self.uploads[NAMES[row]] += 1

    def _lay_out(self, layout: list[tuple[int, torch.dtype, torch.device]]) -> None:
        lengths, device = [entry[0] for entry in layout], layout[0][2]
        by_dtype: dict[torch.dtype, list[int]] = {}
        for member, (_, dtype, _) in enumerate(layout):
            by_dtype.setdefault(dtype, []).append(member)
        self.chunks: dict[torch.dtype, Tensor] = {}
        for dtype, members in by_dtype.items():
            table = chunk_table(lengths, members)
            if len(table):
                self.chunks[dtype] = torch.empty_like(table, device=device)
                to_device(table, self.chunks[dtype])
        self.tensors = len(layout)
        self.count = sum(len(table) for table in self.chunks.values())
        self.pointers = torch.zeros(ROWS, len(layout), dtype=torch.int64, device=device)
        self.scalars = torch.zeros(len(layout), SCALARS, dtype=torch.float32, device=device)
        self.keys = torch.zeros(len(layout), dtype=torch.int32, device=device)
        self.partials = torch.zeros(max(1, self.count), dtype=torch.float32, device=device)
        self._layout, self._rows = layout, [[] for _ in range(ROWS)]
        self.uploads["chunks"] += 1


def address_of(grad: Tensor | None) -> int:
    """Return a gradient's entry in its row."""
    if grad is None:
        return 0
    return grad.data_ptr() if grad.numel() else EMPTY


# Which tables belong to which optimizer: a custom operation takes tensors and numbers, so it is given a number.
TABLES: WeakValueDictionary[int, Tables] = WeakValueDictionary()
assert (PARAM, GRAD, STEP, NUMEL, GROUP) == (0, 1, 2, 8, 9), "bind builds its rows in this order"
