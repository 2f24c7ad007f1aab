"""torch's memory tracker by category, in a separate file: importing it takes seconds, and few trials need it."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.hooks import RemovableHandle


class Tracker(MemTracker):  # type: ignore[misc]  # a private module of torch, untyped
    """MemTracker that allows a step or call to run the model several times, once per micro-batch or token.

    It keeps what the model holds altogether. Tracking each of its modules, which is not used here, takes most of
    MemTracker's time: after every operation it goes through all modules.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.track_external(model)

    def _pre_fw_hook(self, module: nn.Module, inputs: Any) -> None:
        if module is self.model:
            self.reset_mod_stats()
        super()._pre_fw_hook(module, inputs)

    def _track_module_params_and_buffers(self, module: nn.Module, install_grad_hooks: bool = True) -> Any:
        """Hook gradients only where they are computed: frozen weights refuse the hook."""
        hooked = install_grad_hooks and torch.is_grad_enabled()
        for parameter in module.parameters() if hooked else ():
            if not parameter.requires_grad:  # as if it had its two hooks already
                handles = RemovableHandle(OrderedDict()), RemovableHandle(OrderedDict())
                self._param_to_grad_hook_handles.setdefault(parameter, handles)
        return super()._track_module_params_and_buffers(module, hooked)

    def get_tracker_snapshot(self, type: str = "current") -> dict[torch.device, dict[Any, int]]:  # noqa: A002 - torch's
        """Return bytes by device and category, now or at the peak."""
        snapshot = self._peak_mem_snap if type == "peak" else self._curr_mem_snap
        return {device: dict(sizes) for device, sizes in snapshot.items()}

    def _update_peak_stats(self, peak_state: Any) -> None:  # noqa: ARG002 - of modules
        for device, sizes in self._curr_mem_snap.items():
            if self._peak_mem.get(device, 0) < sizes["Total"]:
                self._peak_mem[device] = sizes["Total"]
                self._peak_mem_snap[device] = dict(sizes)

    def _track_inputs_or_outputs(self, args: Any) -> int:  # noqa: ARG002 - of modules
        return 0

    def _pre_bw_hook(self, module: nn.Module, args: Any) -> None:
        """Keep nothing of a module before its backward pass."""

    def _post_bw_hook(self, module: nn.Module, args: Any) -> None:
        """Keep nothing of a module after its backward pass."""
