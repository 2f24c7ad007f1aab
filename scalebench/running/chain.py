"""Parents over several studies: the studies whose trials must exist before a study can run, oldest first."""

from __future__ import annotations

from scalebench.errors import StudyError, unknown
from scalebench.running.lineage import check_circle, parent_files
from scalebench.running.planning import load_study
from scalebench.study import Study

KEEPING = "run.checkpoint=true"  # what a parent is run with, so that its weights can be started from


def ancestors(study: Study) -> list[Study]:
    """Return the studies that ``study`` builds on, directly or through others, oldest first; each keeps its weights.

    A parent is the file NAME.toml beside the file that names it, else a study that ships. One given by a results
    path is not looked into. Raises ``StudyError`` with one line for a missing study, a circle, and
    for a family that the parents do not have.
    """
    check_circle(study)
    chain = [study]
    while (parents := chain[-1].parents) is not None and parents.study is not None:
        chain.append(_parent_of(chain[-1], parents.KEY, parents.study))
    _check_families(chain)
    return chain[:0:-1]


def _parent_of(study: Study, key: str, name: str) -> Study:
    """Load the study that another one names at ``key``."""
    files = parent_files(study)
    if name not in files:
        raise StudyError([f"{study.origin}: {key}.study: {unknown(name, sorted(files))}"])
    parent = load_study(files[name], [KEEPING])
    if parent.name != name:
        raise StudyError([f"{parent.origin}: name: {parent.name!r}, and {study.origin} names {name!r}"])
    return parent


def _check_families(chain: list[Study]) -> None:
    """Raise ``StudyError`` where a study names a family that the studies it starts from do not train."""
    known: set[str] = set()
    for study in reversed(chain):
        families = study.axes().get("model.family", ())
        for family in families:
            if known and study.start is not None and family not in known:
                line = f"model.family: {family!r}, but its parents are of family {', '.join(sorted(known))}"
                raise StudyError([f"{study.origin}: {line}"])
        known = {family for family in families if family} or known
