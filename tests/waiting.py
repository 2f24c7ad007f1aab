"""Counters of what makes the host wait for a device: a tensor read as a number or a truth value, or searched."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

READING = ("item", "tolist", "numpy", "cpu", "nonzero", "__bool__", "__int__", "__float__", "__index__")
OURS = ("scalekernels", "scalebench")


class Waits(TorchDispatchMode):
    """Counts the operators that wait, in ``seen``; it does not see into custom operators (``host_reads`` does)."""

    WAITING = ("aten._local_scalar_dense", "aten.is_nonzero", "aten.nonzero", "aten.equal", "aten.masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if str(function).startswith(self.WAITING):
            self.seen.append(str(function))
        return function(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[list[tuple[str, str]]]:
    """Give the list of (module, method) of every read of a tensor that our own Python code does meanwhile.

    Custom operators are included, which is where kernels are launched.
    """
    reads: list[tuple[str, str]] = []

    def counted(name: str) -> Any:
        original = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if (module := sys._getframe(1).f_globals["__name__"]).startswith(OURS):
                reads.append((module, name))
            return original(tensor, *args, **kwargs)

        return read

    with pytest.MonkeyPatch.context() as patch:
        for name in READING:
            patch.setattr(torch.Tensor, name, counted(name))
        yield reads
