"""A training step as one CUDA graph: forward, backward, clipping and update of all micro-batches, replayed.

What changes from step to step is read from device memory that stays where it is: the batch from buffers that each step
fills, the learning rate from a tensor, gradients and weights from the buffers of ``mixed_precision.WorkingCopy``.
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
        """Take the step and return the batch's mean loss, (), which the next step overwrites."""
        if self.taken < ORDINARY:
            self.taken += 1
            return self._ordinary(batch)
        if self.graph is None:
            self._capture(batch)
        assert self.graph is not None
        for kept, given in zip(self.inputs, batch, strict=True):
            kept.copy_(given)
        self.graph.replay()
        return self.loss

    def _ordinary(self, batch: Batch) -> Tensor:
        """Take a step on the stream that the graph will be captured on."""
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
        """Record a step; recording runs nothing."""
        self.inputs = tuple(tensor.clone() for tensor in batch)
        graph = torch.cuda.CUDAGraph()
        # Another thread goes on making batches: only what this one does is recorded.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.loss = super().__call__(self.inputs)
        self.graph = graph
