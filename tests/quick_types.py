"""Types and values of Triton's interpreter, made with less repeated work: their parts are worked out once for a shape.

Shapes are interned: two blocks of the same sizes have one and the same object as their ``shape``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_SHAPES: dict[tuple[int, ...], tuple[Any, int]] = {}  # the shape of a block type and its size
_SIZES: dict[int, tuple[Any, Any]] = {}  # the size and shape of a tensor, by the identity of its type's
_SIZES_OF: dict[int, tuple[int, ...]] = {}  # the numbers in a shape of the two dicts above, by its identity
_BLOCK_TYPES: dict[tuple[Any, ...], Any] = {}  # by the identity of a shape and what tells dtypes apart
_BROADCAST: dict[tuple[int, ...], tuple[int, ...] | None] = {}  # sizes, by the identities of shapes
_NAMES: dict[tuple[str, tuple[int, ...]], str] = {}
_DTYPES: dict[str, Any] = {}
SCALAR_SHAPE = tl.tuple([])
_SCALAR = (tl.constexpr(1), SCALAR_SHAPE)
_make_block_type, _numpy_dtype = tl.block_type.__init__, interpreter._get_np_dtype
_are_equal_dtypes = tl.dtype.__eq__
_unwrap_any = tl.core._unwrap_if_constexpr
_make_tensor, _make_handle = tl.tensor.__new__, interpreter.TensorHandle.__new__
# Dtypes, of which there is one object each: what is known of two of them can be looked up by their identity.
FLOATS = {id(tl.float32): np.float32, id(tl.float64): np.float64}
INTEGERS = {id(tl.int32): np.int32, id(tl.int64): np.int64}
UNSIGNED = {id(tl.uint32): np.uint32}
ANY = FLOATS | INTEGERS | UNSIGNED | {id(tl.float16): np.float16}


def init_block_type(self: Any, element_ty: Any, shape: Any) -> None:
    """Stand for ``tl.block_type.__init__``."""
    sizes = _SIZES_OF.get(id(shape)) or tuple([int(_unwrap_any(size)) for size in shape])
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


def find_block_type(element_ty: Any, shape: Any) -> Any:
    """Return the block type of a dtype and the shape of a type; the same one each time."""
    if type(element_ty) is tl.dtype:
        key: tuple[Any, ...] = id(shape), element_ty.name
    elif type(element_ty) is tl.pointer_type and type(element_ty.element_ty) is tl.dtype:
        key = id(shape), element_ty.element_ty.name, element_ty.address_space, element_ty.const
    else:
        return tl.block_type(element_ty, shape)
    if id(shape) not in _SIZES_OF:
        return tl.block_type(element_ty, shape)
    if key not in _BLOCK_TYPES:
        _BLOCK_TYPES[key] = tl.block_type(element_ty, shape)
    return _BLOCK_TYPES[key]


def find_type(element_ty: Any, sizes: tuple[int, ...]) -> Any:
    """Return the block type of a dtype and the shape of an array."""
    return find_block_type(element_ty, _SHAPES[sizes][0] if sizes in _SHAPES else list(sizes))


def type_like(dtype: Any, shape: Any) -> Any:
    """Return the type of a dtype and the shape of a tensor, which is empty for a scalar."""
    return dtype if shape is SCALAR_SHAPE else find_block_type(dtype, shape)


def broadcast(*shapes: Any) -> tuple[int, ...] | None:
    """Return the sizes to which shapes of tensors are broadcast; None where blocks differ in rank or do not fit."""
    key = tuple(map(id, shapes))
    if key not in _BROADCAST:
        blocks = [_SIZES_OF[id(shape)] for shape in shapes if shape is not SCALAR_SHAPE]
        try:
            _BROADCAST[key] = np.broadcast_shapes(*blocks) if len({len(sizes) for sizes in blocks}) < 2 else None
        except ValueError:
            _BROADCAST[key] = None
    return _BROADCAST[key]


def unwrap(value: Any) -> Any:
    """Stand for ``tl.core._unwrap_if_constexpr``."""
    kind = type(value)
    if kind is tl.tensor or kind is int:
        return value
    return value.value if kind is tl.constexpr else _unwrap_any(value)


def are_equal_dtypes(self: Any, other: Any) -> bool:
    """Stand for ``tl.dtype.__eq__``: nearly always the two are one."""
    return self is other or _are_equal_dtypes(self, other)


def init_tensor(self: Any, handle: Any, type: Any) -> None:  # noqa: A002 - triton's name
    """Stand for ``tl.tensor.__init__``."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _SIZES[id(type.shape)] if type.is_block() else _SCALAR


def init_handle(self: Any, data: Any, dtype: Any, attr: Any = None) -> None:
    """Stand for the ``__init__`` of the interpreter's values: arrays, which are no wider than their dtype."""
    self.data, self.dtype = data, dtype
    if attr is not None:
        self.attr = attr
    if not fits(data, dtype):
        self.__post_init__()  # raises


def set_attribute(self: Any, key: str, value: Any) -> None:
    """Stand for ``set_attr`` of the interpreter's values, of which those without attributes share one empty dict."""
    self.attr = {**self.attr, key: value}


def new_handle(data: np.ndarray, dtype: Any) -> Any:
    """Return the interpreter's value of an array."""
    handle = _make_handle(interpreter.TensorHandle)
    handle.data, handle.dtype = data, dtype
    return handle


def tensor_of(data: np.ndarray, dtype: Any, made: Any) -> Any:
    """Return a tensor of a kernel: an array, the dtype that the interpreter notes for it, and the tensor's type."""
    handle, tensor = _make_handle(interpreter.TensorHandle), _make_tensor(tl.tensor)
    handle.data, handle.dtype = data, dtype
    tensor.handle, tensor.type = handle, made
    if type(made) is tl.block_type:
        tensor.dtype = made.element_ty
        tensor.numel, tensor.shape = _SIZES[id(made.shape)]
    else:
        tensor.dtype = made
        tensor.numel, tensor.shape = _SCALAR
    return tensor


def new_tensor(data: np.ndarray, dtype: Any) -> Any:
    """Return an array as a tensor of a kernel; one without dimensions is a scalar, which holds an array of one."""
    if data.ndim:
        return tensor_of(data, dtype, find_type(dtype, data.shape))
    return tensor_of(data.reshape(1), dtype, dtype)


def shared(data: np.ndarray) -> np.ndarray:
    """Return an array that several tensors may hold: nothing can write to it."""
    data.flags.writeable = False
    return data


def fits(data: Any, dtype: Any) -> bool:
    """Stand for the interpreter's ``_validate_np_data_size``."""
    return data.itemsize == 1 or dtype.is_ptr() or data.itemsize * 8 <= dtype.primitive_bitwidth


def find_numpy_dtype(kind: Any) -> Any:
    """Stand for the interpreter's ``_get_np_dtype``."""
    name = kind.scalar.name
    if name not in _DTYPES:
        _DTYPES[name] = _numpy_dtype(kind.scalar)
    return _DTYPES[name]
