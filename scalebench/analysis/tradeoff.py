"""What quality costs in bytes and in time: trained models, and what was made of them, as points of one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, LOSS_SE, N, first_step, numeric, own_flops

# A point is worth comparing only with those of the same task on the same held-out sample.
HELD_OUT = ("family", "source", "data_sha256", "validation_fraction", "sequence_length")
COSTS = ("bytes", "latency")
UNCHANGED = "unchanged"
COLUMNS = (
    "weights", "trial_id", "study", "settings", "label", "unchanged", "size", "seed", "loss", "se", "bytes", "latency",
    "flops", "parent", "held_out",
)  # fmt: skip


def tradeoff_points(studies: Sequence[StudyAnalysis]) -> pd.DataFrame:
    """Return a row per valid trial with a loss, and per parent that is no trial of these studies (``COLUMNS``).

    ``bytes`` and ``latency`` are NaN where they were not measured; ``flops`` is the cost of the whole chain.
    ``weights`` identifies a model (by SHA-256, where its weights were kept) and ``parent`` the one that it was made of:
    a trial, or a checkpoint of one, which has the time that was measured beside its children. ``unchanged`` is every
    model that was only trained; ``label`` is the series of any other.
    """
    rows = [_points_of(study) for study in studies]
    points = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=[*COLUMNS])
    parents = pd.concat([_parents_of(study) for study in studies], ignore_index=True) if rows else points
    points["latency"] = points["latency"].fillna(_looked_up(points, parents, "latency"))
    points["bytes"] = points["bytes"].fillna(_looked_up(points, parents, "bytes"))
    known = set(_keys(points))
    absent = parents[[key not in known for key in _keys(parents)]].drop_duplicates(["weights", "held_out"])
    return pd.concat([points, absent], ignore_index=True) if len(absent) else points


def _points_of(study: StudyAnalysis) -> pd.DataFrame:
    """Return the trials of a study that ended ok with a loss."""
    trials = study.trials
    done = trials[trials["valid"] & trials[LOSS].notna()]
    settings, labels = _settings(study, done), _labels(study, done)
    parent, own = _parents(done), _column(done, "weights_sha256").fillna(done["trial_id"])
    return pd.DataFrame(
        {
            "weights": own.astype(str), "trial_id": done["trial_id"].astype(str),
            "study": study.name, "settings": settings, "label": labels,
            "unchanged": parent.isna() | (first_step(done) > 0), "size": done[N], "seed": done["seed"],
            "loss": done[LOSS], "se": done[LOSS_SE], "bytes": numeric(done, "weight_bytes"),
            "latency": _alone(done, "latency_s"), "flops": chain_flops(done), "parent": parent,
            "held_out": _held_out(done),
        }
    )  # fmt: skip


def _parents_of(study: StudyAnalysis) -> pd.DataFrame:
    """Return the unchanged models that trials of a study started from, as measured in the children's runs."""
    trials = study.trials
    done = trials[trials["valid"] & _column(trials, "parent_trial_id").notna()]
    done = done.assign(held_out=_held_out(done), weights=_parents(done))
    rows = []
    for (weights, held_out), children in done.groupby(["weights", "held_out"]):
        loss = numeric(children, "loss_before_nats").dropna()
        if loss.empty:
            continue
        rows.append({
            "weights": str(weights), "trial_id": str(children["parent_trial_id"].iloc[0]),
            "study": "", "settings": "", "label": UNCHANGED, "unchanged": True,
            # No change makes a model larger; a teacher's size is in the records of its students.
            "size": numeric(children, "teacher_params_non_embedding").fillna(children[N]).max(),
            "seed": children["seed"].iloc[0], "loss": loss.iloc[0], "se": np.nan,
            "bytes": numeric(children, "weight_bytes_before").median(),
            "latency": _alone(children, "latency_before_s").median(),
            "flops": numeric(children, "parent_flops").iloc[0], "parent": None, "held_out": held_out,
        })  # fmt: skip
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _looked_up(points: pd.DataFrame, parents: pd.DataFrame, cost: str) -> pd.Series[float]:
    """Return what was measured of each point as the parent of others, NaN for the others."""
    measured: dict[Any, float] = dict(zip(_keys(parents), parents[cost].astype(float), strict=True))
    return pd.Series([measured.get(key, np.nan) for key in _keys(points)], index=points.index, dtype=float)


