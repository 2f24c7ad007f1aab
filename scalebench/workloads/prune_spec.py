"""What a study can say about pruning ([prune]), and one trial's pruning with every value decided."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from scalebench.study.axes import Axis, Share, WholeNumber, one_of
from scalebench.workloads.training_spec import TrainSection, TrainSpec

WEIGHTS = ("magnitude-global", "magnitude-layer", "random", "2:4")  # single weights are set to zero
UNITS = ("heads", "hidden", "layers")  # whole units are left out: a smaller model
METHODS = (*WEIGHTS, *UNITS)


class PruneSection(TrainSection):
    """What is removed from each model, and how it is trained afterwards: the fields of [train] with ``recovery_steps``.

    The matrices pruned are those of hidden layers (``optim.hidden_matrices``): not embeddings, not the first and the
    last layer, tied or not, no norms and no biases.
    """

    method: Axis[Annotated[str, one_of(METHODS)]] = ("magnitude-global",)
    density: Axis[Share] = (0.5,)  # share of the weights, or units, that remain
    recovery_steps: Axis[WholeNumber] = (0,)


class PruneSpec(TrainSpec):
    """One trial's pruning, every value decided; ``steps`` are ``recovery_steps``."""

    method: str = Field(description="what is removed: weights by magnitude, at random or 2:4, or heads, hidden, layers")
    density: float = Field(description="requested share of the weights, or units, that remain")
    recovery_steps: int = Field(description="training steps after pruning; what was removed stays removed")
