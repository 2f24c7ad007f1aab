"""The analysis of a study: everything a reader of its results needs, each part computed once, on first use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.counting import Count
from scalebench.analysis.parents import with_parent_settings
from scalebench.analysis.series import Series, of_one_size, series_of
from scalebench.analysis.surfaces import Surface, surfaces_of
from scalebench.analysis.trials import (
    LENGTH_AXES,
    PARAMETERS,
    SizeAxis,
    by_size,
    prepare,
    size_axis_of,
    split_columns,
    tuned_axes,
    with_budgets,
)
from scalebench.store import Results, StoreError, earlier_ids, of_plans, planned_ids, read_steps

MAX_STEP_TABLES = 48  # of trials whose steps are read: figures cannot show more


@dataclass(frozen=True, eq=False)
class StudyAnalysis:
    """A study, analysed.

    ``definition`` is its ``study.json`` (axes, fit, planned, command, study_toml), ``rows`` its records as stored,
    ``damaged`` has a line for each attempt that cannot be read, and ``left_out`` is the number of trials in its folder
    that it did not plan (of earlier settings, or of more than a narrower ``--set``), which are in no row. ``beside``
    has the records of the other studies in the same results, which it may be compared with. ``count`` counts the
    models that it could build at other sizes; without it their compute is that of a law.
    """

    name: str
    definition: Mapping[str, Any]
    rows: pd.DataFrame = field(repr=False)
    damaged: tuple[str, ...] = ()
    left_out: int = 0
    beside: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    count: Count | None = field(default=None, repr=False)

    @cached_property
    def others(self) -> pd.DataFrame:
        """The trials of the other studies, prepared."""
        return prepare(self.beside)

    @cached_property
    def _prepared(self) -> pd.DataFrame:
        return with_parent_settings(with_budgets(prepare(self.rows), self.definition), self.beside)

    @cached_property
    def x(self) -> SizeAxis:
        """What grows: parameters, or data where all models have one size."""
        return size_axis_of(self._prepared, self.definition)

    @cached_property
    def trials(self) -> pd.DataFrame:
        """One row per trial, prepared (see ``prepare``) and sorted along ``x``."""
        return self._prepared if self.x is PARAMETERS else by_size(self._prepared, self.x)

    @cached_property
    def series(self) -> tuple[Series, ...]:
        """Trials that differ in ``x`` and seed only, at least one series."""
        return tuple(series_of(self.trials, self.definition, self.x, self.count))

    @cached_property
    def surfaces(self) -> tuple[Surface, ...]:
        """The loss over size and data of each series that varies both."""
        return tuple(surfaces_of(self.trials, self.definition))

    @property
    def of_one_size(self) -> bool:
        """Whether there are several series, all of the same single size."""
        return of_one_size(self.series)

    @cached_property
    def steps(self) -> Mapping[str, pd.DataFrame]:
        """The steps of trials by trial_id: of at most ``MAX_STEP_TABLES``, spread evenly, those that can be read."""
        trials, steps = self.trials, {}
        spread = np.linspace(0, len(trials) - 1, min(len(trials), MAX_STEP_TABLES)).round().astype(int)
        for _, row in trials.iloc[spread].iterrows():
            table = _read_steps(row.get("attempt_dir"))
            if table is not None:
                steps[str(row["trial_id"])] = table
        return steps

    @property
    def varied(self) -> tuple[str, ...]:
        """The columns in which trials differ by design: series, tuned axes, seed."""
        return tuple(
            dict.fromkeys([*split_columns(self.trials, self.definition), *tuned_axes(self.definition), "seed"])
        )

    @cached_property
    def usable(self) -> pd.DataFrame:
        """The valid trials, of axes of which each size keeps its best value only those with it."""
        return self.trials.loc[sorted(row for series in self.series for row in series.usable.index)]

    @property
    def settings(self) -> tuple[str, ...]:
        """What keeps usable trials of one size and length apart: the columns that vary, but for the seed."""
        tuned = {"seed", *tuned_axes(self.definition), *LENGTH_AXES}
        return tuple(name for name in self.varied if name not in tuned)

    @property
    def untimed_reason(self) -> str:
        """Why no trial has a step time, where all of them were trained together with others in one process; else ""."""
        return next((each.untimed_reason for each in self.series if each.together and each.timed.empty), "")

    @cached_property
    def missing(self) -> tuple[str, ...]:
        """The ids of planned trials without a readable record."""
        recorded = set(self.trials["trial_id"])
        return tuple(trial_id for trial_id in planned_ids(self.definition) if trial_id not in recorded)

    @property
    def planned(self) -> int:
        """How many trials were planned; 0 where the study does not say."""
        return len(planned_ids(self.definition))

    @property
    def earlier(self) -> int:
        """How many trials only earlier versions of the study planned: its file, or its data, changed between runs."""
        return len(earlier_ids(self.definition))

    @property
    def by_status(self) -> dict[str, int]:
        """How many trials ended with each status, ok first."""
        counts = Counter(self.trials["status"].dropna().astype(str))
        return {status: counts[status] for status in sorted(counts, key=lambda status: (status != "ok", status))}

    @property
    def invalid(self) -> int:
        """How many trials ended ok with invalid numbers."""
        return int(((self.trials["status"] == "ok") & self.trials["invalid_reason"].notna()).sum())


def _read_steps(attempt: Any) -> pd.DataFrame | None:
    if not isinstance(attempt, str) or not attempt:
        return None
    try:
        return read_steps(attempt)
    except StoreError:
        return None


def analyse(results: Results, name: str, count: Count | None = None) -> StudyAnalysis:
    """Analyse one study of results folders: the trials that it planned, all of them if it lists none.

    ``count`` is as in ``StudyAnalysis``.
    """
    recorded, planned = _with_study(results.frame), _with_study(of_plans(results).frame)
    own, damaged = planned["study"] == name, _damaged_by_study(results).get(name, ())
    rows = planned[own]
    left_out = int((recorded["study"] == name).sum()) - len(rows)
    return StudyAnalysis(name, results.studies.get(name) or {}, rows, damaged, left_out, planned[~own], count)


def analyse_all(results: Results, count: Count | None = None) -> tuple[StudyAnalysis, ...]:
    """Analyse every study of results folders, those without a readable ``study.json`` included."""
    return tuple(analyse(results, name, count) for name in study_names(results))


def study_names(results: Results) -> list[str]:
    """Return the names of all studies: those with a ``study.json``, then those that rows name."""
    return list(dict.fromkeys([*results.studies, *_with_study(results.frame)["study"].dropna().astype(str)]))


def _with_study(rows: pd.DataFrame) -> pd.DataFrame:
    return rows if "study" in rows else rows.assign(study="")


def damaged_elsewhere(results: Results) -> tuple[str, ...]:
    """Return the lines on damaged files that lie in no study's folder."""
    return _damaged_by_study(results).get("", ())


def _damaged_by_study(results: Results) -> dict[str, tuple[str, ...]]:
    """Group the lines on damaged files by the study whose folder the path of each passes through, "" for none."""
    names: Sequence[str] = study_names(results)
    lines = results.damaged
    owner = [next((name for name in names if name in Path(line.partition(": ")[0]).parts), "") for line in lines]
    return {name: tuple(line for line, of in zip(lines, owner, strict=True) if of == name) for name in set(owner)}
