"""Providers: the implementations of an operation that a comparison runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from scalekernels.cost import Cost
from scalekernels.device import Unsupported

__all__ = ["Provider", "Unsupported"]


@dataclass(frozen=True)
class Provider:
    """One implementation of an operation.

    ``prepare(case, inputs, backward)`` returns the function to be timed. It takes no arguments, can be called
    repeatedly, and returns named tensors: the outputs, or with ``backward`` the gradients of the inputs, by the names
    in the operation's ``reference``. ``prepare`` does what is not timed: compilation, and the forward pass before a
    timed backward. It raises ``Unsupported`` with the reason when this machine cannot run the case.

    The function reads its inputs in every call and keeps neither copies nor results: before each timed call, new values
    are copied in place into the tensors in ``inputs``. Forward that is all of them, backward those called ``grad_…``,
    since the forward pass has been done with the others; an operation whose calls read others has a function
    ``live(case, backward)`` beside ``inputs`` that returns their names. All work of a call has to end with it.

    ``repeatable``: every call computes its results from the inputs alone, so inputs are refreshed and results checked
    again after timing (not so for an optimizer's step, which changes its own state). ``cost(case, backward)`` replaces
    the operation's ``cost`` for a provider that does other work, such as an optimizer with 8-bit state.
    """

    summary: str
    prepare: Callable[[Any, Mapping[str, Tensor], bool], Callable[[], Mapping[str, Tensor]]]
    repeatable: bool = True
    cost: Callable[[Any, bool], Cost] | None = None
