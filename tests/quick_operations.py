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
from quick_types import SCALAR_SHAPE, find_block_type, find_numpy_dtype, find_type
from triton.runtime import interpreter

_FLOATS = {id(tl.float32): np.float32, id(tl.float64): np.float64}
_INTEGERS = {id(tl.int32): np.int32, id(tl.int64): np.int64}
_ANY = _FLOATS | _INTEGERS | {id(tl.float16): np.float16}
_LOGICAL = {id(tl.int1): np.bool_, **_INTEGERS}
_LARGEST = float(np.finfo(np.float32).max)
_ORDINARY = {np.int32: range(-(2**31), 2**31), np.int64: range(-(2**63), 2**63)}

_make_handle = interpreter.TensorHandle.__new__
general_convert = interpreter._convert_float


def new_handle(data: np.ndarray, dtype: Any) -> Any:
    """Return the interpreter's value of an array."""
    handle = _make_handle(interpreter.TensorHandle)
    handle.data, handle.dtype, handle.attr = data, dtype, {}
    return handle


def new_tensor(data: np.ndarray, dtype: Any) -> Any:
    """Return an array as a tensor of a kernel; one without dimensions is a scalar, which holds an array of one."""
    if data.ndim:
        return tl.tensor(new_handle(data, dtype), find_type(dtype, data.shape))
    return tl.tensor(new_handle(data.reshape(1), dtype), dtype)


def _type_of_both(first: Any, second: Any, dtype: Any, data: np.ndarray) -> Any:
    if first.shape is second.shape or second.shape is SCALAR_SHAPE:
        made = first.type
    else:
        made = second.type if first.shape is SCALAR_SHAPE else find_type(dtype, data.shape)
    return made if made.scalar is dtype else _with_dtype(made, dtype)


def _with_dtype(made: Any, dtype: Any) -> Any:
    return find_block_type(dtype, made.shape) if made.is_block() else dtype


def _dtype_of_both(first: Any, second: Any) -> Any:
    """Return the dtype in which two operands are combined, or None where there is more to look at."""
    if first is second:
        return first
    return tl.int64 if id(first) in _INTEGERS and id(second) in _INTEGERS else None


def number_of(value: Any, kind: Any) -> Any:
    """Return a number in the dtype of the other operand, or None where the general way has more to look at."""
    if type(value) is int and kind in _ORDINARY:
        return kind(value) if value in _ORDINARY[kind] else None
    if type(value) in {int, float} and kind in {np.float32, np.float64}:
        return kind(value) if abs(value) <= _LARGEST or math.isinf(value) else None
    return None


def _differ_in_rank(first: Any, second: Any) -> bool:
    return first.type.is_block() and second.type.is_block() and first.handle.data.ndim != second.handle.data.ndim


def _operator(general: Callable[..., Any], operation: Callable[..., Any], kinds: dict[int, Any], result: Any) -> Any:
    """Return an operator on two operands of some dtypes; ``result`` is a dtype, or None for that of both."""

    def quick(self: Any, other: Any) -> Any:
        kind = kinds.get(id(self.dtype))
        if kind is None:
            return general(self, other)
        if type(other) is tl.tensor:
            dtype = _dtype_of_both(self.dtype, other.dtype)
            if dtype is None or _differ_in_rank(self, other):
                return general(self, other)
            data = operation(self.handle.data, other.handle.data)
            made = _type_of_both(self, other, dtype, data)
        else:
            number = number_of(other.value if type(other) is tl.constexpr else other, kind)
            if number is None:
                return general(self, other)
            data, made, dtype = operation(self.handle.data, number), self.type, self.dtype
        return tl.tensor(new_handle(data, dtype), made if result is None else _with_dtype(made, result))

    return quick


def _adder(general: Callable[..., Any]) -> Callable[..., Any]:
    quick = _operator(general, np.add, _ANY, None)

    def add(self: Any, other: Any) -> Any:
        if type(self.dtype) is not tl.pointer_type:
            return quick(self, other)
        if type(other) is not tl.tensor or id(other.dtype) not in _INTEGERS or _differ_in_rank(self, other):
            return general(self, other)
        width = max(1, self.dtype.element_ty.primitive_bitwidth // 8)
        data = self.handle.data + width * other.handle.data.astype(np.uint64)
        is_like_self = self.shape is other.shape or other.shape is SCALAR_SHAPE
        made = self.type if is_like_self else find_type(self.dtype, data.shape)
        return tl.tensor(new_handle(data, self.handle.dtype), made)

    return add


def quick_operators(general: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return operators of ``tl.tensor`` for the general ones, by name, where there are quicker ones."""
    rows: list[tuple[str, Callable[..., Any], dict[int, Any], Any]] = [
        ("__radd__", lambda a, b: np.add(b, a), _ANY, None),
        ("__sub__", np.subtract, _ANY, None),
        ("__rsub__", lambda a, b: np.subtract(b, a), _ANY, None),
        ("__mul__", np.multiply, _ANY, None),
        ("__rmul__", lambda a, b: np.multiply(b, a), _ANY, None),
        ("__truediv__", np.divide, _FLOATS, None),
        ("__rtruediv__", lambda a, b: np.divide(b, a), _FLOATS, None),
        ("__and__", np.bitwise_and, _LOGICAL, None),
        ("__or__", np.bitwise_or, _LOGICAL, None),
        ("__lt__", np.less, _ANY, tl.int1),
        ("__le__", np.less_equal, _ANY, tl.int1),
        ("__gt__", np.greater, _ANY, tl.int1),
        ("__ge__", np.greater_equal, _ANY, tl.int1),
        ("__eq__", np.equal, _ANY, tl.int1),
        ("__ne__", np.not_equal, _ANY, tl.int1),
    ]
    return {"__add__": _adder(general["__add__"])} | {
        name: _operator(general[name], operation, kinds, result) for name, operation, kinds, result in rows
    }


# All addresses of the process but the first page, as one array: tensors of torch are aligned to their elements.
_FIRST = 4096
_bytes = (ctypes.c_byte * (2**47 - _FIRST)).from_address(_FIRST)
_views: dict[np.dtype[Any], np.ndarray] = {}


def _memory(dtype: np.dtype[Any]) -> np.ndarray:
    if dtype not in _views:
        _views[dtype] = np.ndarray(((2**47 - _FIRST) // dtype.itemsize,), dtype, _bytes)  # type: ignore[arg-type]
    return _views[dtype]


def _index(addresses: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return (addresses - np.uint64(_FIRST)).view(np.int64) // dtype.itemsize


def _are_chosen(mask: Any) -> np.ndarray:
    return mask if isinstance(mask, np.ndarray) else mask.data  # descriptors pass an array


def load(self: Any, pointers: Any, mask: Any, other: Any, *_: Any, **hints: Any) -> Any:
    """Stand for the builder's ``create_masked_load``."""
    element, chosen = pointers.get_element_ty(), _are_chosen(mask)
    dtype = find_numpy_dtype(element)
    memory, index = _memory(dtype), _index(pointers.data, dtype)
    if chosen.all():
        return new_handle(memory[index], element)
    data = np.zeros(index.shape, dtype) if other is None else np.array(other.data, dtype)
    data[chosen] = memory[index[chosen]]
    return new_handle(data, element)


def store(self: Any, pointers: Any, value: Any, mask: Any, *_: Any) -> None:
    """Stand for the builder's ``create_masked_store``."""
    memory, index, chosen = _memory(value.data.dtype), _index(pointers.data, value.data.dtype), _are_chosen(mask)
    if chosen.all():
        memory[index] = value.data
    else:
        memory[index[chosen]] = value.data[chosen]


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
