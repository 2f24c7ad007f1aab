"""The modules of a model without its values: what planning asks for names and shapes of weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from scalebench.families.base import Family

if TYPE_CHECKING:
    from torch.nn import Module

FILLING = ("normal_", "uniform_", "zero_", "fill_")  # methods of tensors; the functions of torch.nn.init fill, too


def outline(family: Family, config: Any, implementation: str = "eager") -> Module:
    """Return a family's model on the device ``meta``. Imports torch.

    Nothing is filled with values: on ``meta`` PyTorch does so in Python, which takes longer than building the model.
    """
    import torch
    from torch.overrides import TorchFunctionMode

    methods = {getattr(torch.Tensor, name) for name in FILLING}

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(
            self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:  # fmt: skip
            if func in methods or getattr(func, "__module__", None) == "torch.nn.init":
                return args[0] if args else (kwargs or {})["tensor"]
            return func(*args, **(kwargs or {}))

    with torch.device("meta"), WithoutValues():
        return family.build(config, implementation)
