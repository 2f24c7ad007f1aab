"""Triton's interpreter with less repeated work: what a kernel computes is the same, in a fraction of the time.

For every launch, and for every call of a helper inside a kernel, the interpreter lists all members of
``triton.language`` and replaces the builtins among them. Here they are replaced once, for good: no kernel is compiled
in a process that interprets. The parts of types are worked out once for a shape (quick_types.py); operators, loads,
stores, casts and products go to the arrays directly where conversion and broadcasting change nothing
(quick_operations.py, quick_access.py, quick_functions.py), and launches read signatures and sources once
(quick_launch.py). Sums and products of integers are computed once: the interpreter computes them a second time in 64
bits, for an assertion that it leaves out unless a kernel is debugged. A reduction by a function of the kernel combines
the halves of a block until one slice is left, as the threads of a device do, instead of one number after the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import quick_access
import quick_functions
import quick_launch
import quick_operations
import quick_types
import triton.language as tl
from quick_types import new_tensor
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter

_broadcast = TritonSemantic.broadcast_impl_value
reduce_numbers = interpreter.ReduceOps.generic_reduce
_convert_operands = TritonSemantic.binary_op_type_checking_impl
_semantic = TritonSemantic(interpreter.interpreter_builder)


def _without_semantic(member: Callable[..., Any]) -> Callable[..., Any]:
    def builtin(*args: Any, **kwargs: Any) -> Any:
        kwargs["_semantic"] = _semantic
        return member(*args, **kwargs)

    return builtin


def _builtins(owner: Any) -> dict[str, Callable[..., Any]]:
    members = inspect.getmembers(owner)
    return {
        name: _without_semantic(getattr(member, "__wrapped__", member))
        for name, member in members
        if tl.core.is_builtin(member)
    }


def _quick(owner: Any, members: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return what replaces builtins of an owner where there is a quicker way."""
    if owner is tl.tensor:
        access, functions = quick_access.quick_members(members), quick_functions.quick_members(members)
        return quick_operations.quick_operators(members) | access | functions
    if owner is tl.math:
        return quick_functions.quick_math(members)
    if owner is tl or owner is tl.core:  # jit functions of Triton's own call those of the second
        quick = quick_access.quick_functions(members) | quick_operations.quick_extremes(members)
        quick |= {"full": quick_functions.quick_full(members["full"])}
        return quick | (quick_functions.quick_functions(members) if owner is tl else {})
    return {}


def _replace_language() -> None:
    """Replace the builtins of ``triton.language``, and what else the interpreter replaces, until the process ends."""
    scope = interpreter._LangPatchScope()
    replaced = [
        (owner, _builtins(owner)) for owner in (tl, tl.core, tl.math, tl.core.tensor_descriptor_base, tl.tensor)
    ]
    for owner, members in replaced:
        for name, member in (members | _quick(owner, members)).items():
            setattr(owner, name, member)
    for name, member in quick_functions.quick_reductions().items():
        setattr(tl, name, member)
    interpreter._patch_lang_tensor(tl.tensor, scope)
    for module in (tl, tl.core):
        interpreter._patch_lang_core(module, scope)


def _broadcast_unless_equal(self: Any, lhs: Any, rhs: Any) -> Any:
    is_equal = lhs.type.is_block() and rhs.type.is_block() and lhs.type.shape is rhs.type.shape
    return (lhs, rhs) if is_equal else _broadcast(self, lhs, rhs)


def _convert_unless_equal(
    self: Any, lhs: Any, rhs: Any, pointer: bool = False, other: bool = False, check: bool = True, divide: bool = False
) -> tuple[Any, Any]:
    if not divide and type(lhs) is type(rhs) is tl.tensor and lhs.dtype is rhs.dtype and not lhs.dtype.is_ptr():
        return self.broadcast_impl_value(lhs, rhs)
    return _convert_operands(self, lhs, rhs, pointer, other, check, divide)


def _to_tensor(self: Any, values: Any, dtype: Any) -> Any:
    return new_tensor(np.asarray(values, quick_types.find_numpy_dtype(dtype)), dtype)


def _like(value: Any, example: Any) -> Any:
    if type(value) is tl.tensor and value.type is example.type:
        return value
    data = value.handle.data if isinstance(value, tl.tensor) else np.full(example.handle.data.shape, value)
    return new_tensor(data.astype(example.handle.data.dtype, copy=False), example.dtype)


def _reduce_halves(self: Any, arguments: tuple[Any, ...]) -> list[Any]:
    arguments, axis = self.unravel(arguments, self.axis)
    parts = [new_tensor(np.moveaxis(each.handle.data, axis, 0), each.dtype) for each in arguments]
    while (size := parts[0].handle.data.shape[0]) > 1:
        halves = (slice(size // 2), slice(size // 2, None))
        first, second = ([new_tensor(each.handle.data[half], each.dtype) for each in parts] for half in halves)
        combined = self.combine_fn.fn(*first, *second)
        values = combined if isinstance(combined, tuple) else (combined,)
        parts = [_like(value, example) for value, example in zip(values, first, strict=True)]
    shape = list(arguments[0].handle.data.shape)
    shape[axis : axis + 1] = [1] if self.keep_dims else []
    return [self.to_tensor(each.handle.data.reshape(shape), each.dtype) for each in parts]


def speed_up() -> None:
    """Speed up the interpreter in this process; once is enough."""
    tl.block_type.__init__ = quick_types.init_block_type
    tl.block_type.with_element_ty = lambda self, element_ty: quick_types.find_block_type(element_ty, self.shape)
    interpreter.InterpreterBuilder.get_block_ty = lambda _, kind, shape: quick_types.find_block_type(kind, shape)
    tl.dtype.__eq__ = quick_types.are_equal_dtypes
    tl.core._unwrap_if_constexpr = quick_types.unwrap
    tl.tensor.__init__ = quick_types.init_tensor
    interpreter.TensorHandle.__init__ = quick_types.init_handle
    interpreter.TensorHandle.attr, interpreter.TensorHandle.set_attr = {}, quick_types.set_attribute
    interpreter._validate_np_data_size = quick_types.fits
    interpreter._get_np_dtype = quick_types.find_numpy_dtype
    TritonSemantic.to_tensor = quick_functions.quick_constant(TritonSemantic.to_tensor)
    TritonSemantic.broadcast_impl_value = _broadcast_unless_equal
    TritonSemantic.binary_op_type_checking_impl = _convert_unless_equal
    TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None  # its assertion needs ``debug``
    interpreter.InterpreterBuilder.create_masked_load = quick_operations.load
    interpreter.InterpreterBuilder.create_masked_store = quick_operations.store
    interpreter.InterpreterBuilder.cast_impl = quick_operations.cast
    interpreter._convert_float = quick_operations.convert_float
    interpreter.ReduceOps.generic_reduce = _reduce_halves
    interpreter.ReduceScanOpInterface.to_tensor = _to_tensor
    _replace_language()
    interpreter._patch_lang = lambda _: interpreter._LangPatchScope()  # the next launch finds all replaced
    interpreter.FunctionRewriter.rewrite_ast = quick_launch.quick_rewriter(interpreter.FunctionRewriter.rewrite_ast)
    interpreter.InterpretedFunction.__call__ = quick_launch.call
    interpreter.GridExecutor.__init__ = quick_launch.init_launch
    interpreter.GridExecutor.__call__ = quick_launch.quick_launcher(interpreter.GridExecutor.__call__)
