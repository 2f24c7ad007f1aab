"""Loads, stores, selection and indexing of Triton's interpreter where shapes and dtypes agree already.

The general way converts its operands, splats numbers and broadcasts first. Anything out of the ordinary goes that way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import quick_operations
import triton.language as tl
from quick_operations import new_handle, number_of
from quick_types import SCALAR_SHAPE, find_numpy_dtype, find_type

_HINTS = {"eviction_policy", "cache_modifier"}  # they change no value
_ELEMENTS = {id(kind) for kind in (tl.float16, tl.bfloat16, tl.float32, tl.float64, tl.int32, tl.int64)}
_WHOLE = slice(None)

General = Callable[..., Any]


def _is_ordinary(pointer: Any, mask: Any, hints: dict[str, Any]) -> bool:
    """Return whether it is a block or a scalar of pointers to ordinary elements, with a mask of its shape if any."""
    return (
        type(pointer) is tl.tensor
        and type(pointer.dtype) is tl.pointer_type
        and id(pointer.dtype.element_ty) in _ELEMENTS
        and (mask is None or (type(mask) is tl.tensor and mask.shape is pointer.shape and mask.dtype is tl.int1))
        and hints.keys() <= _HINTS
    )


def _chosen(pointer: Any, mask: Any) -> Any:
    return np.ones(pointer.handle.data.shape, np.bool_) if mask is None else mask.handle


def _loader(general: General) -> General:
    def load(pointer: Any, mask: Any = None, other: Any = None, **hints: Any) -> Any:
        other = other.value if type(other) is tl.constexpr else other
        is_zero = other is None or (type(other) in {int, float} and other == 0)
        if not is_zero or not _is_ordinary(pointer, mask, hints):
            return general(pointer, mask, other, **hints)
        element = pointer.dtype.element_ty
        handle = quick_operations.load(None, pointer.handle, _chosen(pointer, mask), None)
        return tl.tensor(handle, find_type(element, handle.data.shape) if pointer.type.is_block() else element)

    return load


def _storer(general: General) -> General:
    def store(pointer: Any, value: Any, mask: Any = None, **hints: Any) -> Any:
        fits = type(value) is tl.tensor and value.shape is pointer.shape
        if not fits or not _is_ordinary(pointer, mask, hints) or value.dtype is not pointer.dtype.element_ty:
            return general(pointer, value, mask, **hints)
        return quick_operations.store(None, pointer.handle, value.handle, _chosen(pointer, mask))

    return store


def _selector(general: General) -> General:
    def where(condition: Any, first: Any, second: Any) -> Any:
        """``first`` is a tensor, ``second`` one of its dtype or a number; blocks have the condition's shape."""
        if type(condition) is not tl.tensor or condition.dtype is not tl.int1 or type(first) is not tl.tensor:
            return general(condition, first, second)
        shapes = (condition.shape, SCALAR_SHAPE) if condition.type.is_block() else (SCALAR_SHAPE,)
        other = _operand(second, first.dtype, shapes)
        if other is None or not any(first.shape is shape for shape in shapes):
            return general(condition, first, second)
        data = np.where(condition.handle.data, first.handle.data, other)
        made = find_type(first.dtype, data.shape) if condition.type.is_block() else first.dtype
        return tl.tensor(new_handle(data, first.dtype), made)

    return where


def _operand(value: Any, dtype: Any, shapes: tuple[Any, ...]) -> Any:
    """Return the array or number of an operand, or None where there is more to look at."""
    if id(dtype) not in _ELEMENTS or dtype is tl.bfloat16:
        return None
    if type(value) is tl.tensor:
        return value.handle.data if value.dtype is dtype and any(value.shape is shape for shape in shapes) else None
    return number_of(value.value if type(value) is tl.constexpr else value, find_numpy_dtype(dtype).type)


def _indexer(general: General) -> General:
    def item(self: Any, slices: Any) -> Any:
        is_plain = type(slices) is tuple and all(each is None or each == _WHOLE for each in slices)
        if not is_plain or not self.type.is_block():
            return general(self, slices)
        data = self.handle.data[slices]
        return tl.tensor(new_handle(data, self.handle.dtype), find_type(self.dtype, data.shape))

    return item


def quick_functions(general: dict[str, General]) -> dict[str, General]:
    """Return functions of ``triton.language`` for the general ones, by name."""
    return {"load": _loader(general["load"]), "store": _storer(general["store"]), "where": _selector(general["where"])}


def quick_members(general: dict[str, General]) -> dict[str, General]:
    """Return members of ``tl.tensor`` for the general ones, by name."""
    return {"__getitem__": _indexer(general["__getitem__"])}
