"""Loads, stores, selection and indexing of Triton's interpreter where shapes and dtypes agree already.

The general way converts its operands, splats numbers and broadcasts first. Anything out of the ordinary goes that way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from quick_operations import number_of, read, write
from quick_types import SCALAR_SHAPE, broadcast, find_numpy_dtype, find_type, tensor_of, type_like

_HINTS = {"eviction_policy", "cache_modifier"}  # they change no value
_ELEMENTS = {id(kind) for kind in (tl.float16, tl.bfloat16, tl.float32, tl.float64, tl.int32, tl.int64, tl.uint32)}
_WHOLE = slice(None)

General = Callable[..., Any]
_fitting: dict[tuple[int, int], bool] = {}  # whether a mask's shape is broadcast to that of pointers, by both


def _is_ordinary(pointer: Any, mask: Any, hints: dict[str, Any]) -> bool:
    """Return whether it is a block or a scalar of pointers to ordinary elements, with a mask that fits if any."""
    if type(pointer) is not tl.tensor or type(pointer.dtype) is not tl.pointer_type:
        return False
    if id(pointer.dtype.element_ty) not in _ELEMENTS or not hints.keys() <= _HINTS:
        return False
    if mask is None or (type(mask) is tl.tensor and mask.dtype is tl.int1 and mask.shape is pointer.shape):
        return True
    return type(mask) is tl.tensor and mask.dtype is tl.int1 and _fits(mask.shape, pointer.shape)


def _fits(shape: Any, wider: Any) -> bool:
    key = id(shape), id(wider)
    if key not in _fitting:
        sizes = broadcast(shape, wider)
        _fitting[key] = wider is not SCALAR_SHAPE and sizes == broadcast(wider)
    return _fitting[key]


def _chosen(mask: Any) -> Any:
    return None if mask is None else mask.handle.data


def _loader(general: General) -> General:
    def load(pointer: Any, mask: Any = None, other: Any = None, **hints: Any) -> Any:
        other = other.value if type(other) is tl.constexpr else other
        if not _is_ordinary(pointer, mask, hints):
            return general(pointer, mask, other, **hints)
        element = pointer.dtype.element_ty
        dtype, number = find_numpy_dtype(element), 0
        if other is not None and not (type(other) in {int, float} and other == 0):
            number = number_of(other, dtype.type) if element is tl.float32 and mask is not None else None
            if number is None:
                return general(pointer, mask, other, **hints)
        data = read(pointer.handle.data, _chosen(mask), dtype, number)
        return tensor_of(data, element, type_like(element, pointer.shape))

    return load


def _storer(general: General) -> General:
    def store(pointer: Any, value: Any, mask: Any = None, **hints: Any) -> Any:
        fits = type(value) is tl.tensor and value.shape is pointer.shape
        if not fits or not _is_ordinary(pointer, mask, hints) or value.dtype is not pointer.dtype.element_ty:
            return general(pointer, value, mask, **hints)
        return write(pointer.handle.data, value.handle.data, _chosen(mask))

    return store


def _selector(general: General) -> General:
    known: dict[tuple[int, ...], Any] = {}  # the type, by the shapes of the three and the dtype of the last two

    def where(condition: Any, first: Any, second: Any, **options: Any) -> Any:
        """Of the two values, one is a tensor, and the other one of its dtype or a number."""
        if options:
            return general(condition, first, second, **options)
        dtype = first.dtype if type(first) is tl.tensor else getattr(second, "dtype", None)
        if type(condition) is not tl.tensor or condition.dtype is not tl.int1 or dtype is None:
            return general(condition, first, second)
        one, other = _operand(first, dtype), _operand(second, dtype)
        if one is None or other is None:
            return general(condition, first, second)
        key = id(condition.shape), id(_shape(first)), id(_shape(second)), id(dtype)
        if key not in known:
            sizes = broadcast(condition.shape, _shape(first), _shape(second))
            if sizes is None:
                return general(condition, first, second)
            known[key] = find_type(dtype, sizes) if sizes else dtype
        return tensor_of(np.where(condition.handle.data, one, other), dtype, known[key])

    return where


def _shape(value: Any) -> Any:
    return value.shape if type(value) is tl.tensor else SCALAR_SHAPE


def _operand(value: Any, dtype: Any) -> Any:
    """Return the array or number of an operand, or None where there is more to look at."""
    if id(dtype) not in _ELEMENTS or dtype is tl.bfloat16:
        return None
    if type(value) is tl.tensor:
        return value.handle.data if value.dtype is dtype else None
    return number_of(value.value if type(value) is tl.constexpr else value, find_numpy_dtype(dtype).type)


def _indexer(general: General) -> General:
    def item(self: Any, slices: Any) -> Any:
        is_plain = type(slices) is tuple and all(each is None or each == _WHOLE for each in slices)
        if not is_plain or not self.type.is_block():
            return general(self, slices)
        data = self.handle.data[slices]
        return tensor_of(data, self.handle.dtype, find_type(self.dtype, data.shape))

    return item


def quick_functions(general: dict[str, General]) -> dict[str, General]:
    """Return functions of ``triton.language`` for the general ones, by name."""
    return {"load": _loader(general["load"]), "store": _storer(general["store"]), "where": _selector(general["where"])}


def quick_members(general: dict[str, General]) -> dict[str, General]:
    """Return members of ``tl.tensor`` for the general ones, by name."""
    return {"__getitem__": _indexer(general["__getitem__"])}
