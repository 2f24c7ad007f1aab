"""The trials of a study, prepared for fits: columns as numbers, what is valid, what grows, and what splits them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.analysis.parents import parent_settings

N = "params_non_embedding"
DATA_SEEN = "data_seen"  # tokens_seen, or samples_seen of tasks without tokens
LOSS = "validation_loss_nats"
LOSS_SE = "validation_loss_se_nats"
STEP_TIME = "step_time_median_s"
TRAINING_FLOPS, TRAINING_TIME = "training_flops", "training_time_s"  # computed, in no record

# The first of these that a series measured is "the" memory of its figure and fit: a device allocator's own count, the
# tensors tracked in the untimed pass, and only then the whole process, interpreter and libraries included.
MEMORY_PEAKS = {
    "peak_memory_allocated_bytes": "peak allocated memory",
    "memory_tracked_peak_bytes": "peak memory of the tracked tensors",
    "peak_rss_bytes": "peak resident memory of the process",
}

# These describe how large the model is, or only repeat it: they never split a study into series.
SIZE_AXES = frozenset({"params", "requested_params", N, "size", "depth", "width", "heads", "head_dim", "seed"})
# How long a trial trains: an axis that splits series of sizes, but not surfaces of size and data.
LENGTH_AXES = frozenset({"steps", "tokens", "tokens_per_param", "flops"})
TEACHER = "teacher_params_non_embedding"
ALWAYS_SPLIT = ("family", "implementation", "optimizer", "precision", "device_name", TEACHER)

AT_EDGE = "the best value at"  # in the notes of ``best_over``


@dataclass(frozen=True)
class SizeAxis:
    """What grows along the x axis of a study: a column of its trials, and the words for it.

    ``noun`` is the unit of its values, ``label`` the title of the axis, ``title`` the head of a table's column.
    ``letters`` are those that a law of this axis has in the place of N, A and α.
    """

    column: str
    noun: str
    label: str
    title: str
    letters: str

    def formula(self, text: str) -> str:
        """Return a formula in N, A and α with the letters of this axis."""
        return text.translate(str.maketrans("NAα", self.letters))


PARAMETERS = SizeAxis(N, "parameters", "size N (non-embedding parameters)", "size", "NAα")
DATA = SizeAxis(DATA_SEEN, "tokens or samples seen", "data D (tokens or samples seen)", "tokens or samples seen", "DBβ")


def numeric(frame: pd.DataFrame, column: str) -> pd.Series[float]:
    """Return a column as floats, NaN where it is absent or not a number."""
    if column not in frame:
        return pd.Series(np.nan, index=frame.index, dtype=float)
    recorded = frame[column]
    numbers = recorded if recorded.dtype == np.float64 else pd.to_numeric(recorded, errors="coerce")
    values = numbers.to_numpy(dtype=float, na_value=np.nan)
    return pd.Series(np.where(np.isinf(values), np.nan, values), index=frame.index, name=column)


def prepare(rows: pd.DataFrame) -> pd.DataFrame:
    """Return records with every column the analysis computes with, sorted by size; absent columns are all NaN.

    Adds ``valid`` (ended ok with valid numbers), ``timed`` (valid, and alone on the machine), and what the training of
    each trial took: TRAINING_FLOPS and TRAINING_TIME.
    """
    trials = rows.copy()
    for column in ("status", "invalid_reason", "trial_id", "timing_exclusive"):
        trials[column] = trials[column].astype(object) if column in trials else None
    trials[N] = numeric(trials, N).fillna(numeric(trials, "params"))
    for column in (LOSS, LOSS_SE, STEP_TIME, *MEMORY_PEAKS, "seed"):
        trials[column] = numeric(trials, column)
    trials[DATA_SEEN] = numeric(trials, "tokens_seen").fillna(numeric(trials, "samples_seen"))
    trials["valid"] = (trials["status"] == "ok") & trials["invalid_reason"].isna() & (trials[N] > 0)
    # `!= False` also keeps a trial that does not say whether it had the machine to itself.
    alone = trials["timing_exclusive"] != False  # noqa: E712
    trials["timed"] = trials["valid"] & alone & (trials[STEP_TIME] > 0)
    trials[TRAINING_FLOPS] = training_flops(trials)
    trials[TRAINING_TIME] = trials[STEP_TIME] * own_steps(trials)
    return by_size(trials, PARAMETERS)


def by_size(trials: pd.DataFrame, x: SizeAxis) -> pd.DataFrame:
    """Sort trials along an axis, then by seed; those without a place on it are not valid."""
    placed = trials.assign(valid=trials["valid"] & (trials[x.column] > 0))
    return placed.sort_values([x.column, "seed", "trial_id"], kind="stable").reset_index(drop=True)


def total_params(trials: pd.DataFrame) -> pd.Series[float]:
    """Return all parameters of each trial; the non-embedding ones where only those are recorded."""
    return numeric(trials, "params").fillna(trials[N])


def active_params(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the non-embedding parameters that a token passes through: all of them but for experts."""
    active = numeric(trials, "params_active") + trials[N] - numeric(trials, "params")
    return active.fillna(trials[N])


