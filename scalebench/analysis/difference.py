"""Two results folders side by side: the same configurations before and after a change, and what the change did.

The noise is that of repeats: the spread between seeds of one configuration, pooled over both folders, on the log scale.
Each configuration has its own, as noise often falls with size (see `own_noise`). An effect is a ratio of means with
Student's t interval, and the p-values of all effects are corrected together (Holm 1979), so that of many comparisons
without a difference none is likely to have a verdict.
Times drift from one session to the next, for all trials alike. If configurations were measured in several sessions of
a folder, the drift between these is in the intervals of times (see `sessions`). If not, it is unknown and not in them,
which `notes` say: run both states in turns, in several sessions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import stdtr, stdtrit  # scipy.stats takes 0.7 s to import

from scalebench.analysis.configuration_labels import labels_by_size
from scalebench.analysis.repeats import Spread, notes_on, spread_of
from scalebench.analysis.sessions import Runs, sessions_of
from scalebench.analysis.trials import LOSS, STEP_TIME, numeric
from scalebench.errors import InputError
from scalebench.store import ENVIRONMENT_COLUMNS, STORE_NAMES

# What is compared, each smaller the better: column -> name and unit.
QUANTITIES = {
    STEP_TIME: ("step time", "s"),
    "latency_median_s": ("latency", "s"),
    "capacity_time_per_request_s": ("time per request", "s"),
    "peak_memory_allocated_bytes": ("memory", "B"),
    "memory_tracked_peak_bytes": ("memory (tracked)", "B"),
    LOSS: ("validation loss", "nats"),
}
TIMES = (STEP_TIME, "latency_median_s", "capacity_time_per_request_s")
# Columns that say what was measured or where, not what was run; names carry their units.
MEASURED = re.compile(
    r"(?!requests_per_s$).*(_s|_nats|_bytes|_j|_seen|_method|_source|_sha256|_backend|_exclusive|_share)|metric_.*|mfu|flops_per_.*|skipped_steps"
    r"|command|seed|requested_params|size|attempt_dir|parent_.*|first_step|resumed_attempts|checked"
    r"|saturated|within_objectives|in_flight_mean|batch_mean"
)
MACHINE, DATA = "machine_id", "data_sha256"
LEVEL = 0.95
BETTER, WORSE, SAME, NOISE, UNKNOWN = "BETTER", "WORSE", "SAME", "within noise", "no repeats"


@dataclass(frozen=True)
class Effect:
    """New over old of one quantity, for one configuration or the geometric mean over all (``label`` "all").

    ``low`` and ``high`` are the 95 % interval of ``ratio``, None without repeats, which are needed to measure it;
    ``p`` is corrected for the number of comparisons.
    """

    label: str
    quantity: str
    unit: str
    old: float
    new: float
    ratio: float
    repeats: tuple[int, int]
    low: float | None = None
    high: float | None = None
    p: float | None = None
    verdict: str = UNKNOWN


@dataclass(frozen=True)
class Difference:
    """All effects, the noise of one run by quantity (as a fraction), and what is in one folder only.

    ``shared`` are times that were measured in both, but in one of them only while other programs ran. ``notes`` tell
    of each time whether its intervals hold the drift between sessions, which quantities have a noise of each
    configuration, and where losses are of other data.
    """

    effects: tuple[Effect, ...]
    noise: Mapping[str, float | None]
    only_old: int
    only_new: int
    shared: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Effect, ...]:
        """What became worse."""
        return tuple(effect for effect in self.effects if effect.verdict == WORSE)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "effects": [asdict(effect) for effect in self.effects],
            "noise": dict(self.noise),
            "only_old": self.only_old,
            "only_new": self.only_new,
            "shared": list(self.shared),
            "notes": list(self.notes),
        }


def difference(old: pd.DataFrame, new: pd.DataFrame, margin: float, *, other_machine: bool = False) -> Difference:
    """Compare valid ok trials of two result tables by configuration.

    An effect within ±``margin`` with its whole interval is SAME. Raises ``InputError`` where no configuration is in
    both, and where they are of different machines unless ``other_machine``.
    """
    old, new = (_usable(frame) for frame in (old, new))
    if empty := [name for name, frame in (("OLD", old), ("NEW", new)) if frame.empty]:
        raise InputError([f"no trial of {' and of '.join(empty)} ended ok with valid numbers"])
    if not other_machine:
        _check_machines(old, new)
    names = _identity(old, new)
    groups = [_by_configuration(frame, names) for frame in (old, new)]
    common = [key for key in groups[0] if key in groups[1]]
    if not common:
        values = [{name: set(frame[name].map(_text)) for name in names} for frame in (old, new)]
        apart = [name for name in names if not values[0][name] & values[1][name]]
        reason = "differ in" if apart else "are matched by"
        raise InputError([f"no configuration is in both; they {reason} {', '.join(apart or names)}"])
    labels = labels_by_size(names, common)
    _check_each_machine(() if other_machine else (MACHINE, "device_name"), old, new, groups, labels)
    effects: list[Effect] = []
    noise: dict[str, float | None] = {}
    session = sessions_of((old, new))
    rows = [(groups[0][key], groups[1][key] + len(old)) for key in labels]
    other_data = _with_other_data(old, new, groups, list(labels))
    notes = [f"{QUANTITIES[LOSS][0]}: not compared at {len(other_data)} of {len(rows)} configurations: other {DATA}"]
    notes = notes if other_data else []
    for column, (name, unit) in QUANTITIES.items():
        measurements = np.concatenate([_values(frame, column) for frame in (old, new)])
        if column == LOSS:
            measurements[[row for number in other_data for part in rows[number] for row in part]] = np.nan
        runs, measured = _runs(measurements, rows, session)
        if not measured:
            continue
        spread = spread_of(runs, timed=column in TIMES)
        effects += _effects(runs, [list(labels.values())[number] for number in measured], name, unit, spread)
        noise[name] = spread.deviation
        notes += [f"{name}: {note}" for note in notes_on(runs, spread, timed=column in TIMES)]
    if not effects:
        raise InputError(["no time, memory or loss was measured in both"])
    shared = [
        QUANTITIES[column][0] for column in TIMES
        if QUANTITIES[column][0] not in noise and all(numeric(frame, column).gt(0).any() for frame in (old, new))
    ]  # fmt: skip
    only_old, only_new = (len(group) - len(common) for group in groups)
    return Difference(tuple(_judged(effects, margin)), noise, only_old, only_new, tuple(shared), tuple(notes))


def _usable(frame: pd.DataFrame) -> pd.DataFrame:
    if "status" not in frame:  # no trial at all
        return frame
    invalid = frame["invalid_reason"].notna() if "invalid_reason" in frame else False
    return frame[(frame["status"] == "ok") & ~invalid]


def _check_machines(old: pd.DataFrame, new: pd.DataFrame) -> None:
    for column in (MACHINE, "device_name"):
        if column in old and column in new:
            before, after = ({str(value) for value in frame[column].dropna()} for frame in (old, new))
            if before and after and before != after:
                sides = " and ".join(", ".join(sorted(side)) for side in (before, after))
                reason = f"different machines ({column}: {sides})"
                raise InputError([f"{reason}: times are not comparable; --other-machine does it anyway"])


def _check_each_machine(
    columns: Sequence[str],
    old: pd.DataFrame,
    new: pd.DataFrame,
    groups: Sequence[Mapping[tuple[str, ...], Any]],
    labels: Mapping[Any, str],
) -> None:
    """Refuse configurations that changed places: folders of the same machines, each with another one's sizes."""
    for column in columns:
        if column not in old or column not in new:
            continue
        for key, label in labels.items():
            before, after = (
                {str(value) for value in frame[column].iloc[group[key]].dropna()}
                for frame, group in zip((old, new), groups, strict=True)
            )
            if before and after and before != after:
                sides = " and ".join(", ".join(sorted(side)) for side in (before, after))
                reason = f"{label} ran on different machines ({column}: {sides})"
                raise InputError([f"{reason}: times are not comparable; --other-machine does it anyway"])


