"""The files of a study's parents, and circles among them."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from scalebench.errors import StudyError
from scalebench.running.shipped import studies_dir
from scalebench.study import Study
from scalebench.study.file import read_toml


def parent_files(study: Study) -> dict[str, Path]:
    """Return the files that a study can name as its parents, by name: those that ship and those beside its own file.

    A file beside the study's own takes precedence.
    """
    origin = Path(study.origin)
    beside = sorted(origin.parent.glob("*.toml")) if origin.exists() else []
    return {path.stem: path for path in [*sorted(studies_dir().glob("*.toml")), *beside]}


def run_argument(study: Study, parent: str) -> str:
    """Return what `scalebench run` takes to run a parent: the path of its file, or the name of one that ships."""
    path = parent_files(study).get(parent)
    return parent if path is None or path.parent == studies_dir() else shlex.quote(str(path))


def check_circle(study: Study) -> None:
    """Raise ``StudyError`` with one line when the parents of a study need it, directly or through others.

    A file that is missing or invalid ends the search: what is wrong with it is reported where it is loaded.
    """
    files, names, origin = parent_files(study), [study.name], study.origin
    key, parent = (study.parents.KEY, study.parents.study) if study.parents else ("", None)
    while parent is not None:
        if parent in names:
            circle = " → ".join([*names[names.index(parent) :], parent])
            raise StudyError([f"{origin}: {key}.study: {circle}: these studies need each other"])
        names.append(parent)
        origin = str(files.get(parent, ""))
        key, parent = _named_in(files.get(parent))


def _named_in(path: Path | None) -> tuple[str, str | None]:
    """Return where a study file names its parents, and their study; None without."""
    try:
        content: dict[str, Any] = read_toml(path) if path else {}
    except StudyError:
        return "", None
    tables = {name: table for name, table in content.items() if isinstance(table, dict)}
    entries = {
        "from": tables.get("from"),
        **{f"{name}.teacher": table.get("teacher") for name, table in tables.items()},
    }
    for key, entry in entries.items():
        if isinstance(entry, dict) and isinstance(entry.get("study"), str):
            return key, entry["study"]
    return "", None
