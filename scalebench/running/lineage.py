"""The studies and trials before a study's own: their files, circles among them, what headers have of them."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from scalebench import store
from scalebench.errors import StudyError
from scalebench.running.shipped import shipped_studies, studies_dir
from scalebench.study import Study
from scalebench.study.file import read_toml


def parent_files(study: Study) -> dict[str, Path]:
    """Return the files that a study can name as its parents, by name: those that ship and those beside its own file.

    A file beside the study's own takes precedence.
    """
    origin = Path(study.origin)
    beside = sorted(origin.parent.glob("*.toml")) if origin.exists() else []
    return shipped_studies() | {path.stem: path for path in beside}


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


def studies_beside(path: Path) -> str:
    """Return the names of the studies beside one that has no results, for an error message."""
    if path.exists() or not path.parent.is_dir():
        return ""
    names = [folder.name for folder in sorted(path.parent.iterdir()) if (folder / "trials").is_dir()]
    return f"; studies with results there: {', '.join(names)}" if names else ""


def trials_before(attempt: Path) -> tuple[Mapping[str, Any], ...]:
    """Return the trials before that of an attempt, newest first; of a header of an earlier version its parent alone."""
    if ancestors := store.read_ancestors(attempt):
        return tuple(ancestors)
    identity = store.read_header(attempt).get("identity", {})
    parent = {name: identity.get(f"parent_{name}") for name in ("study", "trial_id", "flops")}
    return () if parent["trial_id"] is None else (parent,)