def _identity(old: pd.DataFrame, new: pd.DataFrame) -> list[str]:
    """Return the columns that name a configuration: what was asked for, in both tables."""
    apart = {*STORE_NAMES, *(column.name for column in ENVIRONMENT_COLUMNS)}
    return [
        str(name) for name in old if name in new and name not in apart and not MEASURED.fullmatch(str(name))
    ]  # fmt: skip


def _by_configuration(frame: pd.DataFrame, names: Sequence[str]) -> dict[tuple[str, ...], NDArray[np.intp]]:
    """Return the numbers of the rows of each configuration."""
    keys = frame[list(names)].map(_text).reset_index(drop=True)
    return {tuple(map(str, key)): part.index.to_numpy() for key, part in keys.groupby(list(names), sort=False)}


def _with_other_data(
    old: pd.DataFrame, new: pd.DataFrame, groups: Sequence[Mapping[tuple[str, ...], Any]], keys: Sequence[Any]
) -> list[int]:
    """Return the numbers of the configurations whose losses are of other data in both folders."""
    if DATA not in old or DATA not in new:
        return []
    sides = [[{*frame[DATA].iloc[group[key]].dropna()} for key in keys]
             for frame, group in zip((old, new), groups, strict=True)]  # fmt: skip
    return [number for number, (one, other) in enumerate(zip(*sides, strict=True)) if one and other and one != other]


