"""Scores of a classification from labels and predicted classes: accuracy, and macro precision, recall and F1."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from scalebench.store import Column
from scalebench.tasks.base import Batch, MeanLoss

if TYPE_CHECKING:
    from torch import Tensor, nn

COLUMNS = (
    Column("metric_accuracy", "1", "share of the validation samples whose class is predicted"),
    Column("metric_precision", "1", "precision, averaged over the classes that are labels or predictions"),
    Column("metric_recall", "1", "recall, averaged over the classes that are labels or predictions"),
    Column("metric_f1", "1", "F1, averaged over the classes that are labels or predictions"),
)


def class_scores(labels: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float]:
    """Return accuracy, precision, recall and F1 of labels and predictions, both (n,).

    The last three are macro averages: of a class's true positives over its predictions, over its labels, and of the
    harmonic mean of both, each 0 where it would be 0 / 0. Classes that are neither label nor prediction do not count.
    """
    import torch

    truth, guess = (torch.from_numpy(np.asarray(values, dtype=np.int64)) for values in (labels, predicted))
    size = int(torch.cat([truth, guess]).max()) + 1
    hits = torch.bincount(truth[truth == guess], minlength=size).double()
    of_label, of_guess = (torch.bincount(values, minlength=size).double() for values in (truth, guess))
    known = of_label + of_guess > 0
    quotients = {
        "precision": hits / of_guess.clamp(min=1),
        "recall": hits / of_label.clamp(min=1),
        "f1": 2 * hits / (of_label + of_guess).clamp(min=1),
    }
    macro = {name: float(values[known].mean()) for name, values in quotients.items()}
    return {"accuracy": float((truth == guess).double().mean()), **macro}


class OneClass(MeanLoss):
    """Base of tasks that choose one class for each sample: a batch is the model's inputs, then the classes (B,).

    What follows them is another's, such as what distillation has stored of a teacher.
    """

    @property
    def inputs(self) -> int:
        """How many tensors of a batch are the model's inputs."""
        return 1

    def logits(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits of each sample's class, (B, classes)."""
        logits: Tensor = model(*batch[: self.inputs])
        return logits

    def logits_and_loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the logits (B, classes) and the training loss (), of one forward pass."""
        from torch.nn import functional as F

        logits = self.logits(model, batch)
        return logits, F.cross_entropy(logits.float(), batch[self.inputs])

    def losses(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the cross-entropy of each sample, (B,)."""
        from torch.nn import functional as F

        return F.cross_entropy(self.logits(model, batch).float(), batch[self.inputs], reduction="none")

    def judge(self, model: nn.Module, batch: Batch) -> Mapping[str, Tensor]:
        """Return the loss, the label and the predicted class of each sample."""
        from torch.nn import functional as F

        logits, labels = self.logits(model, batch).float(), batch[self.inputs]
        loss = F.cross_entropy(logits, labels, reduction="none")
        return {"loss_nats": loss, "label": labels, "predicted": logits.argmax(1)}

    def metrics(self, judged: Mapping[str, NDArray[np.float64]]) -> Mapping[str, float]:
        """Return accuracy, and macro precision, recall and F1."""
        return class_scores(judged["label"], judged["predicted"])
