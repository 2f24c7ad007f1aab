"""A snapshot of the tensors of a step, by which the next step detects whether anything has changed.

Reading an attribute of a tensor costs about 0.1 microseconds, building the lists of a step several times that; with 148
tensors the lists cost more than the step's time on a GPU. So the attributes are compared in a few list comprehensions,
and the lists are rebuilt only if one differs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from scalekernels.optimizer.launch import Variant


def same(ours: Sequence[Any], theirs: Sequence[Any]) -> bool:
    """Return whether two sequences have identical objects."""
    return len(ours) == len(theirs) and all(map(is_, ours, theirs))


def forms(tensors: Sequence[Tensor]) -> tuple[list[Any], ...]:
    """Return addresses, shapes, strides and dtypes, which a kernel relies on."""
    return (
        list(map(Tensor.data_ptr, tensors)),
        [tensor.shape for tensor in tensors],
        list(map(Tensor.stride, tensors)),
        [tensor.dtype for tensor in tensors],
    )


def state_tensors(state: Mapping[Tensor, Mapping[str, Any]]) -> list[Any]:
    """Return the state of all parameters as one list."""
    return list(chain.from_iterable(kept.values() for kept in state.values()))


@dataclass
class Bound:
    """The tensors that the tables describe.

    ``params`` are all parameters in the order of the groups, which have ``sizes``; ``grads`` their gradients or None;
    ``members`` the indices of those in the tables.
    """

    variant: Variant
    sizes: list[int]
    params: list[Tensor]
    param_forms: tuple[list[Any], ...]
    grads: list[Tensor | None]
    grad_forms: tuple[list[Any], ...]
    kept: list[Any]
    kept_addresses: list[int]
    members: list[int]

    @classmethod
    def of(
        cls,
        variant: Variant,
        groups: Sequence[Mapping[str, Any]],
        state: Mapping[Tensor, Mapping[str, Any]],
        members: list[int],
    ) -> Bound:
        """Return a snapshot of the current tensors."""
        params = [param for group in groups for param in group["params"]]
        grads = [param.grad for param in params]
        kept = state_tensors(state)
        return cls(
            variant, [len(group["params"]) for group in groups], params, forms(params), grads,
            forms([grad for grad in grads if grad is not None]), kept, list(map(Tensor.data_ptr, kept)), members,
        )  # fmt: skip

    def holds(
        self, variant: Variant, groups: Sequence[Mapping[str, Any]], state: Mapping[Tensor, Mapping[str, Any]]
    ) -> bool:
        """Return whether parameters and state are unchanged; gradients are not compared."""
        params = [param for group in groups for param in group["params"]]
        kept = state_tensors(state)
        return (
            variant == self.variant
            and [len(group["params"]) for group in groups] == self.sizes
            and same(params, self.params)
            and same(kept, self.kept)
            and forms(params) == self.param_forms
            and list(map(Tensor.data_ptr, kept)) == self.kept_addresses
        )

    def gradients_hold(self, grads: list[Tensor | None]) -> bool:
        """Return whether the gradients are unchanged."""
        return same(grads, self.grads) and forms([grad for grad in grads if grad is not None]) == self.grad_forms

    def take_gradients(self, grads: list[Tensor | None]) -> bool:
        """Replace the gradients if possible and return whether it was.

        It is if the same parameters have gradients, with the dtype, shape and layout of the parameters.
        """
        places = [place for place, grad in enumerate(grads) if grad is not None]
        present = [grad for grad in grads if grad is not None]
        if [grad is None for grad in grads] != [grad is None for grad in self.grads]:
            return False
        if not all(type(grad) is Tensor and grad.layout == torch.strided for grad in present):
            return False
        if any(grad.device != self.params[place].device for grad, place in zip(present, places, strict=True)):
            return False
        theirs = forms(present)
        expected = ([column[place] for place in places] for column in self.param_forms[1:])
        if not all(map(list.__eq__, theirs[1:], expected)):
            return False
        self.grads, self.grad_forms = grads, theirs
        return True
