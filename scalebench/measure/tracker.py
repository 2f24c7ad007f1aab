"""torch's memory tracker by category, in a separate file: importing it takes seconds, and few trials need it."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker


class Tracker(MemTracker):  # type: ignore[misc]  # a private module of torch, untyped
    """MemTracker that allows a step or call to run the model several times, once per micro-batch or token."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.track_external(model)

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if module is self.model:
            self.reset_mod_stats()
        super()._pre_fw_hook(module, inputs)

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> Any:
        """Hook gradients only if they are computed: frozen weights refuse the hook."""
        return super()._track_module_params_and_buffers(module, install_grad_hooks and torch.is_grad_enabled())
