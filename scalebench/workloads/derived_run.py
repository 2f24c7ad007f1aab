"""The run that fine-tuning, distillation and pruning share: a training run that no other continues."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim import Optimizer

from scalebench.workloads.training_run import TrainingRun
from scalebench.workloads.weights import save_weights


class DerivedRun(TrainingRun):
    """A training run that keeps its weights, but no state to continue from."""

    def keep(self, model: nn.Module, optimizer: Optimizer, rng: dict[str, Tensor]) -> None:  # noqa: ARG002 - no state
        """Write the weights."""
        attempt = self.recorder.attempt
        self.columns["weights_sha256"], self.columns["weights_file_bytes"] = save_weights(
            self.saved_model(model), attempt
        )

    def saved_model(self, model: nn.Module) -> nn.Module:
        """Return the model whose weights are written, under the family's own names."""
        return model
