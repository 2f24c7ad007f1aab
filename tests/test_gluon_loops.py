"""Variables that Triton's loops do not carry: that they are found, and that no kernel has one."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import mechanisms
import pytest
import scalekernels
from gluon_loops import not_carried

CARRIED = """
def kernel(a, n):
    b = a{more}
    for i in range(n):
        use(b)
        b = a
        a = a + 1
"""
FIXED = """
def kernel(a, n):
    b = a
    c = a
    while n > 0:
        n = n - 1
        if n:
            b = c
        use(b)
    for i in range(n):
        b = i
        a = b
"""


@pytest.mark.parametrize(("more", "names"), [("", {"b"}), (" + 0", set())])
def test_a_variable_is_not_carried_where_it_is_the_same_after_one_round(more: str, names: set[str]) -> None:
    assert not_carried(CARRIED.format(more=more)) == names


def test_what_a_loop_does_not_change_need_not_be_carried() -> None:
    assert not_carried(FIXED) == set()


def kernels() -> Iterator[Any]:
    packages = pkgutil.walk_packages(scalekernels.__path__, "scalekernels.")
    for module in (mechanisms, *(importlib.import_module(package.name) for package in packages)):
        yield from (value for value in vars(module).values() if hasattr(value, "src") and hasattr(value, "arg_names"))


def test_loops_of_every_kernel_carry_what_they_change() -> None:
    missing = {kernel.__name__: not_carried(kernel.src) for kernel in kernels()}
    assert len(missing) > 40
    assert not {name: names for name, names in missing.items() if names}
