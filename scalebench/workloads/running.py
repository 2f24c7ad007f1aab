"""How a trial's model is run: through a 16-bit copy, compiled, captured, and with which attention."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.amp import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim import Optimizer

from scalebench.optim.fused import clips
from scalebench.tasks import Task
from scalebench.workloads.base import KERNELS
from scalebench.workloads.batches import to_device
from scalebench.workloads.building import compile_blocks, compile_model
from scalebench.workloads.loop import Step, backward, loss_scaler
from scalebench.workloads.mixed_precision import WorkingCopy, computes_in
from scalebench.workloads.parallel import replicated
from scalebench.workloads.training_spec import TrainSpec

# torch's default order begins with FlashAttention 2, which is slower than cuDNN on Hopper: a fair baseline uses cuDNN.
CUDNN_FIRST_FROM = (9, 0)
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH,
]  # fmt: skip


class Running:
    """``model`` holds the parameters that are optimized, ``module`` computes, ``compiled`` is what training calls.

    ``module`` is ``model`` itself, or the module of the 16-bit ``copy``.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, spec: TrainSpec) -> None:
        self.model, self.optimizer, self.spec = model, optimizer, spec
        self.device = next(model.parameters()).device
        self.copy: WorkingCopy | None = None
        self.module = model
        if (dtype := computes_in(model, spec.precision)) is not None:
            assert clips(optimizer), "the loop would clip the gradients of the copy, which are elsewhere"
            self.copy = WorkingCopy(model, dtype, sum_in_products=spec.gradient_sums)
            self.copy.follow(optimizer)
            self.module = self.copy.module
        self.compiled: Any = self.module
        if spec.graph == "model":
            self.compiled = compile_model(self.module, fullgraph=spec.implementation in KERNELS)
        elif spec.graph in ("blocks", "step"):
            self.compiled = compile_blocks(self.module)
        if spec.parallel == "ddp":
            self.compiled = replicated(self.module, self.device)

    def make_step(
        self, model: nn.Module, optimizer: Optimizer, task: Task, spec: TrainSpec, scaler: GradScaler
    ) -> Step:
        """Return the object that takes the training steps."""
        if spec.graph == "step":
            from scalebench.workloads.captured import CapturedStep

            return CapturedStep(model, optimizer, task, spec, scaler)
        return Step(model, optimizer, task, spec, scaler)

    def attention(self) -> AbstractContextManager[object]:
        """Return the context in which torch's attention prefers cuDNN on GPUs where that is fastest."""
        if self.device.type != "cuda" or torch.cuda.get_device_capability(self.device) < CUDNN_FIRST_FROM:
            return nullcontext()
        return sdpa_kernel(BACKENDS, set_priority=True)

    def attention_backend(self, config: Mapping[str, Any]) -> str | None:
        """Return the name of the attention implementation; None for a family whose Config has no heads."""
        heads, head_dim, length = config.get("heads"), config.get("head_dim"), self.spec.sequence_length
        if not (heads and head_dim and length):
            return None
        if self.spec.implementation in KERNELS or self.spec.implementation == "eager":
            return "scalekernels" if self.spec.implementation in KERNELS else "written out"
        shape, dtype = (1, int(heads), length, int(head_dim)), getattr(torch, self.spec.precision)
        probe = torch.empty(shape, dtype=dtype, device=self.device, requires_grad=True)
        with self.attention():
            chosen = torch._fused_sdp_choice(probe, probe, probe, is_causal=True)
        return SDPBackend(chosen).name.lower()


def backward_of(model: nn.Module, task: Task, spec: TrainSpec, device: torch.device) -> Any:
    """Return a function that runs forward and backward of a step, for the memory pass."""
    scaler = loss_scaler(device, spec)

    def run(step: int) -> None:
        backward(model, task, to_device(task.batch(step), device), spec, scaler)

    model.train()
    return run
