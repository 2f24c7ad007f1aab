"""Compute of a size that no trial has, counted: by the model that the trials' family builds at that size.

A study's ``study.json`` stores its ``dials``: how its models follow from ``model.params``. Only what lies above this
room knows the families; it passes a ``Count`` down.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.trials import N, numeric

NEAR = 0.05  # how far the N of a model may be from the one asked for: as far as from the params of a study file
MOST_CHECKED = 32  # sizes that a dial has to reproduce, spread evenly over those of the trials
ROUNDS = 8  # of solving for the params that give N parameters, which mixtures of experts need


@dataclass(frozen=True)
class Built:
    """The model that a family builds for ``setting`` (``params`` of a study file), counted.

    ``params`` are its non-embedding parameters N, ``flops_per_step`` the FLOPs of a training step, ``active`` those of
    its N that a token passes through, which budgets per parameter refer to.
    """

    family: str
    setting: float
    params: float
    flops_per_step: float
    active: float | None = None


Count = Callable[[Mapping[str, Any], float], Built | None]  # of a dial and a setting; None where it cannot be built


@dataclass(frozen=True)
class Counting:
    """The dials that reproduce the FLOPs of trials; ``reason`` is why there is none."""

    dials: Sequence[Mapping[str, Any]]
    count: Count
    reason: str = ""

    def at(self, params: float) -> Built | None:
        """Return the model of about ``params`` non-embedding parameters; None if none is built, or dials disagree."""
        models = [_near(self.count, dial, params) for dial in self.dials]
        built = [model for model in models if model is not None]
        return built[0] if len(built) == len(models) and len({each.flops_per_step for each in built}) == 1 else None


def counting_of(trials: pd.DataFrame, definition: Mapping[str, Any], count: Count | None) -> Counting:
    """Return the dials of a study that reproduce the FLOPs per step of all ``trials``."""
    dials = definition.get("dials")
    if count is None or not dials:
        return Counting((), _nothing, _why_no_dials(trials, stored=dials is not None))
    checks = list(_checks(trials))
    fitting = [dial for dial in dials if checks and all(_agrees(count, dial, *check) for check in checks)]
    return Counting(fitting, count, "" if fitting else "counting gives other FLOPs than these trials recorded")


def _why_no_dials(trials: pd.DataFrame, *, stored: bool) -> str:
    families = trials.get("family", pd.Series(dtype=object)).dropna().astype(str).unique()
    if own := [name for name in families if name.endswith(".py")]:
        return f"its family is your own file {own[0]}, which does not run here"
    if stored and trials.get("parent_trial_id", pd.Series(dtype=object)).notna().any():
        return "the study of their parents does not store how model.params sets the model"
    if stored:
        return "the study does not train models whose size it sets by model.params"
    return "these results do not store how model.params sets the model: `scalebench run` of the same study adds that"


def _nothing(_dial: Mapping[str, Any], _setting: float) -> None:
    return None


def _checks(trials: pd.DataFrame) -> Iterator[tuple[float, float, float]]:
    """Yield the requested params (NaN where a parent decides the size), N and FLOPs per step of sizes."""
    columns = {"setting": numeric(trials, "requested_params"), N: trials[N], "flops": numeric(trials, "flops_per_step")}
    sizes = pd.DataFrame(columns).dropna(subset=["flops"]).drop_duplicates().sort_values(N)
    spread = np.linspace(0, len(sizes) - 1, min(len(sizes), MOST_CHECKED)).round().astype(int)
    for setting, params, flops in sizes.iloc[spread].itertuples(index=False):
        yield float(setting), float(params), float(flops)


def _agrees(count: Count, dial: Mapping[str, Any], setting: float, params: float, flops: float) -> bool:
    """Whether a dial gives the FLOPs of a trial: exactly by what its study file asked for, else within ``NEAR``."""
    if np.isnan(setting):
        near = _near(count, dial, params)
        return near is not None and abs(near.flops_per_step / flops - 1) <= NEAR
    built = count(dial, setting)
    return built is not None and built.flops_per_step == flops


def _near(count: Count, dial: Mapping[str, Any], params: float) -> Built | None:
    """Return the model within ``NEAR`` of ``params`` non-embedding parameters, N.

    That of ``setting = params`` if it is; else, as of experts, whose dial is not N, the nearest of some rounds.
    """

    def off(model: Built) -> float:
        return abs(model.params / params - 1)

    first = count(dial, params)
    if first is None or off(first) <= NEAR:
        return first
    tried = [first]
    for _ in range(ROUNDS):
        built = count(dial, tried[-1].setting * params / tried[-1].params)
        if built is None:
            break
        tried.append(built)
    nearest = min(tried, key=off)
    return nearest if off(nearest) <= NEAR else None
