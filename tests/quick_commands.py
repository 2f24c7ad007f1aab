"""Commands whose arguments are assembled once per process, not anew for each of the hundreds of calls that tests make.

A user's process parses one command line; cyclopts takes two thirds of that time to read the signature of the command,
and most of the rest to build pydantic's validators of its types.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pydantic
from cyclopts import App, core
from cyclopts.argument import ArgumentCollection


def speed_up() -> None:
    """Let every App of this process keep what it assembled from its command, and parse into copies of it."""
    assemble = App.assemble_argument_collection
    kept: dict[tuple[int, bool], tuple[Callable[..., object], ArgumentCollection]] = {}

    def assembled_once(app: App, *, default_parameter=None, parse_docstring=False) -> ArgumentCollection:
        if default_parameter is not None:
            return assemble(app, default_parameter=default_parameter, parse_docstring=parse_docstring)
        command, collection = kept.get((id(app), parse_docstring), (None, None))
        if command is None or command is not app.default_command:
            collection = assemble(app, parse_docstring=parse_docstring)
            kept[id(app), parse_docstring] = app.default_command, collection
        return _without_tokens(collection)

    App.assemble_argument_collection = assembled_once
    core.validate_command = cache(core.validate_command)  # of the signature alone
    pydantic.TypeAdapter = cache(pydantic.TypeAdapter)


def _without_tokens(collection: ArgumentCollection) -> ArgumentCollection:
    """A copy to parse into; the parts of an argument, which are in the collection, too, are those of the copy."""
    copied = collection.copy(reset_tokens=True)
    copies = {id(argument): copy for argument, copy in zip(collection, copied, strict=True)}
    for argument in copied:
        argument.children = ArgumentCollection(copies[id(child)] for child in argument.children)
    return copied
