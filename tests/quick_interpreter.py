"""Triton's interpreter with less repeated work, which halves the time of the tests under it.

For every launch, and for every call of a helper inside a kernel, the interpreter lists all members of
``triton.language`` and replaces the builtins among them. Here the lists are made once, and inside a launch only what
is not replaced yet is replaced. What a kernel computes is the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from types import FunctionType, ModuleType
from typing import Any

import triton.language as tl
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


def speed_up() -> None:
    """Speed up the interpreter in this process; once is enough."""
    interpreter._LangPatchScope = _Scope
    interpreter._patch_builtin = _replace_builtins
    interpreter._patch_lang = _once(interpreter._patch_lang)
