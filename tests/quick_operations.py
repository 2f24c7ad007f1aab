"""Operators, loads, stores and casts of Triton's interpreter, straight on the arrays where nothing else is needed.

The general way converts, splats and broadcasts both operands before NumPy sees them, which does the same by itself.
Anything out of the ordinary (operands of two dtypes, numbers out of range, bfloat16) goes the general way.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from quick_types import (
    ANY,
    FLOATS,
    INTEGERS,
    SCALAR_SHAPE,
    UNSIGNED,
    broadcast,
    find_numpy_dtype,
    find_type,
    new_handle,
    tensor_of,
    type_like,
)
from triton.runtime import interpreter

General = Callable[..., Any]

_SHIFTED = INTEGERS | UNSIGNED
_LOGICAL = {id(tl.int1): np.bool_, **_SHIFTED}
_LARGEST = float(np.finfo(np.float32).max)
_ORDINARY = {np.int32: range(-(2**31), 2**31), np.int64: range(-(2**63), 2**63), np.uint32: range(2**32)}
_NUMBERS: dict[tuple[Any, type, Any], Any] = {}

general_convert = interpreter._convert_float


def _dtype_of_both(first: Any, second: Any) -> Any:
    """Return the dtype in which two operands are combined, or None where there is more to look at."""
    if first is second:
        return first
    return tl.int64 if id(first) in INTEGERS and id(second) in INTEGERS else None


def number_of(value: Any, kind: Any) -> Any:
    """Return a number in the dtype of the other operand, or None where the general way has more to look at."""
    if type(value) is not int and type(value) is not float:
        return None
    key = kind, type(value), value
    number = _NUMBERS.get(key) if value or type(value) is int else None  # 0.0 and -0.0 would be one key
    if number is None:
        number = _number_of(value, kind)
        if number is not None and value == value:  # noqa: PLR0124 - not NaN, which is another key each time
            _NUMBERS[key] = number
    return number


def _number_of(value: Any, kind: Any) -> Any:
    if type(value) is int and kind in _ORDINARY:
        return kind(value) if value in _ORDINARY[kind] else None
    if kind in {np.float32, np.float64}:
        return kind(value) if abs(value) <= _LARGEST or not math.isfinite(value) else None
    return None


def _operator(general: General, operation: General, kinds: dict[int, Any], result: Any = None) -> General:
    """Return an operator on two operands of some dtypes; ``result`` is a dtype, or None for that of both."""
    known: dict[tuple[int, int, int, int], Any] = {}  # by the shapes and dtypes of both

    def look_up(first: Any, second: Any) -> Any:
        dtype, sizes = _dtype_of_both(first.dtype, second.dtype), broadcast(first.shape, second.shape)
        if dtype is None or sizes is None:
            return None
        made = dtype if result is None else result
        return dtype, find_type(made, sizes) if sizes else made

    def quick(self: Any, other: Any) -> Any:
        if type(other) is tl.constexpr:
            other = other.value
        kind = kinds.get(id(self.dtype))
        if kind is None:
            return general(self, other)
        if type(other) is tl.tensor:
            key = id(self.shape), id(self.dtype), id(other.shape), id(other.dtype)
            found = known.get(key)
            if found is None:
                found = look_up(self, other)
                if found is None:
                    return general(self, other)
                known[key] = found
            return tensor_of(operation(self.handle.data, other.handle.data), *found)
        number = number_of(other, kind)
        if number is None:
            return general(self, other)
        made = self.type if result is None else type_like(result, self.shape)
        return tensor_of(operation(self.handle.data, number), self.dtype, made)

    return quick


def _adder(general: General) -> General:
    quick = _operator(general, np.add, ANY)

    def add(self: Any, other: Any) -> Any:
        if type(self.dtype) is not tl.pointer_type:
            return quick(self, other)
        if type(other) is tl.constexpr:
            other = other.value
        width = max(1, self.dtype.element_ty.primitive_bitwidth // 8)
        if type(other) is int and -(2**31) <= other < 2**31:
            return tensor_of(self.handle.data + np.uint64(width * other % 2**64), self.handle.dtype, self.type)
        if type(other) is not tl.tensor or id(other.dtype) not in INTEGERS:
            return general(self, other)
        made = self.type
        if self.shape is not other.shape and other.shape is not SCALAR_SHAPE:
            sizes = broadcast(self.shape, other.shape)
            if sizes is None:
                return general(self, other)
            made = find_type(self.dtype, sizes)
        data = self.handle.data + (other.handle.data * np.int64(width)).view(np.uint64)
        return tensor_of(data, self.handle.dtype, made)

    return add


def _quotient(first: Any, second: Any) -> np.ndarray:
    """Divide integers as Triton does, towards zero."""
    if first.size == second.size == 1 and first.ndim < 2 > second.ndim:
        dividend, divisor = first.item(), second.item()
        if dividend >= 0 and divisor > 0:
            return np.array([dividend // divisor], np.promote_types(first.dtype, second.dtype))
    return (first - np.fmod(first, second)) // second


def _negator(general: General) -> General:
    def negate(self: Any) -> Any:
        kind = ANY.get(id(self.dtype))
        return general(self) if kind is None else tensor_of(kind(0) - self.handle.data, self.dtype, self.type)

    return negate


def _swapped(operation: General) -> General:
    return lambda first, second: operation(second, first)


def quick_operators(general: dict[str, General]) -> dict[str, General]:
    """Return operators of ``tl.tensor`` for the general ones, by name, where there are quicker ones."""
    rows: list[tuple[str, General, dict[int, Any]]] = [
        ("__radd__", _swapped(np.add), ANY),
        ("__sub__", np.subtract, ANY),
        ("__rsub__", _swapped(np.subtract), ANY),
        ("__mul__", np.multiply, ANY),
        ("__rmul__", _swapped(np.multiply), ANY),
        ("__truediv__", np.divide, FLOATS),
        ("__rtruediv__", _swapped(np.divide), FLOATS),
        ("__floordiv__", _quotient, INTEGERS),
        ("__rfloordiv__", _swapped(_quotient), INTEGERS),
        ("__mod__", np.fmod, INTEGERS),
        ("__rmod__", _swapped(np.fmod), INTEGERS),
        ("__and__", np.bitwise_and, _LOGICAL),
        ("__or__", np.bitwise_or, _LOGICAL),
        ("__xor__", np.bitwise_xor, _SHIFTED),
        ("__lshift__", np.left_shift, _SHIFTED),
        ("__rshift__", np.right_shift, _SHIFTED),
    ]
    comparisons = {"lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}
    comparisons |= {"eq": np.equal, "ne": np.not_equal}
    quick = {name: _operator(general[name], operation, kinds) for name, operation, kinds in rows}
    for name, operation in comparisons.items():
        quick[f"__{name}__"] = _operator(general[f"__{name}__"], operation, ANY, tl.int1)
    return quick | {"__add__": _adder(general["__add__"]), "__neg__": _negator(general["__neg__"])}


def quick_extremes(general: dict[str, General]) -> dict[str, General]:
    """Return ``maximum`` and ``minimum`` of two operands, by name."""
    operations = {"maximum": np.maximum, "minimum": np.minimum}
    kinds = FLOATS | INTEGERS
    found = {name: _operator(general[name], operation, kinds) for name, operation in operations.items()}
    return {name: _of_two(general[name], found[name]) for name in operations}


def _of_two(general: General, quick: General) -> General:
    def choose(x: Any, y: Any, **options: Any) -> Any:
        return general(x, y, **options) if options or type(x) is not tl.tensor else quick(x, y)

    return choose


# All addresses of the process but the first page, as one array: tensors of torch are aligned to their elements.
_FIRST = 4096
_bytes = (ctypes.c_byte * (2**47 - _FIRST)).from_address(_FIRST)
_views: dict[np.dtype[Any], tuple[np.ndarray, np.uint64, np.uint64]] = {}


def _memory(dtype: np.dtype[Any]) -> tuple[np.ndarray, np.uint64, np.uint64]:
    """Return all elements of a dtype, how far addresses are shifted to count them, and the first one's count."""
    if dtype not in _views:
        view = np.ndarray(((2**47 - _FIRST) // dtype.itemsize,), dtype, _bytes)  # type: ignore[arg-type]
        _views[dtype] = view, np.uint64(dtype.itemsize.bit_length() - 1), np.uint64(_FIRST // dtype.itemsize)
    return _views[dtype]


def _are_chosen(mask: Any) -> np.ndarray:
    return mask if isinstance(mask, np.ndarray) else mask.data  # descriptors pass an array


def read(addresses: np.ndarray, chosen: np.ndarray | None, dtype: np.dtype[Any], other: Any = 0) -> np.ndarray:
    """Return what memory holds at addresses that are chosen, and elsewhere a number or the numbers of an array."""
    memory, shift, first = _memory(dtype)
    index = ((addresses >> shift) - first).view(np.int64)
    if chosen is None or np.count_nonzero(chosen) == chosen.size:
        return memory[index]
    data = np.empty(index.shape, dtype)
    data[...] = other
    if chosen.shape != index.shape:
        chosen = np.broadcast_to(chosen, index.shape)
    data[chosen] = memory[index[chosen]]
    return data


def write(addresses: np.ndarray, value: np.ndarray, chosen: np.ndarray | None) -> None:
    """Write values to the addresses that are chosen."""
    memory, shift, first = _memory(value.dtype)
    index = ((addresses >> shift) - first).view(np.int64)
    if chosen is None or np.count_nonzero(chosen) == chosen.size:
        memory[index] = value
        return
    if chosen.shape != index.shape:
        chosen = np.broadcast_to(chosen, index.shape)
    memory[index[chosen]] = value[chosen]


def load(self: Any, pointers: Any, mask: Any, other: Any, *_: Any, **hints: Any) -> Any:
    """Stand for the builder's ``create_masked_load``."""
    element = pointers.get_element_ty()
    otherwise = 0 if other is None else other.data
    return new_handle(read(pointers.data, _are_chosen(mask), find_numpy_dtype(element), otherwise), element)


def store(self: Any, pointers: Any, value: Any, mask: Any, *_: Any) -> None:
    """Stand for the builder's ``create_masked_store``."""
    write(pointers.data, value.data, _are_chosen(mask))


def cast(self: Any, source: Any, kind: Any) -> Any:
    """Stand for the builder's ``cast_impl``."""
    given, wanted = source.dtype.scalar, kind.scalar
    if {given.name, wanted.name} == {"fp32", "bf16"}:
        data = interpreter._convert_float(source.data, given, wanted, None).view(find_numpy_dtype(wanted))
    else:
        data = source.data.astype(find_numpy_dtype(wanted))
    return new_handle(data, wanted)


def convert_float(values: np.ndarray, source: Any, wanted: Any, rounding: Any) -> np.ndarray:
    """Stand for ``_convert_float``: between float32 and bfloat16, bits are moved where no number is subnormal."""
    names = (source.name, wanted.name)
    if rounding is None and names == ("fp32", "bf16"):
        bits = np.ascontiguousarray(values).view(np.uint32)
        if not (((bits & 0x7FFFFFFF) - np.uint32(1)) < 0x7FFFFF).any():
            return (bits >> 16).astype(np.uint16)
    if rounding is None and names == ("bf16", "fp32"):
        short = np.ascontiguousarray(values).view(np.uint16)
        if not (((short & 0x7FFF) - np.uint16(1)) < 0x7F).any():
            return short.astype(np.uint32) << 16
    return general_convert(values, source, wanted, rounding)
