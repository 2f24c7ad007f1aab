"""The chain of a study: the trials that its own started from, those before these, and what all of it cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from scalebench.analysis.trials import numeric, own_flops
from scalebench.store import StoreError, read_ancestors, read_header, with_columns

NAMES = ("study", "trial_id", "parent_study", "parent_trial_id", "parent_flops", "attempt_dir")


@dataclass(frozen=True)
class Link:
    """The trials of one study in a chain of studies, each once.

    ``flops`` is what they cost themselves, up to the checkpoint where one was started from. ``whole`` is whether
    neither these results nor the headers of their children have what was before them: then it is what they and all
    trials before them cost, and a trial that several of them started from counts several times. ``place`` is the folder
    of the study as their children recorded it; empty for the study itself.
    """

    study: str
    trials: int
    flops: float
    whole: bool = False
    place: str = ""


def chain_of(name: str, rows: pd.DataFrame) -> list[Link]:
    """Return the chain of a study among the records of all studies, oldest first and the study itself last.

    A study without parents has one link.
    """
    current = rows[rows["study"] == name]
    own = own_flops(current).fillna(0.0)
    linked = with_columns(rows, NAMES)[[*NAMES]].astype(object)
    return [Link(name, len(current), float(own.sum())), *_before(linked[linked["study"] == name], linked, {name})][::-1]


def _before(children: pd.DataFrame, rows: pd.DataFrame, visited: set[str]) -> Iterator[Link]:
    """Yield the links before some trials, newest first."""
    children = children[children["parent_trial_id"].notna()]
    if children.empty:
        return
    reached = numeric(children, "parent_flops").groupby(children["parent_trial_id"]).max()
    missing = children[~children["parent_trial_id"].isin(rows["trial_id"])]
    rows = pd.concat([rows, _recorded_ancestors(missing)])
    parents = rows[rows["trial_id"].isin(reached.index)].drop_duplicates("trial_id")
    before = numeric(parents, "parent_flops").fillna(0.0).set_axis(parents["trial_id"]).reindex(reached.index)
    name = ", ".join(sorted(set(children["parent_study"].dropna()) or set(parents["study"]))) or "a study"
    flops = float((reached - before.fillna(0.0)).sum())
    yield Link(name, len(reached), flops, parents.empty, place_of(children))
    if name not in visited:
        yield from _before(parents, rows, visited | {name})


def _recorded_ancestors(children: pd.DataFrame) -> pd.DataFrame:
    """Return rows of the trials before some trials as these recorded them, for parents that have no record here."""
    ancestors: list[dict[str, Any]] = []
    for _, siblings in children.groupby("parent_trial_id"):
        chain: list[dict[str, Any]] = next(filter(None, map(_ancestors_in, siblings["attempt_dir"].dropna())), [])
        for trial, parent in zip(chain, [*chain[1:], {}], strict=False):
            ancestors.append(
                {name: trial[name] for name in ("study", "trial_id")}
                | {f"parent_{name}": parent.get(name) for name in ("study", "trial_id", "flops")}
            )
    return pd.DataFrame(ancestors, columns=[*NAMES], dtype=object)


def _ancestors_in(attempt: str) -> list[dict[str, Any]]:
    try:
        return read_ancestors(Path(attempt))
    except StoreError:
        return []


def place_of(children: pd.DataFrame) -> str:
    """Return the folder of the study that the parents of some trials lie in, from the first that can be read.

    Where it is gone and a study of that name lies beside the children's, all were moved together, and it is that.
    """
    for attempt in children["attempt_dir"].dropna():
        try:
            parts = Path(str(read_header(Path(str(attempt))).get("parent_dir") or "")).parts
        except StoreError:
            continue
        if "trials" in parts:
            place = Path(*parts[: parts.index("trials")])
            beside = Path(str(attempt)).parents[2].with_name(place.name)
            return str(beside if beside.is_dir() and not place.is_dir() else place)
    return ""


def is_upper_bound(chain: Sequence[Link]) -> bool:
    """Whether what several trials of a chain started from is not known, so that shared parents may count twice."""
    return any(link.whole and link.trials > 1 for link in chain)


def cost_of(chain: Sequence[Link]) -> float:
    """Return the FLOPs of a whole chain."""
    return sum(link.flops for link in chain)
