"""Make the keys of Triton's cache independent of the order in which a process launches kernels.

Triton (3.6 and 3.7) mixes the constants of the functions that a kernel calls into its key only if these have a key
already: ``DependenciesFinder._update_hash`` reads ``used_global_vals`` before ``cache_key``, which fills it. A process
that has launched another kernel with a common function has another key, and compiles again what the cache on disk
holds. So a kernel's functions get their keys before it is launched, callees before callers.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

_SETTLED: dict[int, Any] = {}  # by id, as a function's hash is its key; holds them, so that no id is used twice


def settled(kernel: Any) -> Any:
    """Return a jit function, when the functions that it calls, and then itself, have their keys.

    That takes milliseconds the first time. An interpreted function, which has no key, is returned as it is.
    """
    if id(kernel) not in _SETTLED and hasattr(type(kernel), "cache_key"):
        _SETTLED[id(kernel)] = kernel
        for callee in _referenced(kernel.fn):
            settled(callee)
        _ = kernel.cache_key  # computed now, and kept
    return kernel


def _referenced(function: Any) -> Iterator[Any]:
    """Yield the jit functions that names in a function may refer to: globals, or attributes of modules among them."""
    names = function.__code__.co_names
    values = [function.__globals__.get(name) for name in names]
    for module in [value for value in values if isinstance(value, ModuleType)]:
        values += [getattr(module, name, None) for name in names]
    yield from (value for value in values if hasattr(type(value), "cache_key") and hasattr(value, "fn"))