def _text(value: Any) -> str:
    """Write a cell so that 1, 1.0 and np.int64(1) are one value."""
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        return f"{float(value):.12g}"
    return str(value)


def _values(trials: pd.DataFrame, column: str) -> NDArray[np.float64]:
    """Return a column, [rows], NaN where it was not measured or is not positive, or a time that was not exclusive."""
    values = numeric(trials, column)
    if column in TIMES and "timing_exclusive" in trials:
        values = values.where(trials["timing_exclusive"].fillna(value=True).astype(bool))
    return np.asarray(values.where(values > 0), dtype=np.float64)


def _runs(
    values: NDArray[np.float64], rows: Sequence[Sequence[NDArray[np.intp]]], session: NDArray[np.intp]
) -> tuple[Runs, list[int]]:
    """Return the runs of the configurations that both folders measured, and the numbers of these in ``rows``."""
    known = [[each[~np.isnan(values[each])] for each in both] for both in rows]
    measured = [number for number, both in enumerate(known) if all(part.size for part in both)]
    parts = [part for number in measured for part in known[number]]
    index = np.concatenate([np.zeros(0, dtype=np.intp), *parts])
    cell = np.repeat(np.arange(len(parts)), [part.size for part in parts])
    return Runs(np.log(values[index]), cell, np.unique(session[index], return_inverse=True)[1].reshape(-1)), measured


def _effects(runs: Runs, labels: Sequence[str], name: str, unit: str, spread: Spread) -> list[Effect]:
    """Return the effects on one quantity, that on all configurations first."""
    values = [(np.exp(runs.of(2 * number)), np.exp(runs.of(2 * number + 1))) for number in range(len(labels))]
    effects = [
        _effect(label, name, unit, values[number], runs, [number], spread) for number, label in enumerate(labels)
    ]
    if len(effects) > 1:
        means = tuple(np.exp(np.mean([np.log(both[side]).mean() for both in values], keepdims=True)) for side in (0, 1))
        effects.insert(0, _effect("all", name, unit, means, runs, range(len(labels)), spread))
    return effects


def _effect(
    label: str, name: str, unit: str, values: Any, runs: Runs, configurations: Sequence[int], spread: Spread
) -> Effect:
    """Return the effect on some configurations, by number, with its interval and its p-value."""
    before, after = values
    old, new = (float(np.log(each).mean()) for each in (before, after))
    shift = new - old
    plain = Effect(
        label, name, unit, math.exp(old), math.exp(new), math.exp(shift), (before.size, after.size)
    )  # fmt: skip
    if spread.deviation is None:
        return plain
    error, freedom = spread.error(runs.weights(configurations))
    half = float(stdtrit(freedom, (1 + LEVEL) / 2)) * error
    p = 1.0 if shift == 0 else 0.0 if error == 0 else float(2 * stdtr(freedom, -abs(shift) / error))
    return Effect(**(vars(plain) | {"low": math.exp(shift - half), "high": math.exp(shift + half), "p": p}))


def _judged(effects: Sequence[Effect], margin: float) -> list[Effect]:
    """Return the effects with Holm's corrected p-values, and a verdict on each."""
    known = sorted((effect for effect in effects if effect.p is not None), key=lambda effect: effect.p or 0.0)
    corrected: dict[int, float] = {}
    highest = 0.0
    for i, effect in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - i) * (effect.p or 0.0)))
        corrected[id(effect)] = highest
    return [
        effect if effect.p is None else _with_verdict(effect, corrected[id(effect)], margin) for effect in effects
    ]  # fmt: skip


def _with_verdict(effect: Effect, p: float, margin: float) -> Effect:
    assert effect.low is not None
    assert effect.high is not None
    within = 1 / (1 + margin) <= effect.low and effect.high <= 1 + margin
    apart = p < 1 - LEVEL and abs(math.log(effect.ratio)) > math.log1p(margin)
    word = SAME if within else (BETTER if effect.ratio < 1 else WORSE) if apart else NOISE
    return Effect(**(vars(effect) | {"p": p, "verdict": word}))
