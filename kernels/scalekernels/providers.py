"""What stands beside a kernel in a comparison: every other way to compute the same thing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scalekernels.cost import Cost


class Unavailable(RuntimeError):  # noqa: N818 - a state of the provider on this machine; the message is the reason
    """A provider that cannot run a case here; the message says why."""


@dataclass(frozen=True)
class Provider:
    """One implementation of an operation.

    ``prepare(case, inputs, backward)`` returns the function to be timed: called without arguments, as often as one
    likes, it launches the work and returns its results (outputs, or with ``backward`` the gradients of the inputs) as a
    mapping of named tensors, named as those of the operation's ``reference``. What is not part of the operation
    (compiling, the forward pass that a timed backward needs) happens in ``prepare``. It raises ``Unavailable`` with the
    reason where the provider cannot run the case.

    ``repeatable`` says that every call computes the same results anew, as an optimizer's step does not: such results
    are checked again after timing. ``cost(case, backward)`` is what this provider does and moves, where that is not
    what the operation's ``cost`` counts: an optimizer that keeps its state in fewer bits.
    """

    summary: str
    prepare: Callable[[Any, Mapping[str, Tensor], bool], Callable[[], Mapping[str, Tensor]]]
    repeatable: bool = True
    cost: Callable[[Any, bool], Cost] | None = None
