"""What a command line was wrong about, in one line as of every other error."""

from __future__ import annotations

import re
from collections.abc import Sequence

from cyclopts import CycloptsError
from cyclopts.exceptions import (
    CoercionError,
    MissingArgumentError,
    UnknownCommandError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from scalebench.errors import unknown

KINDS = {int: "a whole number", float: "a number such as 7e9, 124M or 300B"}


def usage_line(error: CycloptsError, commands: Sequence[str]) -> str:
    """Return the line for a command line that cannot be read: the command, the error, and how to get help."""
    name = " ".join(["scalebench", *(error.command_chain or ())])
    if isinstance(error, UnknownOptionError) and error.token.value.startswith("--results"):
        return f"{name}: no option --results; name the folder alone: {name} FOLDER (see {name} --help)"
    return f"{name}: {_reason(error, commands)} (see {name} --help)"


def _reason(error: CycloptsError, commands: Sequence[str]) -> str:
    if isinstance(error, UnknownCommandError) and error.unused_tokens:
        return unknown(error.unused_tokens[0], commands).replace("unknown", "no such command:", 1)
    if isinstance(error, UnusedCliTokensError):
        return f"too many arguments: {' '.join(error.unused_tokens or [])}"
    if isinstance(error, MissingArgumentError) and error.argument is not None:
        option = error.keyword or error.argument.name
        count = error.argument.token_count()[0]
        if error.keyword is None and not error.tokens_so_far:
            return f"{option} is missing"
        return f"{option} needs {'a value' if count == 1 else f'{count} values, {len(error.tokens_so_far)} given'}"
    if isinstance(error, CoercionError) and error.token is not None and (reason := _unconverted(error)):
        option = error.token.keyword or (error.argument.name if error.argument else "the argument")
        return f"{option}: {reason}"
    text = re.sub(r"\s+", " ", str(error)).strip().rstrip(".")
    return text[:1].lower() + text[1:]


def _unconverted(error: CoercionError) -> str:
    """Return why a value is not of its type: the reason of a converter in ``options.py``, else what it should be."""
    if error.token is not None and error.target_type in KINDS:
        return f"{error.token.value!r} is not {KINDS[error.target_type]}"
    return str(error.__context__ or "")
