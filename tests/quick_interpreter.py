"""Triton's interpreter with less repeated work, which takes a third of its time off and more.

For every launch, and for every call of a helper inside a kernel, the interpreter lists all members of
``triton.language`` and replaces the builtins among them. Here the lists are made once, and inside a launch only what
is not replaced yet is replaced. The parts of types and the dtypes of NumPy are worked out once for a shape. Sums and
products of integers are computed once: the interpreter computes them a second time in 64 bits, for an assertion that
it leaves out unless a kernel is debugged. Operands of one type and shape need no conversion. A reduction by a function
of the kernel combines whole slices instead of single numbers, in the same order. What a kernel computes is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import triton.language as tl
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_replaced: set[ModuleType] = set()  # by the launch that is running


class _Scope(interpreter._LangPatchScope):  # type: ignore[misc]
    def restore(self) -> None:
        super().restore()
        _replaced.clear()


@cache
def _builtins(owner: Any) -> list[tuple[str, Any]]:
    """List the builtins of a module or class. The first call comes before any of them is replaced."""
    return [(name, member) for name, member in inspect.getmembers(owner) if tl.core.is_builtin(member)]


def _replace_builtins(owner: Any, builder: Any, scope: _Scope) -> None:
    for name, member in _builtins(owner):
        interpreter._patch_attr(owner, name, member, builder, scope)


@cache
def _languages(function: FunctionType) -> frozenset[ModuleType]:
    """Return the modules of ``triton.language`` that a kernel's source file imports."""
    values = [value for value in function.__globals__.values() if inspect.ismodule(value)]
    return frozenset(module for module in (tl, tl.core) if any(value is module for value in values))


def _once(replace: Callable[[FunctionType], _Scope]) -> Callable[[FunctionType], _Scope]:
    def replace_language(function: FunctionType) -> _Scope:
        languages = _languages(function)
        if languages and languages <= _replaced:  # a helper, called by a kernel
            return _Scope()
        scope = replace(function)
        _replaced.update(languages)
        return scope

    return replace_language


_SHAPES: dict[tuple[int, ...], tuple[Any, int]] = {}  # the shape of a block type and its size
_SIZES: dict[int, tuple[Any, Any]] = {}  # the size and shape of a tensor, by the identity of its type's
_SIZES_OF: dict[int, tuple[int, ...]] = {}  # the numbers in a shape of the two dicts above, by its identity
_BLOCK_TYPES: dict[tuple[int, str], Any] = {}  # by the identity of a shape and the name of a dtype
_NAMES: dict[tuple[str, tuple[int, ...]], str] = {}
_DTYPES: dict[str, Any] = {}
_SCALAR = (tl.constexpr(1), tl.tuple([]))
_make_block_type, _numpy_dtype = tl.block_type.__init__, interpreter._get_np_dtype
_broadcast = TritonSemantic.broadcast_impl_value
_reduce_numbers = interpreter.ReduceOps.generic_reduce
_unwrap_any = tl.core._unwrap_if_constexpr
_convert_operands = TritonSemantic.binary_op_type_checking_impl


def _init_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = _SIZES_OF.get(id(shape)) or tuple(int(tl.core._unwrap_if_constexpr(size)) for size in shape)
    if sizes not in _SHAPES:
        _make_block_type(self, element_ty, shape)
        _SHAPES[sizes] = self.shape, self.numel
        _SIZES[id(self.shape)] = tl.constexpr(self.numel), tl.tuple([tl.constexpr(size) for size in self.shape])
        _SIZES_OF[id(self.shape)] = _SIZES_OF[id(_SIZES[id(self.shape)][1])] = sizes
    name = element_ty.name, sizes
    if name not in _NAMES:
        _make_block_type(self, element_ty, shape)
        _NAMES[name] = self.name
    self.element_ty, self.name = element_ty, _NAMES[name]
    self.shape, self.numel = _SHAPES[sizes]


def _find_block_type(element_ty: Any, shape: Any) -> Any:
    key = id(shape), element_ty.name
    if id(shape) not in _SIZES_OF or element_ty.is_ptr():
        return tl.block_type(element_ty, shape)
    if key not in _BLOCK_TYPES:
        _BLOCK_TYPES[key] = tl.block_type(element_ty, shape)
    return _BLOCK_TYPES[key]


def _unwrap(value: Any) -> Any:
    kind = type(value)
    if kind is tl.tensor or kind is int:
        return value
    return value.value if kind is tl.constexpr else _unwrap_any(value)


def _init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - triton's name
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _SIZES[id(type.shape)] if type.is_block() else _SCALAR


def _broadcast_unless_equal(self: Any, lhs: Any, rhs: Any) -> Any:
    is_equal = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
    return (lhs, rhs) if is_equal else _broadcast(self, lhs, rhs)


def _convert_unless_equal(
    self: Any, lhs: Any, rhs: Any, pointer: bool = False, other: bool = False, check: bool = True, divide: bool = False
) -> tuple[Any, Any]:
    if not divide and type(lhs) is type(rhs) is tl.tensor and lhs.dtype is rhs.dtype and not lhs.dtype.is_ptr():
        return self.broadcast_impl_value(lhs, rhs)
    return _convert_operands(self, lhs, rhs, pointer, other, check, divide)


def _like(value: Any, example: Any) -> Any:
    data = value.handle.data if isinstance(value, tl.tensor) else np.full(example.handle.data.shape, value)
    stored = data.astype(example.handle.data.dtype, copy=False)
    return tl.tensor(interpreter.TensorHandle(stored, example.dtype), example.type)


def _reduce_slices(self: Any, arguments: tuple[Any, ...]) -> list[Any]:
    arguments, axis = self.unravel(arguments, self.axis)
    slices = [
        [self.to_tensor(part, each.dtype) for part in np.moveaxis(each.handle.data, axis, 0)] for each in arguments
    ]
    result = [parts[0] for parts in slices]
    for following in zip(*(parts[1:] for parts in slices), strict=True):
        combined = self.combine_fn.fn(*result, *following)
        values = combined if isinstance(combined, tuple) else (combined,)
        result = [_like(value, example) for value, example in zip(values, result, strict=True)]
    shape = list(arguments[0].handle.data.shape)
    shape[axis : axis + 1] = [1] if self.keep_dims else []
    return [self.to_tensor(each.handle.data.reshape(shape), each.dtype) for each in result]


def _find_numpy_dtype(kind: Any) -> Any:
    name = kind.scalar.name
    if name not in _DTYPES:
        _DTYPES[name] = _numpy_dtype(kind.scalar)
    return _DTYPES[name]


def speed_up() -> None:
    """Speed up the interpreter in this process; once is enough."""
    tl.block_type.__init__ = _init_block_type
    tl.block_type.with_element_ty = lambda self, element_ty: _find_block_type(element_ty, self.shape)
    interpreter.InterpreterBuilder.get_block_ty = lambda _, element_ty, shape: _find_block_type(element_ty, shape)
    tl.core._unwrap_if_constexpr = _unwrap
    tl.tensor.__init__ = _init_tensor
    TritonSemantic.broadcast_impl_value = _broadcast_unless_equal
    TritonSemantic.binary_op_type_checking_impl = _convert_unless_equal
    interpreter._get_np_dtype = _find_numpy_dtype
    TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None  # its assertion needs ``debug``
    interpreter.ReduceOps.generic_reduce = _reduce_slices
    interpreter._LangPatchScope = _Scope
    interpreter._patch_builtin = _replace_builtins
    interpreter._patch_lang = _once(interpreter._patch_lang)
