"""Launches of Triton's interpreter with less repeated work, for arguments that lie in the memory of the CPU.

The interpreter copies arguments to the CPU and back, reads signatures and annotations for every launch, and reads and
parses the source of a function to rewrite it. Here a signature is read once for a function, and the same source, as of
the functions that a broken copy of a kernel leaves as they are, is rewritten once.
"""

from __future__ import annotations

import ast
import itertools
import linecache
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import numpy as np
import torch
import triton.language as tl
from quick_types import shared, tensor_of
from triton.runtime import interpreter
from triton.runtime.jit import _normalize_ty, mangle_type

General = Callable[..., Any]

_convert = interpreter._implicit_cvt
_pointers: dict[torch.dtype, Any] = {}
_integers: dict[int, tuple[np.ndarray, Any]] = {}
_parameters: dict[Any, tuple[list[str], dict[str, Any]]] = {}  # names and defaults of a function
_constants: dict[Any, list[str]] = {}  # names of a function's compile-time constants
_rewritten: dict[str, CodeType] = {}  # by the source of a function


def _parameters_of(function: Any) -> tuple[list[str], dict[str, Any]]:
    if function not in _parameters:
        names = list(function.__code__.co_varnames[: function.__code__.co_argcount])
        defaults = function.__defaults__ or ()
        _parameters[function] = names, dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    return _parameters[function]


def init_launch(self: Any, fn: Any, arg_names: Any, grid: Any, pre_run_hooks: Any = ()) -> None:
    """Stand for the ``__init__`` of a launch."""
    self.fn, self.arg_names, self.grid, self.pre_run_hooks = fn, arg_names, grid, pre_run_hooks
    if fn not in _constants:
        types = {name: _normalize_ty(annotation) for name, annotation in fn.__annotations__.items()}
        _constants[fn] = [name for name in arg_names if types.get(name) == "constexpr"]
    self.constexprs = _constants[fn]


def _argument(value: Any) -> Any:
    """Return what a kernel sees of an argument that is no constant."""
    if type(value) is int:
        if value not in _integers:
            made = _convert(value)
            _integers[value] = shared(made.handle.data), made.dtype
        data, dtype = _integers[value]
        return tensor_of(data, dtype, dtype)
    if isinstance(value, torch.Tensor):
        if value.dtype not in _pointers:
            _pointers[value.dtype] = tl.str_to_ty(mangle_type(value), None)
        pointer = _pointers[value.dtype]
        return tensor_of(np.array([value.data_ptr()], np.uint64), pointer, pointer)
    return _convert(value)


def _is_at_hand(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.device.type == "cpu"
    if isinstance(value, interpreter.TensorDescriptor):
        return _is_at_hand(value.base)
    return value is None or isinstance(value, int | float | str | tl.dtype | tl.constexpr)


def quick_launcher(general: General) -> General:
    """Return what runs all programs of a launch."""

    def launch(self: Any, *given: Any, **named: Any) -> None:
        names, defaults = _parameters_of(self.fn)
        known = dict(zip(names, given, strict=False)) | {name: value for name, value in named.items() if name in names}
        is_plain = len(given) <= len(names) and not named.keys() & set(names[: len(given)])
        known = defaults | known
        is_plain = is_plain and len(known) == len(names) and not self.pre_run_hooks
        if not is_plain or not all(map(_is_at_hand, known.values())):
            general(self, *given, **named)
            return
        constants = self.constexprs
        arguments = {name: known[name] if name in constants else _argument(known[name]) for name in names}
        grid = self.grid(arguments) if callable(self.grid) else self.grid
        _run(self.fn, arguments, (*grid, *(1,) * (3 - len(grid))))

    return launch


def _run(function: Any, arguments: dict[str, Any], grid: tuple[int, int, int]) -> None:
    builder = interpreter.interpreter_builder
    builder.set_grid_dim(*grid)
    try:
        for program in itertools.product(*map(range, grid)):
            builder.set_grid_idx(*program)
            function(**arguments)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Stand for a call of a jit function in a kernel."""
    function = self.rewritten_fn.get(self.fn) or self.rewrite()
    try:
        return function(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def quick_rewriter(general: General) -> General:
    """Return what rewrites a function of a module; the same source is parsed and compiled once."""

    def rewrite(self: Any) -> Any:
        source, line = _source_of(self.fn)
        if not source or self.fn.__closure__:
            return general(self)
        if source not in _rewritten:
            _rewritten[source] = _compiled(self, source)
        for name, value in vars(interpreter).items():
            self.fn.__globals__.setdefault(name, value)
        code = _rewritten[source].replace(co_filename=self.fn.__code__.co_filename, co_firstlineno=line)
        made = FunctionType(code, self.fn.__globals__, self.fn.__name__, self.fn.__defaults__)
        made.__kwdefaults__, made.__annotations__ = self.fn.__kwdefaults__, self.fn.__annotations__
        return made

    return rewrite


def _source_of(function: Any) -> tuple[str, int]:
    """Return the lines of a function of a module from its ``def`` on, and the number of the first.

    They end before the next line that is not indented, those that end its signature aside; "" where that is not it.
    """
    linecache.checkcache(function.__code__.co_filename)
    lines = linecache.getlines(function.__code__.co_filename, function.__globals__)
    first = function.__code__.co_firstlineno - 1
    while first < len(lines) and lines[first].startswith("@"):
        first += 1
    if first >= len(lines) or not lines[first].startswith(f"def {function.__name__}("):
        return "", 0
    end = first + 1
    while end < len(lines) and (not lines[end].strip() or lines[end][0] in " )#"):
        end += 1
    return "".join(lines[first:end]), first + 1


def _compiled(rewriter: Any, source: str) -> CodeType:
    tree = rewriter.ast_transformer.visit(ast.parse(source))
    ast.fix_missing_locations(tree)
    (code,) = (part for part in compile(tree, "<kernel>", "exec").co_consts if isinstance(part, CodeType))
    return code
