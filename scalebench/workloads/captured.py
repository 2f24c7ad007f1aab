"""A training step as one CUDA graph: forward, backward, clipping and update of all micro-batches, replayed.

Everything that changes between steps is read from device memory at fixed addresses: the batch from buffers that each
step fills, the learning rate from a tensor, gradients and weights from the buffers of ``mixed_precision.WorkingCopy``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scalebench.tasks import Batch
from scalebench.workloads.loop import Step

# Ordinary steps before the capture: compilation, tables and state of the optimizer, workspaces of the libraries.
ORDINARY = 3


class CapturedStep(Step):
    """Takes the first steps as ``Step`` does, captures one, and replays it. Every step trains on its own batch."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        device = next(self.model.parameters()).device
        self.stream = torch.cuda.Stream(device)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.taken = 0
        for group in self.optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=torch.float32, device=device)

    def __call__(self, batch: Batch) -> Tensor:
        """Take the step and return the batch's mean loss, (); the next step overwrites it."""
        if self.taken < ORDINARY:
            self.taken += 1
            return self._ordinary(batch)
        if self.graph is None:
            self._capture(batch)
        assert self.graph is not None
        for buffer, tensor in zip(self.inputs, batch, strict=True):
            buffer.copy_(tensor)
        self.graph.replay()
        return self.loss

    def _ordinary(self, batch: Batch) -> Tensor:
        """Take an uncaptured step, on the stream that the graph will be captured on."""
        stream = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(stream)
        with torch.cuda.stream(self.stream):
            for tensor in batch:
                tensor.record_stream(self.stream)
            loss = super().__call__(batch)
        stream.wait_stream(self.stream)
        loss.record_stream(stream)
        return loss

    def _capture(self, batch: Batch) -> None:
        """Capture a step; capturing executes nothing."""
        self.inputs = tuple(tensor.clone() for tensor in batch)
        graph = torch.cuda.CUDAGraph()
        # Another thread is making batches: capture only this thread's work.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.loss = super().__call__(self.inputs)
        self.graph = graph
