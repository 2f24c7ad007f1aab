"""Functions of ``triton.language`` that make, convert, multiply and reduce blocks, straight on the arrays.

Anything out of the ordinary (other dtypes, options, shapes that do not fit) goes the interpreter's general way.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from quick_operations import cast as cast_handle
from quick_types import (
    ANY,
    FLOATS,
    INTEGERS,
    find_numpy_dtype,
    find_type,
    new_tensor,
    shared,
    tensor_of,
    type_like,
    unwrap,
)

General = Callable[..., Any]

_NUMBERS = (tl.int32, tl.int64, tl.float32, tl.float64)
# What is converted in one step, by the identities of both dtypes.
_CONVERTED = {(id(a), id(b)) for a in _NUMBERS for b in _NUMBERS}
_CONVERTED |= {(id(a), id(b)) for a in (tl.float16, tl.bfloat16) for b in (a, tl.float32)}
_CONVERTED |= {(id(tl.float32), id(b)) for b in (tl.float16, tl.bfloat16)}
_CONVERTED |= {(id(tl.int1), id(b)) for b in (tl.int32, tl.float32)} | {(id(tl.int32), id(tl.uint32))}
_ranges: dict[tuple[int, int], Any] = {}
_filled: dict[tuple[Any, ...], Any] = {}
_constants: dict[tuple[type, Any], tuple[np.ndarray, Any]] = {}


def _converter(general: General) -> General:
    def convert(value: Any, dtype: Any, **options: Any) -> Any:
        dtype = dtype.value if type(dtype) is tl.constexpr else dtype
        if options or type(value) is not tl.tensor:
            return general(value, dtype, **options)
        given = value.dtype
        if given is dtype:
            return value
        if (id(given), id(dtype)) in _CONVERTED:
            return tensor_of(cast_handle(None, value.handle, dtype).data, dtype, type_like(dtype, value.shape))
        if type(value.type) is tl.dtype and given is tl.int64 and type(dtype) is tl.pointer_type:
            return tensor_of(value.handle.data.view(np.uint64), dtype, dtype)
        return general(value, dtype)

    return convert


def _counter(general: General) -> General:
    def arange(start: Any, end: Any) -> Any:
        key = unwrap(start), unwrap(end)
        if key not in _ranges:
            made = general(*key)
            _ranges[key] = shared(made.handle.data), made.type
        data, kind = _ranges[key]
        return tensor_of(data, tl.int32, kind)

    return arange


def quick_full(general: General) -> General:
    """Return what makes a block of one number."""

    def full(shape: Any, value: Any, dtype: Any, **options: Any) -> Any:
        number, kind = unwrap(value), unwrap(dtype)
        sizes = tuple([unwrap(size) for size in shape]) if isinstance(shape, list | tuple | tl.tuple) else ()
        if options or id(kind) not in ANY or type(number) not in {int, float} or not sizes:
            return general(shape, value, dtype, **options)
        key = sizes, type(number), number, kind.name
        if key not in _filled:
            made = general(shape, value, dtype)
            if number != number:  # noqa: PLR0124 - NaN, which is another key each time
                return made
            _filled[key] = shared(made.handle.data), made.type
        data, made_type = _filled[key]
        return tensor_of(data, kind, made_type)

    return full


def _multiplier(general: General) -> General:
    """Two blocks of rows and columns, with a sum to add to or without."""

    def dot(input: Any, other: Any, acc: Any = None, input_precision: Any = None, **options: Any) -> Any:  # noqa: A002
        general_way = (input, other, acc), {"input_precision": input_precision, **options}
        first, second = input.handle.data, other.handle.data
        is_plain = input.dtype is other.dtype and (input.dtype is tl.float32 or input.dtype is tl.float16)
        if not is_plain or options or unwrap(input_precision) != "ieee":
            return general(*general_way[0], **general_way[1])
        if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[0]:
            return general(*general_way[0], **general_way[1])
        sizes = first.shape[0], second.shape[1]
        if acc is not None and (type(acc) is not tl.tensor or acc.dtype is not tl.float32 or _sizes(acc) != sizes):
            return general(*general_way[0], **general_way[1])
        data = np.matmul(first, second, dtype=np.float32)
        np.add(data, np.float32(0) if acc is None else acc.handle.data, out=data)
        return tensor_of(data, tl.float32, find_type(tl.float32, sizes))

    return dot


def _sizes(value: Any) -> tuple[int, ...]:
    return value.handle.data.shape


def _transposer(general: General) -> General:
    def trans(input: Any, *dims: Any) -> Any:  # noqa: A002 - triton's name
        if dims or type(input) is not tl.tensor or input.handle.data.ndim != 2 or id(input.dtype) not in ANY:
            return general(input, *dims)
        data = input.handle.data.T
        return tensor_of(data, input.handle.dtype, find_type(input.dtype, data.shape))

    return trans


def _unary(general: General, operation: General) -> General:
    def apply(x: Any) -> Any:
        if type(x) is not tl.tensor or id(x.dtype) not in FLOATS:
            return general(x)
        return tensor_of(operation(x.handle.data), x.dtype, x.type)

    return apply


def _is_reduced_quickly(value: Any, axis: Any) -> bool:
    if type(value) is not tl.tensor or (id(value.dtype) not in FLOATS and id(value.dtype) not in INTEGERS):
        return False
    return value.type.is_block() and (axis is None or (type(axis) is int and 0 <= axis < value.handle.data.ndim))


def _reducer(general: General, reduced: General) -> General:
    """Reduce a block of numbers along an axis or along all."""

    def reduce(input: Any, axis: Any = None, keep_dims: Any = False, **options: Any) -> Any:  # noqa: A002
        axis, keep_dims = unwrap(axis), unwrap(keep_dims)
        if options or type(keep_dims) is not bool or not _is_reduced_quickly(input, axis):
            return general(input, axis, keep_dims=keep_dims, **options)
        values = reduced(input.handle.data, axis=axis, keepdims=keep_dims)
        return new_tensor(np.asarray(values, find_numpy_dtype(input.dtype)), input.dtype)

    return reduce


def _largest(data: np.ndarray, axis: int | None, keepdims: bool) -> Any:
    """The largest that is a number, as ``numpy.nanmax`` finds it; that warns where there is none."""
    largest = np.fmax.reduce(data, axis=axis, keepdims=keepdims)
    return np.nanmax(data, axis=axis, keepdims=keepdims) if np.isnan(largest).any() else largest


def quick_constant(general: General) -> General:
    """Return what stands for ``TritonSemantic.to_tensor``, through which every assignment of a kernel goes."""

    def to_tensor(self: Any, x: Any, check_type: bool = True) -> Any:
        kind = type(x)
        if kind is tl.tensor:
            return x
        if kind is not int and kind is not float:
            return general(self, x, check_type)
        if (kind, x) not in _constants:
            made = general(self, x, check_type)
            if x != x:  # noqa: PLR0124 - NaN, which is another key each time
                return made
            _constants[kind, x] = shared(made.handle.data), made.dtype
        data, dtype = _constants[kind, x]
        return tensor_of(data, dtype, dtype)

    return to_tensor


def quick_functions(general: dict[str, General]) -> dict[str, General]:
    """Return functions of ``triton.language`` for the general ones, by name."""
    return {
        "arange": _counter(general["arange"]),
        "cast": _converter(general["cast"]),
        "dot": _multiplier(general["dot"]),
        "trans": _transposer(general["trans"]),
        **quick_math(general),
    }


def quick_math(general: dict[str, General]) -> dict[str, General]:
    """Return functions of one block of floats for the general ones, by name."""
    operations = {"exp": np.exp, "exp2": np.exp2, "log": np.log, "log2": np.log2, "sqrt": np.sqrt, "abs": np.abs}
    operations["rsqrt"] = lambda data: 1 / np.sqrt(data)
    return {name: _unary(general[name], operation) for name, operation in operations.items()}


def quick_reductions() -> dict[str, General]:
    """Return reductions of ``triton.language``, which are jit functions of their own there, by name."""
    return {"sum": _reducer(tl.sum, np.add.reduce), "max": _reducer(tl.max, _largest)}


def quick_members(general: dict[str, General]) -> dict[str, General]:
    """Return members of ``tl.tensor`` for the general ones, by name."""
    return {"to": _converter(general["to"])}
