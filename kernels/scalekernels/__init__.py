"""Fused Triton kernels, usable on their own with torch and triton alone.

Importing this package imports neither kernels nor triton; each operation is a module, imported when it is first asked
for: ``from scalekernels.attention import attention``, or ``scalekernels.AdamW``.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from scalekernels.device import unavailable_reason

__all__ = ["OPERATIONS", "unavailable_reason"]

# The modules that hold a kernel each; comparison, compilation ahead of time and the check on a GPU go through them.
OPERATIONS = ("attention", "cross_entropy", "norm", "optimizer", "rotary")

# Where the public names live. ``attention`` and ``rotary`` are not among them: those names are the modules'.
_HOME = {
    "linear_cross_entropy": "cross_entropy",
    "rms_norm": "norm",
    "layer_norm": "norm",
    **dict.fromkeys(("AdamW", "Adam", "SGD", "Adagrad", "RMSprop", "Lion"), "optimizer"),
}


def __getattr__(name: str) -> Any:
    """Import an operation's module, or the module of a public name, when it is first asked for."""
    if name in OPERATIONS:
        return import_module(f"scalekernels.{name}")
    if name in _HOME:
        return getattr(import_module(f"scalekernels.{_HOME[name]}"), name)
    raise AttributeError(f"module 'scalekernels' has no attribute {name!r}; known: {', '.join((*OPERATIONS, *_HOME))}")
