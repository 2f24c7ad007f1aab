"""Muon on hidden matrices with AdamW on the rest, as one optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.optim import Muon, Optimizer

from scalebench.optim.fused import OptimizerSpec

Groups = Sequence[dict[str, Any]]


class MuonWithAdamW(Optimizer):
    """Muon (Jordan et al. 2024) for the groups marked ``hidden``, AdamW for the others, as one optimizer.

    Muon's update is scaled to the size of AdamW's (``match_rms_adamw``, Liu et al. 2025), so that both
    take the same learning rate.
    """

    def __init__(
        self, groups: Groups, spec: OptimizerSpec, adamw: Callable[[Groups, OptimizerSpec], Optimizer]
    ) -> None:
        super().__init__(groups, {"lr": spec.learning_rate})
        hidden, others = ([group for group in groups if group["hidden"] is side] for side in (True, False))
        muon = Muon(hidden, spec.learning_rate, momentum=spec.momentum, adjust_lr_fn="match_rms_adamw")
        self.parts = [muon, adamw(others, spec)]
        # Groups and state are shared with the parts, so that a schedule or a collector sees what they use.
        self.param_groups = [group for part in self.parts for group in part.param_groups]
        for part in self.parts:
            part.state = self.state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state, which the parts go on sharing."""
        super().load_state_dict(state_dict)
        groups = iter(self.param_groups)
        for part in self.parts:
            part.param_groups = [next(groups) for _ in part.param_groups]
            part.state = self.state

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # a closure would run twice
        """Let each part update its own parameters."""
        assert closure is None
        for part in self.parts:
            part.step()
