"""``--where``: a condition on the columns of a table, evaluated over arrays without running any code of the user.

The text is parsed as a Python expression, and only the nodes matched below have a meaning: comparisons, ``and``,
``or``, ``not``, ``in`` a list, arithmetic, numbers, texts and column names. There are no functions, attributes or
subscripts, so a condition cannot open a file, and its work is bounded: at most ``MAX_NODES`` array operations per batch
of rows. SQL gives neither: experiments/bench_points.py has what duckdb and polars do with such conditions.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from scalebench.errors import InputError
from scalebench.points.numerals import number

Mask = NDArray[np.bool_]
Kind = Literal["number", "text"]
Columns = Callable[[str, Kind], Any]  # (name, kind) -> array of float64 or of str, (n,)

ALLOWED = (
    "comparisons, and, or, not, in [...], + - * / % **, numbers, 'text' and column names (`in backticks` if not "
    "an identifier)"
)
ASSIGNED = re.compile(r"[^=!<>]=[^=]")  # a single = in the place of ==
MAX_LENGTH = 1000
MAX_NODES = 250  # of the parse tree, constants aside: far from the interpreter's recursion limit
# Texts, names in backticks (those inside quotes are text), and numbers such as 124M.
QUOTED_OR_BACKTICKED = re.compile(r"""'[^']*'|"[^"]*"|`[^`]*`|(?P<suffixed>(?<![\w.])\d+(?:\.\d+)?[kKMBGT](?!\w))""")
BACKTICKED = "__backticked_"
TRUTH = ("true", "false")  # beside Python's True and False; a column of such a name needs backticks

CONNECTIVES: dict[type[ast.AST], Callable[[Any, Any], Any]] = {ast.And: np.logical_and, ast.Or: np.logical_or}
ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: np.divide, ast.Mod: np.mod,
    ast.Pow: np.power, ast.FloorDiv: np.floor_divide,
}  # fmt: skip
SIGNS: dict[type[ast.AST], Callable[[Any], Any]] = {ast.USub: operator.neg, ast.UAdd: operator.pos}
COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}  # fmt: skip


@dataclass(frozen=True)
class Where:
    """A valid condition. ``names`` are the columns it reads."""

    text: str
    names: tuple[str, ...]
    tree: ast.expr

    def mask(self, columns: Columns, rows: int) -> Mask:
        """Return which of ``rows`` rows match, (rows,); a missing number matches no comparison but ``!=``."""
        with np.errstate(all="ignore"):
            return np.broadcast_to(_condition(self.tree, columns), (rows,))


def parse(text: str) -> Where:
    """Parse a condition and evaluate it on one row. Raises ``InputError`` unless it is a condition on columns."""
    if len(text) > MAX_LENGTH:
        raise InputError(f"--where has {len(text)} characters; the limit is {MAX_LENGTH}")
    try:
        tree, names = _tree(text)
        where = Where(text, names, tree)
        where.mask(lambda _, kind: np.array(["1"] if kind == "text" else [1.0]), 1)
    except InputError as error:
        raise InputError(f"--where {text!r}: {error}; allowed are {ALLOWED}") from error
    except SyntaxError as error:
        reason = "equality is ==" if ASSIGNED.search(text) else error.msg
        raise InputError(f"--where {text!r} is not an expression ({reason}); allowed are {ALLOWED}") from error
    except (RecursionError, MemoryError) as error:
        raise InputError("--where is nested too deeply") from error
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"--where {text!r} cannot be evaluated ({error}); allowed are {ALLOWED}") from error
    return where


def _tree(text: str) -> tuple[ast.expr, tuple[str, ...]]:
    """Return the parse tree, with backticks kept in its names so that errors show them, and the columns it names."""
    tree = ast.parse(QUOTED_OR_BACKTICKED.sub(_identifier, text).strip(), mode="eval").body
    nodes = list(ast.walk(tree))
    if sum(not isinstance(node, ast.Constant) for node in nodes) > MAX_NODES:
        raise InputError(f"it has more than {MAX_NODES} parts")
    columns = [node for node in nodes if isinstance(node, ast.Name) and node.id not in TRUTH]
    for column in columns:
        if column.id.startswith(BACKTICKED):
            column.id = bytes.fromhex(column.id.removeprefix(BACKTICKED)).decode()
    if not columns:
        raise InputError("it names no column")
    return tree, tuple(dict.fromkeys(column.id.strip("`") for column in columns))


