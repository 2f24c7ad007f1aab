"""Variables of loops that Triton does not carry from one round to the next, although Python does.

Triton visits the body of a loop once, with the values from before the loop, and carries the variables whose values are
not the same after it (``CodeGenerator._find_carries``, 3.6 and 3.7). With ``b = a`` before a loop and
``b = a; a = a + 1`` in it, b is the same value after that visit as before: it is not carried, and in every round it is
the first a. A kernel that used such a b added every tile to the first one.
"""

from __future__ import annotations

import ast
import itertools
import re
import textwrap
from functools import cache


@cache
def not_carried(source: str) -> frozenset[str]:
    """Return the names that a loop of a function assigns, and that have the value from before it after one round."""
    if not re.search(r"\b(for|while)\b", source):
        return frozenset()
    (function,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(function, ast.FunctionDef)
    numbers = itertools.count()
    values = {argument.arg: next(numbers) for argument in function.args.args}
    return frozenset(_visited(function.body, values, numbers))


def _visited(body: list[ast.stmt], values: dict[str, int], numbers: itertools.count[int]) -> list[str]:
    """Follow which names have the same value through statements; return the names that loops in them do not carry."""
    missed: list[str] = []
    for statement in body:
        if isinstance(statement, ast.For | ast.While):
            missed += _visited_loop(statement, values, numbers)
        elif isinstance(statement, ast.If):
            for part in (statement.body, statement.orelse):
                missed += _visited(part, values, numbers)
        elif isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Name):
            for name in _names(statement):
                values[name] = values.setdefault(statement.value.id, next(numbers))
        else:
            for name in _names(statement):
                values[name] = next(numbers)
    return missed


def _visited_loop(loop: ast.For | ast.While, values: dict[str, int], numbers: itertools.count[int]) -> list[str]:
    before = dict(values)
    missed = _visited(loop.body, values, numbers)
    assigned = {name for statement in loop.body for name in _names(statement)}
    changed = {name for name in assigned if name in before and values[name] != before[name]}
    aliases = {before[name] for name in changed}
    missed += [name for name in assigned - changed if before.get(name) in aliases]
    for name in assigned:  # what a loop carries is new after it
        values[name] = next(numbers)
    return missed


def _names(statement: ast.stmt) -> set[str]:
    """Names that a statement assigns, those in its parts included; the value that is assigned has none."""
    parts = statement.targets if isinstance(statement, ast.Assign) else [statement]
    stored = (node for part in parts for node in ast.walk(part) if isinstance(node, ast.Name))
    return {node.id for node in stored if isinstance(node.ctx, ast.Store)}
