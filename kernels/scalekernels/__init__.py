"""Fused Triton kernels that need only torch and triton.

``import scalekernels`` imports neither. Each operation is a module, imported on first use:
``from scalekernels.attention import attention``, or ``scalekernels.AdamW``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from scalekernels.device import Unsupported, unavailable_reason

__all__ = ["OPERATIONS", "Unsupported", "unavailable_reason"]

# Every operation is the module of that name. Comparison, ahead-of-time compilation, the GPU checks and the command line
# all use this list, so it must be readable without importing torch.
OPERATIONS = ("attention", "cross_entropy", "norm", "optimizer", "rotary")

# Public names and their modules; ``attention`` and ``rotary`` are missing because those names are the modules' own.
_HOME = {
    "Unsupported": "device",
    "unavailable_reason": "device",
    "linear_cross_entropy": "cross_entropy",
    "rms_norm": "norm",
    "layer_norm": "norm",
    **dict.fromkeys(("AdamW", "Adam", "SGD", "Adagrad", "RMSprop", "Lion"), "optimizer"),
}


def __getattr__(name: str) -> Any:
    """Import an operation's module, or the module of a public name, on first use."""
    if name in OPERATIONS:
        return import_module(f"scalekernels.{name}")
    if name in _HOME:
        return getattr(import_module(f"scalekernels.{_HOME[name]}"), name)
    raise AttributeError(f"module 'scalekernels' has no attribute {name!r}; known: {', '.join((*OPERATIONS, *_HOME))}")