def _identifier(quoted: re.Match[str]) -> str:
    """Return the identifier for a name in backticks, the value of a number such as 124M; other text unchanged."""
    if quoted["suffixed"]:
        return repr(number(quoted[0]))
    return BACKTICKED + quoted[0].encode().hex() if quoted[0].startswith("`") else quoted[0]


def _condition(node: ast.expr, columns: Columns) -> Mask:
    mask = np.asarray(_value(node, columns))
    if mask.dtype != np.bool_:
        raise _refusal(node, "a number is not a condition: compare it with something")
    return mask


def _value(node: ast.expr, columns: Columns) -> Any:
    """Return the mask of a condition, or numbers; a scalar or (n,)."""
    match node:
        case ast.BoolOp(op=op, values=parts):
            return reduce(CONNECTIVES[type(op)], [_condition(part, columns) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return ~_condition(operand, columns)
        case ast.Compare():
            return _compare(node, columns)
        case _:
            return _number(node, columns)


def _number(node: ast.expr, columns: Columns) -> Any:
    match node:
        case ast.UnaryOp(op=op, operand=operand) if type(op) in SIGNS:
            return SIGNS[type(op)](_value(operand, columns))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
            return ARITHMETIC[type(op)](_value(left, columns), _value(right, columns))
        case ast.Name(id=name):
            return np.float64(name == "true") if name in TRUTH else columns(name.strip("`"), "number")
        case ast.Constant(value=int() | float() as value):  # True and False are 1 and 0, as in the columns
            return np.float64(value)
    raise _refusal(node, "use and, or, not, with parentheses" if re.search("[&|~]", ast.unparse(node)) else "")


def _compare(node: ast.Compare, columns: Columns) -> Any:
    """Compare neighbours, as in ``a < b < c``; compared with a text, columns are read as text."""
    sides = [node.left, *node.comparators]
    kind: Kind = "text" if any(map(_has_text, sides)) else "number"
    links = zip(node.ops, pairwise(sides), strict=True)
    return reduce(np.logical_and, [_link(op, left, right, kind, columns) for op, (left, right) in links])


def _has_text(side: ast.expr) -> bool:
    items = side.elts if isinstance(side, ast.List | ast.Tuple) else [side]
    return any(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in items)


def _link(op: ast.cmpop, left: ast.expr, right: ast.expr, kind: Kind, columns: Columns) -> Mask:
    if isinstance(op, ast.In | ast.NotIn):
        import pandas as pd

        within = pd.Series(_side(left, kind, columns)).isin(_list(right, kind))
        return np.asarray(within, dtype=bool) ^ isinstance(op, ast.NotIn)
    if type(op) not in COMPARISONS:
        raise _refusal(ast.Compare(left, [op], [right]))
    if kind == "text" and not isinstance(op, ast.Eq | ast.NotEq) and any(map(_is_quoted_number, (left, right))):
        raise _refusal(ast.Compare(left, [op], [right]), "texts are compared by letters: write the number unquoted")
    matches = COMPARISONS[type(op)](_side(left, kind, columns), _side(right, kind, columns))
    return np.asarray(matches, dtype=bool)


def _is_quoted_number(node: ast.expr) -> bool:
    """Whether a side of a comparison is a text such as '1e8', which no user wants to come after '125'."""
    try:
        return isinstance(node, ast.Constant) and isinstance(node.value, str) and number(node.value) is not None
    except ValueError:
        return False


def _side(node: ast.expr, kind: Kind, columns: Columns) -> Any:
    if kind == "number":
        return _value(node, columns)
    match node:
        case ast.Name(id=name):
            return columns(name.strip("`"), "text")
        case ast.Constant(value=str() as text):
            return text
    raise _refusal(node, "only a column or a text can be compared with a text")


def _list(node: ast.expr, kind: Kind) -> list[Any]:
    allowed = str if kind == "text" else int | float
    try:
        values = list(ast.literal_eval(node)) if isinstance(node, ast.List | ast.Tuple) else [None]
    except ValueError:  # some item is not a constant
        values = [None]
    if not all(isinstance(value, allowed) for value in values):
        raise _refusal(node, "`in` needs a list of numbers or a list of texts")
    return values


def _refusal(node: ast.AST, reason: str = "") -> InputError:
    return InputError(f"{ast.unparse(node)!r} is not allowed" + (f" ({reason})" if reason else ""))