def training_flops(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the FLOPs of the training that each trial's loss and data come from, NaN where they are not known.

    A continued run (``first_step`` above 0) adds the FLOPs of its parents, as its data include theirs. A run that
    starts from a parent's weights only (fine-tuning, ``first_step`` 0) counts its own steps, as its data do.
    """
    return own_flops(trials) + numeric(trials, "parent_flops").where(first_step(trials) > 0, 0.0)


def own_flops(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the FLOPs of each trial itself, of a student with its teacher's forward passes; NaN where not known.

    Where the teacher's outputs were stored before the first step (``top_k``), they are in no step.
    """
    return numeric(trials, "total_flops").fillna(numeric(trials, "flops_per_step") * own_steps(trials))


def own_steps(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the steps that each trial itself took, without those of its parents."""
    return numeric(trials, "steps").fillna(numeric(trials, "stop_step"))


def first_step(trials: pd.DataFrame) -> pd.Series[float]:
    """Return the steps that a continued run had behind it when it began; 0 for others and for older records."""
    return numeric(trials, "first_step").fillna(0.0)


def steps_are_alike(trials: pd.DataFrame) -> bool:
    """Whether all steps of continued runs, those of their parents included, took the FLOPs of their own."""
    continued = trials[first_step(trials) > 0]
    steps = first_step(continued) + own_steps(continued)
    return bool(np.isclose(training_flops(continued), numeric(continued, "flops_per_step") * steps, rtol=1e-6).all())


def tuned_axes(definition: Mapping[str, Any]) -> list[str]:
    """Return the axes of which each size keeps its best value."""
    return [str(axis) for axis in (definition.get("fit") or {}).get("best_over") or []]


def split_columns(trials: pd.DataFrame, definition: Mapping[str, Any]) -> list[str]:
    """Return the columns whose values make separate series: axes other than size, seed and tuned ones that vary.

    Settings of the models that trials started from are among them, where these differ in them.
    """
    axes = definition.get("axes") or {}
    varied = [axis for axis, values in axes.items() if isinstance(values, list) and len(values) > 1]
    names = [
        name
        for name in dict.fromkeys([*ALWAYS_SPLIT, *varied, *_branching(trials), *parent_settings(trials)])
        if name in trials
    ]
    leave_out = SIZE_AXES.union(tuned_axes(definition))
    return [name for name in names if name not in leave_out and len(set(map(str, present(trials[name])))) > 1]


def present(values: pd.Series[Any]) -> NDArray[np.object_]:
    """Return the values of a column that are not missing, as Python's objects."""
    array = values.to_numpy(dtype=object)
    return array[~pd.isna(array)]


def _branching(trials: pd.DataFrame) -> list[str]:
    """Return the column of the step that trials went on from, where one run has branches at several."""
    if not {"parent_trial_id", "first_step"} <= {*trials}:
        return []
    return ["first_step"] if (trials.groupby("parent_trial_id")["first_step"].nunique() > 1).any() else []


def with_budgets(trials: pd.DataFrame, definition: Mapping[str, Any]) -> pd.DataFrame:
    """Add a column for each axis of budgets that records do not have: the budget that a trial's training is nearest to.

    Records have the steps that a budget in tokens, tokens per parameter or FLOPs came to at a size. Models of one size
    need no such column: they grow in data.
    """
    axes = definition.get("axes") or {}
    spent = {
        "flops": trials[TRAINING_FLOPS],
        "tokens": trials[DATA_SEEN],
        "tokens_per_param": trials[DATA_SEEN] / active_params(trials),
    }
    for name, amounts in spent.items():
        budgets = axes.get(name)
        if name in trials or not isinstance(budgets, list) or len(budgets) < 2 or trials[N].nunique() < 2:
            continue
        distances = np.abs(np.log(amounts.to_numpy()[:, None]) - np.log(np.asarray(budgets, dtype=float)))
        nearest = np.asarray(budgets, dtype=float)[distances.argmin(axis=1)]
        trials = trials.assign(**{name: np.where(amounts > 0, nearest, np.nan)})
    return trials


def size_axis_of(trials: pd.DataFrame, definition: Mapping[str, Any]) -> SizeAxis:
    """Return what a study grows: data where all models have one size and trials of a series differ in data."""
    columns, done = split_columns(trials, definition), trials[trials["valid"]]
    data_sizes = done.groupby(columns, dropna=False)[DATA_SEEN].nunique() if columns else done[[DATA_SEEN]].nunique()
    return DATA if trials[N].nunique() == 1 and (data_sizes > 1).any() else PARAMETERS


def best_over(trials: pd.DataFrame, axes: Sequence[str], x: SizeAxis) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Keep, at each size, the trials of the tuned values with the lowest mean loss.

    The second value has a line for each axis of numbers and end: at which sizes the best value is the smallest or
    largest tried.
    """
    axes = [axis for axis in axes if axis in trials]
    if not axes or trials.empty:
        return trials, ()
    parts: list[pd.DataFrame] = []
    at_ends: dict[tuple[str, str, Any], list[float]] = {}
    for size, group in trials.groupby(x.column):
        means = group.groupby(axes, dropna=False)[LOSS].mean()
        if means.isna().all():
            continue
        best = means.idxmin()
        values = best if isinstance(best, tuple) else (best,)
        tuned = dict(zip(axes, values, strict=True))
        parts.append(group[np.logical_and.reduce([_equals(group[axis], value) for axis, value in tuned.items()])])
        for axis, value in tuned.items():
            tried = [] if isinstance(value, str | bool | np.bool) else sorted(numeric(group, axis).dropna().unique())
            if len(tried) > 1 and value in (tried[0], tried[-1]):
                end = "smallest" if value == tried[0] else "largest"
                at_ends.setdefault((axis, end, value), []).append(float(str(size)))
    notes = tuple(_at_end(*found, sizes, len(parts), x) for found, sizes in at_ends.items())
    return (pd.concat(parts) if parts else trials.iloc[:0]), notes


def _equals(values: pd.Series[Any], value: Any) -> pd.Series[bool]:
    """Return where a column has a value, or has none where the value is NaN."""
    return values.isna() if pd.isna(value) else values == value


def _at_end(axis: str, end: str, value: Any, sizes: Sequence[float], tuned: int, x: SizeAxis) -> str:
    """Return a warning that the best value of an axis is the smallest or largest tried, at these of the tuned sizes."""
    where = f"{sizes[0]:,.0f} {x.noun}" if len(sizes) == 1 else f"{len(sizes)} of {tuned} sizes"
    further = "smaller" if end == "smallest" else "larger"
    return f"{axis}: {AT_EDGE} {where}, {value:g}, is the {end} tried; a {further} one may do better"


def means_per_size(usable: pd.DataFrame, x: SizeAxis) -> pd.DataFrame:
    """Return one row per size (column ``size``): trials, mean loss, its standard error, spread over seeds.

    Where only one seed ran, the spread between seeds is unknown: the error is the validation sample's alone.
    """
    done = usable.dropna(subset=[LOSS])
    squares = done[LOSS_SE].astype(float) ** 2
    groups = done.assign(known=squares, all=squares.fillna(0.0)).groupby(x.column)
    number, seed_sd = groups.size(), groups[LOSS].std(ddof=1)
    # As ``combined_standard_error``, of all sizes at once.
    combined = (seed_sd**2 / number + groups["all"].mean()) ** 0.5
    se = combined.fillna(groups["known"].mean() ** 0.5)
    columns = {"trials": number, "mean": groups[LOSS].mean(), "se": se, "seed_sd": seed_sd}
    return pd.DataFrame(columns).rename_axis("size").reset_index()
