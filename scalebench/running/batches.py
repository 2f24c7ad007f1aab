"""Which attempts one worker runs: a batch of trials that are trained together, or one trial.

The worker is that of the first, the lead. ``ensemble.json`` in the lead's attempt folder lists the attempts of the
others, as ``<trial_id>/<attempt>``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from scalebench.store import StoreError, read_json, write_json
from scalebench.store.names import check_inside, check_name

MEMBERS = "ensemble.json"


def write_members(lead: Path, others: Sequence[Path]) -> None:
    """Write which attempts the worker of ``lead`` runs beside it."""
    write_json(lead / MEMBERS, {"members": [f"{attempt.parent.name}/{attempt.name}" for attempt in others]})


def members_of(lead: Path) -> list[Path]:
    """Return the attempts that the worker of ``lead`` runs, itself first.

    Raises ``StoreError`` for a file that is damaged, or that names a folder elsewhere.
    """
    path = lead / MEMBERS
    if not path.exists():
        return [lead]
    names = read_json(path).get("members")
    if not isinstance(names, list) or not all(isinstance(name, str) and name.count("/") == 1 for name in names):
        raise StoreError(f"{path}: members: expected a list of <trial_id>/<attempt>")
    others = [
        lead.parents[1].joinpath(*(check_name(f"{path}: members", part) for part in name.split("/"))) for name in names
    ]
    for attempt in others:
        check_inside(lead.parents[3], attempt)
    return [lead, *others]
