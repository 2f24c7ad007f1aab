"""What a shell offers after TAB: studies, trials, families, laws, operations and engines.

Each function takes what cyclopts calls at that moment, and imports what it lists only then.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol


class Context(Protocol):
    """What cyclopts passes: the word so far, and the arguments before it by name."""

    incomplete: str

    def get(self, name: str) -> Any:
        """Return an argument with its ``value``, or None."""


def study_files(context: Context) -> Mapping[str, str]:
    """Return the studies that ship, and the TOML files that begin as the word does."""
    from scalebench.running.shipped import shipped_names

    shipped = dict.fromkeys(shipped_names(), "a study that ships")
    return shipped | _files(context.incomplete, ".toml")


def operations(context: Context) -> Mapping[str, str]:
    """Return the operations of `compare`, and the Python files that begin as the word does."""
    from scalebench.comparison.options import OPERATION_MODULES

    return dict.fromkeys(OPERATION_MODULES, "an operation") | _files(context.incomplete, ".py")


def families(_: Context) -> Mapping[str, str]:
    """Return the model families."""
    from scalebench.families import FAMILIES

    return {name: family.SUMMARY for name, family in FAMILIES.items()}


def laws(_: Context) -> Mapping[str, str]:
    """Return the laws."""
    from scalebench.laws import LAWS

    return {name: law.formula for name, law in LAWS.items()}


def engines(_: Context) -> list[str]:
    """Return the engines that place trials."""
    from scalebench.running.engines import ENGINES

    return [*ENGINES]


def trials(context: Context) -> Mapping[str, str]:
    """Return the ids of the trials in the results folder that the command line names, with their studies."""
    folder = next((value for name in ("results", "study") if (value := context.get(name))), None)
    if folder is None or not isinstance(folder.value, Path):
        return {}
    paths = [*folder.value.glob("trials/*/"), *folder.value.glob("*/trials/*/")]
    return {path.name: path.parents[1].name for path in sorted(paths)}


def _files(prefix: str, suffix: str) -> dict[str, str]:
    """Return the files and folders that begin as the word does; with a folder that is the only match, what it has.

    (A shell ends a single match with a space, which is wrong after a folder.)
    """
    folder, slash, start = prefix.rpartition("/")
    parent = Path(folder + slash)
    matching = [path for path in (parent.iterdir() if parent.is_dir() else ()) if path.name.startswith(start)]
    matching = [path for path in matching if path.suffix == suffix or (path.is_dir() and path.name[0] != ".")]
    if len(matching) == 1:
        matching += matching[0].glob(f"*{suffix}")
    written = [f"{path}/" if path.is_dir() else str(path) for path in matching]
    return dict.fromkeys(sorted("./" + name if prefix.startswith("./") else name for name in written), "")
