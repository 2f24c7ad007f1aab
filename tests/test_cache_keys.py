"""Keys of Triton's cache: the same in whatever order a process launches kernels."""

from __future__ import annotations

import ast
import json
from importlib import import_module
from pathlib import Path
from typing import Any

import launch_requests
import pytest
import quick_triton
import scalekernels
import triton.compiler
from forking import value_of_forked
from launch_requests import cache_folder, prepare, session_cases
from scalekernels.cache_keys import settled
from triton.backends.compiler import GPUTarget
from triton.runtime import cache

OPERATIONS = ("norm", "rotary", "attention", "cross_entropy", "optimizer")
SOURCES = Path(str(scalekernels.__file__)).parent


def keys_of_launches(backwards: bool) -> list[str]:
    """The sorted cache keys of the launches of the small cases, made in the order of the operations or backwards."""
    keys: set[str] = set()

    def compiler(source: Any, target: GPUTarget, options: dict[str, Any], **_: Any) -> None:
        keys.add(f"{source.name} {cache_folder(source, target, options)}")

    prepare(OPERATIONS, launch_requests.ARCHITECTURE)
    triton.compiler.compile = compiler  # type: ignore[attr-defined]  # before any kernel has taken it
    cases = [(name, case) for name in OPERATIONS for case in session_cases(name, few=True)]
    with launch_requests.unwritten():
        for name, case in reversed(cases) if backwards else cases:
            launch_requests.launch(import_module(f"scalekernels.{name}"), case)
    return sorted(keys)


@pytest.mark.slow
def test_the_order_of_launches_does_not_decide_their_keys() -> None:
    forwards, backwards = (value_of_forked(lambda way=way: keys_of_launches(way))[0] for way in (False, True))
    assert len(forwards) > 200
    assert forwards == backwards


def gradients_first(first: bool) -> list[str]:
    """The keys of rotary's kernels, which call a common function, beginning with either."""
    kernels = import_module("scalekernels.rotary.kernels")
    names = ["gradients", "forward"] if first else ["forward", "gradients"]
    keys = {name: settled(getattr(kernels, name)).cache_key for name in names}
    return [keys["forward"], keys["gradients"]]


def test_functions_get_their_keys_after_those_that_they_call() -> None:
    one, other = (value_of_forked(lambda first=first: gradients_first(first))[0] for first in (False, True))
    assert one == other


def test_an_interpreted_function_has_no_key_and_is_returned() -> None:
    marker = object()
    assert settled(marker) is marker


def test_every_launch_settles_its_kernel() -> None:
    launches = [
        (path.name, node)
        for path in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Subscript)
        if isinstance(node.func.slice, ast.Tuple) or any(keyword.arg == "num_warps" for keyword in node.keywords)
    ]
    assert len(launches) >= 16
    for name, node in launches:
        assert isinstance(node.func, ast.Subscript)
        kernel = node.func.value
        assert isinstance(kernel, ast.Call), f"{name}:{node.lineno}"
        assert ast.unparse(kernel.func) == "settled", f"{name}:{node.lineno}"


def test_the_key_of_triton_is_kept_for_as_long_as_its_library_is_the_same(monkeypatch, tmp_path):
    class Kept(dict):
        def set(self, name, value):
            self[name] = json.loads(json.dumps(value))

    kept, library, counted = Kept(), tmp_path / "libtriton.so", []
    monkeypatch.setattr(quick_triton._C, "__path__", [str(tmp_path)])
    for content, worked_out in (("old", 1), ("old", 1), ("newer", 2)):
        if not library.exists() or library.read_text() != content:
            library.write_text(content)
        monkeypatch.setattr(cache, "triton_key", lambda content=content: counted.append(1) or f"key of {content}")
        quick_triton.keep_key(kept)
        assert cache.triton_key() == f"key of {content}"
        assert len(counted) == worked_out
