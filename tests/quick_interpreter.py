"""Triton's interpreter with less repeated work, which takes a third of its time off and more.

For every launch, and for every call of a helper inside a kernel, the interpreter lists all members of
``triton.language`` and replaces the builtins among them. Here the lists are made once, and inside a launch only what
is not replaced yet is replaced. The parts of types and the dtypes of NumPy are worked out once for a shape. Sums and
products of integers are computed once: the interpreter computes them a second time in 64 bits, for an assertion that
it leaves out unless a kernel is debugged. What a kernel computes is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

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
_NAMES: dict[tuple[str, tuple[int, ...]], str] = {}
_DTYPES: dict[str, Any] = {}
_SCALAR = (tl.constexpr(1), tl.tuple([]))
_make_block_type, _numpy_dtype = tl.block_type.__init__, interpreter._get_np_dtype
_broadcast = TritonSemantic.broadcast_impl_value


def _init_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    sizes = tuple(int(size.value if isinstance(size, tl.constexpr) else size) for size in shape)
    if sizes not in _SHAPES:
        _make_block_type(self, element_ty, shape)
        _SHAPES[sizes] = self.shape, self.numel
        _SIZES[id(self.shape)] = tl.constexpr(self.numel), tl.tuple([tl.constexpr(size) for size in self.shape])
    name = element_ty.name, sizes
    if name not in _NAMES:
        _make_block_type(self, element_ty, shape)
        _NAMES[name] = self.name
    self.element_ty, self.name = element_ty, _NAMES[name]
    self.shape, self.numel = _SHAPES[sizes]


def _init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - triton's name
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _SIZES[id(type.shape)] if type.is_block() else _SCALAR


def _broadcast_unless_equal(self: Any, lhs: Any, rhs: Any) -> Any:
    is_equal = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
    return (lhs, rhs) if is_equal else _broadcast(self, lhs, rhs)


def _find_numpy_dtype(kind: Any) -> Any:
    name = kind.scalar.name
    if name not in _DTYPES:
        _DTYPES[name] = _numpy_dtype(kind.scalar)
    return _DTYPES[name]


def speed_up() -> None:
    """Speed up the interpreter in this process; once is enough."""
    tl.block_type.__init__ = _init_block_type
    tl.tensor.__init__ = _init_tensor
    TritonSemantic.broadcast_impl_value = _broadcast_unless_equal
    interpreter._get_np_dtype = _find_numpy_dtype
    TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None  # its assertion needs ``debug``
    interpreter._LangPatchScope = _Scope
    interpreter._patch_builtin = _replace_builtins
    interpreter._patch_lang = _once(interpreter._patch_lang)
