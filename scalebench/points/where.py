"""``--where``: a condition on the columns of a table, evaluated over arrays without running any code of the user's.

The text is parsed as a Python expression and walked node by node; only comparisons, ``and``/``or``/``not``, ``in`` a
list, arithmetic, numbers, texts and column names have a meaning. A name that is not an identifier stands in backticks.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Columns = Callable[[str, str], NDArray[Any]]  # (name, "text" or "number") -> values (n,)

ALLOWED = (
    "comparisons, and, or, not, in [...], + - * / % **, numbers, 'text' and column names (`in backticks` where odd)"
)
MAX_LENGTH = 1000
MAX_NODES = 250  # of the parse tree, constants aside: far from the interpreter's recursion limit
BACKTICKED = re.compile(r"""('[^']*'|"[^"]*")|`([^`]*)`""")  # backticks inside of quotes are text

ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: np.divide, ast.Mod: np.mod,
    ast.Pow: np.power, ast.FloorDiv: np.floor_divide,
}  # fmt: skip
SIGNS: dict[type[ast.AST], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip


class WhereError(ValueError):
    """An expression that is not a condition on columns; the message says why, and what is allowed."""


@dataclass(frozen=True)
class Where:
    """A parsed condition. ``names`` are the columns it reads."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr
    odd_names: tuple[str, ...]

    def mask(self, columns: Columns, rows: int) -> Mask:
        """Return which of ``rows`` rows fulfil the condition; a missing number fulfils no comparison but ``!=``."""
        with np.errstate(all="ignore"):
            found = np.asarray(self._value(self.tree, columns))
        return np.broadcast_to(self._condition(found, self.tree), (rows,))

    def _value(self, node: ast.expr, columns: Columns) -> Any:
        match node:
            case ast.BoolOp():
                parts = [self._condition(self._value(value, columns), value) for value in node.values]
                return (np.logical_and if isinstance(node.op, ast.And) else np.logical_or).reduce(parts)
            case ast.Compare():
                return self._compare(node, columns)
            case ast.UnaryOp(op=ast.Not()):
                return ~self._condition(self._value(node.operand, columns), node.operand)
            case _:
                return self._number(node, columns)

    def _number(self, node: ast.expr, columns: Columns) -> Any:
        match node:
            case ast.UnaryOp() if type(node.op) in SIGNS:
                return SIGNS[type(node.op)](self._value(node.operand, columns))
            case ast.BinOp() if type(node.op) in ARITHMETIC:
                return ARITHMETIC[type(node.op)](self._value(node.left, columns), self._value(node.right, columns))
            case ast.Name():
                return columns(self._column(node), "number")
            case ast.Constant(value=int() | float() as value):  # True and False count as 1 and 0, as in the columns
                return np.float64(value)
        raise self.refusal(node)

    def _compare(self, node: ast.Compare, columns: Columns) -> Mask:
        """Compare neighbours of ``a < b < c``; beside a text, a column is read as text."""
        sides = [node.left, *node.comparators]
        kind = "text" if any(isinstance(value, str) for side in sides for value in _constants(side)) else "number"
        values = [self._side(side, kind, columns) for side in sides]
        links = zip(node.ops, values[:-1], values[1:], strict=True)
        return np.asarray(np.logical_and.reduce([self._link(op, a, b, node) for op, a, b in links]))

    def _side(self, node: ast.expr, kind: str, columns: Columns) -> Any:
        if isinstance(node, ast.List | ast.Tuple):
            values = [value for item in node.elts for value in _constants(item)]
            if len(values) < len(node.elts) or any(isinstance(value, str) != (kind == "text") for value in values):
                raise self.refusal(node, "a list holds either numbers or texts")
            return values
        if kind == "number":
            return self._value(node, columns)
        if isinstance(node, ast.Name):
            return columns(self._column(node), "text")
        if not _constants(node):
            raise self.refusal(node, "only a column can be compared with a text")
        if not isinstance(_constants(node)[0], str):
            raise self.refusal(node, "a number cannot be compared with a text")
        return _constants(node)[0]

    def _link(self, op: ast.cmpop, left: Any, right: Any, node: ast.expr) -> Any:
        if isinstance(op, ast.In | ast.NotIn):
            if not isinstance(right, list) or isinstance(left, list):
                raise self.refusal(node, "`in` needs a column before it and a list after it")
            found = np.isin(left, right)
            return found if isinstance(op, ast.In) else ~found
        if type(op) not in COMPARISONS or isinstance(left, list) or isinstance(right, list):
            raise self.refusal(node)
        return COMPARISONS[type(op)](left, right)

    def _condition(self, value: Any, node: ast.expr) -> Mask:
        found = np.asarray(value)
        if found.dtype != np.bool_:
            raise self.refusal(node, "it is a number and no condition: compare it with something")
        return found

    def _column(self, node: ast.Name) -> str:
        return _original(node.id, self.odd_names)

    def refusal(self, node: ast.AST, reason: str = "") -> WhereError:
        """Return the error for a part of the expression."""
        part = ast.unparse(node)
        for i, name in enumerate(self.odd_names):
            part = part.replace(_stand_in(i), f"`{name}`")
        hint = "use and, or, not with each comparison in its own place" if re.search(r"[&|~]", part) else reason
        return WhereError(f"--where {self.text!r}: {part!r} {_why(hint)}")


def parse(text: str) -> Where:
    """Parse a condition. Raises ``WhereError`` for what is no expression, reads no column, or is not allowed."""
    if len(text) > MAX_LENGTH:
        raise WhereError(f"--where has {len(text)} characters; at most {MAX_LENGTH} are read")
    odd: list[str] = []
    try:
        tree = ast.parse(BACKTICKED.sub(lambda found: _replaced(found, odd), text).strip(), mode="eval").body
        if sum(not isinstance(node, ast.Constant) for node in ast.walk(tree)) > MAX_NODES:
            raise WhereError(f"--where has more than {MAX_NODES} parts; shorten it")
        names = dict.fromkeys(_original(node.id, odd) for node in ast.walk(tree) if isinstance(node, ast.Name))
        where = Where(text, tuple(names), tree, tuple(odd))
        where.mask(lambda _, kind: np.array(["1"] if kind == "text" else [1.0]), 1)
    except SyntaxError as error:
        raise WhereError(f"--where {text!r} is not an expression ({error.msg}); allowed are {ALLOWED}") from error
    except (RecursionError, MemoryError) as error:
        raise WhereError("--where is nested too deeply to be read") from error
    except (ValueError, TypeError, OverflowError) as error:
        if isinstance(error, WhereError):
            raise
        raise WhereError(f"--where {text!r} cannot be evaluated ({error}); allowed are {ALLOWED}") from error
    if not where.names:
        raise WhereError(f"--where {text!r} names no column; allowed are {ALLOWED}")
    return where


def _why(reason: str) -> str:
    return f"is not allowed ({reason}); allowed are {ALLOWED}" if reason else f"is not allowed; allowed are {ALLOWED}"


def _stand_in(index: int) -> str:
    return f"__column_{index}__"


def _replaced(found: re.Match[str], odd: list[str]) -> str:
    if found.group(1) is not None:
        return found.group(1)
    odd.append(found.group(2))
    return _stand_in(len(odd) - 1)


def _original(name: str, odd: list[str] | tuple[str, ...]) -> str:
    return next((given for i, given in enumerate(odd) if _stand_in(i) == name), name)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def _constants(node: ast.expr) -> list[Any]:
    """Return the constants a side of a comparison consists of: one, those of a list, or none."""
    return list(_walk_constants(node))


def _walk_constants(node: ast.expr) -> Iterator[Any]:
    if isinstance(node, ast.List | ast.Tuple):
        for item in node.elts:
            yield from _constants(item)
    elif isinstance(node, ast.UnaryOp) and type(node.op) in SIGNS and isinstance(node.operand, ast.Constant):
        if _is_number(node.operand.value):
            yield SIGNS[type(node.op)](node.operand.value)
    elif isinstance(node, ast.Constant) and (_is_number(node.value) or isinstance(node.value, str)):
        yield node.value