def _keys(points: pd.DataFrame) -> list[tuple[str, Any]]:
    return [*zip(points["weights"], points["held_out"], strict=True)]


def _parents(trials: pd.DataFrame) -> pd.Series[Any]:
    """Return the id of the weights that each trial started from; missing if it had no parent."""
    return _column(trials, "parent_weights_sha256").fillna(_column(trials, "parent_trial_id"))


def chain_flops(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the FLOPs of each trial (with its teacher's, where it has one) and of all trials before it."""
    return own_flops(trials).fillna(0.0) + numeric(trials, "parent_flops").fillna(0.0)


def _alone(trials: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return times of trials that did not share their cores or GPU, NaN of the others."""
    return numeric(trials, column).where(trials["timing_exclusive"] != False)  # noqa: E712 - unknown counts as alone


def _column(trials: pd.DataFrame, name: str) -> pd.Series[Any]:
    return trials[name] if name in trials else pd.Series(None, index=trials.index, dtype=object)


def _held_out(trials: pd.DataFrame) -> pd.Series[Any]:
    """Return what each trial was validated on, as a key."""
    columns = [_column(trials, name) for name in HELD_OUT]
    keys = [
        "; ".join("" if pd.isna(value) else str(value) for value in values) for values in zip(*columns, strict=True)
    ]
    return pd.Series(keys, index=trials.index, dtype=object)


def _settings(study: StudyAnalysis, trials: pd.DataFrame) -> list[str]:
    """Return the settings of each trial that its study varied, other than size and seed."""
    names = [name for name in study.varied if name in trials and name not in ("params", "seed", N)]
    rows = trials[_telling(study.trials[names].astype(str))].to_dict("records")
    return [", ".join(f"{name} {_text(value)}" for name, value in row.items() if pd.notna(value)) for row in rows]


def _telling(values: pd.DataFrame) -> list[str]:
    """Return the columns that vary, without those that the others decide, such as the bits of a number format."""
    names = [str(name) for name in values if values[name].nunique() > 1]
    for name in list(names):
        rest = [other for other in names if other != name]
        if rest and len(values[names].drop_duplicates()) == len(values[rest].drop_duplicates()):
            names.remove(name)
    return names


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _labels(study: StudyAnalysis, trials: pd.DataFrame) -> list[str]:
    """Return the series of each trial, the name of its study where that is the only one."""
    labels = {trial_id: series.label for series in study.series for trial_id in series.trials["trial_id"]}
    return [labels.get(trial_id) or study.name for trial_id in trials["trial_id"]]


def main_group(points: pd.DataFrame) -> pd.DataFrame:
    """Return the points of the held-out sample on which most changed models were validated; all points if none was."""
    changed = points[~points["unchanged"].astype(bool)]
    largest = changed["held_out"].value_counts()
    return points if largest.empty else points[points["held_out"] == largest.index[0]]


def by_weights(points: pd.DataFrame) -> dict[Any, dict[Any, Any]]:
    """Return the points by what identifies their weights; of equal ones the unchanged model, which is the parent."""
    ordered = points.sort_values("unchanged", key=lambda column: column.astype(bool), kind="stable")
    return {row["weights"]: row for row in ordered.to_dict("records")}


def chain(point: Mapping[Any, Any], points: Mapping[Any, Mapping[Any, Any]]) -> str:
    """Return a trial with the trials that it came from, oldest first; ``points`` are those of ``by_weights``."""
    links, visited = [point], {point["trial_id"]}
    while isinstance(parent := links[0]["parent"], str):
        link = points.get(parent, {"trial_id": parent, "study": "", "settings": "", "parent": None})
        if link["trial_id"] in visited:
            break
        visited.add(link["trial_id"])
        links.insert(0, link)
    return " → ".join(_link(link) for link in links)


def _link(point: Mapping[Any, Any]) -> str:
    name = " ".join(filter(None, (str(point["study"]), str(point["trial_id"])[:8])))
    return f"{name} ({point['settings']})" if point["settings"] else name
