"""Studies by name: those that ship with the package, and files."""

from __future__ import annotations

import os
from pathlib import Path

from scalebench.errors import StudyError, unknown
from scalebench.store import expanded


def studies_dir() -> Path:
    """Return the folder of the studies that ship: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "studies"
    return inside if inside.is_dir() else package.parent / "studies"


def shipped_names() -> list[str]:
    """Return the names of the studies that ship, in alphabetical order."""
    with os.scandir(studies_dir()) as entries:
        return sorted(entry.name.removesuffix(".toml") for entry in entries if entry.name.endswith(".toml"))


def shipped_studies() -> dict[str, Path]:
    """Return the files of the studies that ship, by name."""
    folder = studies_dir()
    return {name: folder / f"{name}.toml" for name in shipped_names()}


def find_study(name: str) -> Path:
    """Return the path of a study given by path or by the name of one that ships; ``StudyError`` when there is none."""
    shipped = shipped_names()
    if name in shipped:
        return studies_dir() / f"{name}.toml"
    path = expanded(name)
    if not path.exists() and path.suffix != ".toml":
        raise StudyError([f"{name}: {unknown(name, shipped).replace('unknown', 'no such file or study', 1)}"])
    return path
