"""The cheapest model that is good, small and fast enough: of those measured, and of those that fitted laws predict."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd

from scalebench.analysis.tradeoff import UNCHANGED
from scalebench.analysis.trends import Trend, cost_trend, trend_of
from scalebench.measure.statistics import new_run_interval

MEASURED, PREDICTED = "measured", "predicted"
REACH = 10.0  # coverage of prediction intervals is tested up to sizes this many times beyond the data
SIZES_TRIED = 400  # of the sizes, in equal ratios, among which the smallest that is good enough is looked for
QUANTITIES = (("loss", "nats"), ("bytes", "B"), ("latency", "s"), ("flops", "FLOP"))


@dataclass(frozen=True)
class Limits:
    """The limits: a loss in nats, bytes of weights, and seconds per forward pass."""

    loss: float
    bytes: float | None = None
    latency: float | None = None

    def broken(self, values: Mapping[str, float]) -> list[str]:
        """Return the limits that these values, by name, exceed or that were not measured."""
        return [
            field.name for field in fields(self)
            if (most := getattr(self, field.name)) is not None and not values[field.name] <= most
        ]  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A value with the 95 % interval of a new run; NaN ends where there is none."""

    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class Candidate:
    """A model within the limits: measured trials of one configuration, or a size that fitted laws predict.

    ``trials`` are the measured ones by id, ``beyond`` is how many times outside the measured sizes a predicted one lies
    (1 inside), ``sure`` whether its whole interval of the loss is within the limit.
    """

    basis: str
    study: str
    settings: str
    size: float
    loss: Estimate
    bytes: Estimate
    latency: Estimate
    flops: Estimate
    trials: tuple[str, ...] = ()
    beyond: float = 1.0
    sure: bool = False


@dataclass(frozen=True)
class Refusal:
    """Why there is no measured model within the limits, or no predicted one among ``models`` of one kind."""

    basis: str
    models: str
    reason: str


@dataclass(frozen=True)
class Cheapest:
    """The answer: the cheapest candidates, and for each kind of model without one the reason."""

    limits: Limits
    candidates: tuple[Candidate, ...]
    refused: tuple[Refusal, ...]


def find_cheapest(points: pd.DataFrame, limits: Limits) -> Cheapest:
    """Return the candidates within the limits that cost the fewest FLOPs, those of the whole chain.

    ``points`` are those of ``tradeoff_points``, of one family on one held-out sample. Of the measured configurations
    the cheapest is taken by its mean loss, and the cheapest whose whole interval is within the limit where that is
    another; of the predicted ones the cheapest of all kinds of model.
    """
    measured = [*measured_candidates(points, limits)]
    within = cheapest_first(measured, limits)
    chosen = within[:1]
    if chosen and not chosen[0].sure:
        chosen += [candidate for candidate in within if candidate.sure][:1]
    refused = [] if within else [_nearest(points, measured, limits)]
    predicted, reasons = _predicted(points, limits)
    return Cheapest(limits, (*chosen, *predicted), (*refused, *reasons))


def cheapest_first(candidates: Sequence[Candidate], limits: Limits) -> list[Candidate]:
    """Return the candidates within the limits by FLOPs, of equally cheap ones the smallest first."""
    within = [candidate for candidate in candidates if not limits.broken(_values(candidate))]
    return sorted(within, key=lambda candidate: (candidate.flops.value, candidate.bytes.value))


def _values(candidate: Candidate) -> dict[str, float]:
    return {name: getattr(candidate, name).value for name, _ in QUANTITIES}


# --- measured --------------------------------------------------------------------------------------------------------


def measured_candidates(points: pd.DataFrame, limits: Limits) -> Iterator[Candidate]:
    """Yield each configuration, its trials of all seeds together: they cost the same FLOPs, their parents included."""
    for _, group in points.groupby(["study", "settings", "unchanged", "size", "flops"], sort=True):
        loss = Estimate(*new_run_interval(group["loss"], group["se"].fillna(0.0)))
        if len(group) == 1:  # its interval would be that of the validation sample alone
            loss = Estimate(loss.value)
        costs = {name: Estimate(float(group[name].median())) for name, _ in QUANTITIES[1:]}
        first = group.iloc[0]
        settings = str(first["settings"]) or UNCHANGED * bool(first["unchanged"])
        yield Candidate(
            MEASURED, str(first["study"]), settings, float(first["size"]), loss, costs["bytes"], costs["latency"],
            costs["flops"], tuple(sorted(group["trial_id"])), sure=loss.high <= limits.loss,
        )  # fmt: skip


def _nearest(points: pd.DataFrame, measured: Sequence[Candidate], limits: Limits) -> Refusal:
    """Return why no measured configuration is within the limits: the lowest loss within the others."""
    if limits.latency is not None and points["latency"].isna().all():
        return Refusal(MEASURED, "all", "no time was measured in a trial that had its cores, or the GPU, to itself")
    others = Limits(math.inf, limits.bytes, limits.latency)
    rest = [candidate for candidate in measured if not others.broken(_values(candidate))]
    if not rest:
        return Refusal(MEASURED, "all", "no configuration is within the limits of bytes and time")
    best = min(rest, key=lambda candidate: candidate.loss.value)
    where = " within the other limits" if limits.bytes or limits.latency else ""
    name = " ".join(filter(None, (best.study, best.settings)))
    reason = f"the lowest loss{where} is {best.loss.value:.4g} nats ({name}, {best.size:,.0f} parameters)"
    return Refusal(MEASURED, "all", reason)


# --- predicted -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reached:
    """The smallest ``size`` of one kind of model whose law of the loss reaches the limit, with the trends by name."""

    study: str
    settings: str
    size: float
    trends: Mapping[str, Trend]
    largest: float

    def value(self, name: str) -> float:
        """Return what a trend predicts for the size, NaN without a fit."""
        fit = self.trends[name].fit
        return math.nan if fit is None else float(fit.predict({"x": np.array([self.size])})[0])

    def candidate(self, limits: Limits) -> Candidate:
        """Return the prediction with its intervals, which take a bootstrap of each fit."""
        each = {name: Estimate(*trend.predict_at({"x": self.size})) if trend.fit else Estimate(math.nan)
                for name, trend in self.trends.items()}  # fmt: skip
        return Candidate(
            PREDICTED, self.study, self.settings, self.size, each["loss"], each["bytes"], each["latency"],
            each["flops"], beyond=max(1.0, self.size / self.largest), sure=each["loss"].high <= limits.loss,
        )  # fmt: skip


def _predicted(points: pd.DataFrame, limits: Limits) -> tuple[list[Candidate], list[Refusal]]:
    """Return the predicted candidate of the fewest FLOPs, at most one, or the reason of each kind of model."""
    reached, reasons = [], []
    unnamed = points["unchanged"].astype(bool) & (points["settings"] == "")
    kind = points["settings"].where(~unnamed, UNCHANGED)
    for (study, settings), group in points.groupby([points["study"], kind], sort=True):
        answer = _predict(group, str(study), str(settings), limits)
        if isinstance(answer, str):
            reasons.append(Refusal(PREDICTED, " ".join(filter(None, (str(study), str(settings)))), answer))
        else:
            reached.append(answer)
    if not reached:
        return [], reasons
    return [min(reached, key=lambda each: (each.value("flops"), each.value("bytes"))).candidate(limits)], []


def _predict(group: pd.DataFrame, study: str, settings: str, limits: Limits) -> Reached | str:
    """Return where one kind of model reaches the limits, or why it does not."""
    if (group.groupby("size")["flops"].nunique() > 1).any():
        return "its models of one size took different FLOPs, as of several lengths of training; choose one with --where"
    loss, largest = trend_of(group, "loss", "power", "size"), float(group["size"].max())
    if loss.fit is None:
        return loss.reason
    sizes = np.geomspace(group["size"].min(), REACH * largest, SIZES_TRIED)
    good = sizes[loss.fit.predict({"x": sizes}) <= limits.loss]
    if not len(good):
        return f"its law of the loss stays above {limits.loss:g} nats up to {REACH * largest:,.0f} parameters"
    trends = {"loss": loss, **{name: _cost_trend(group, name) for name, _ in QUANTITIES[1:]}}
    reached = Reached(study, settings, float(good[0]), trends, largest)
    return _broken(reached, limits) or reached


def _cost_trend(group: pd.DataFrame, name: str) -> Trend:
    return cost_trend(group, name, "size") if group[name].notna().any() else Trend(None, "not measured")


def _broken(reached: Reached, limits: Limits) -> str:
    """Return which limit of the costs a size exceeds, or for which there is no trend; empty where it is within all."""
    for name, _ in QUANTITIES[1:]:
        most, trend = getattr(limits, name, None), reached.trends[name]
        if most is not None and trend.fit is None:
            return f"no trend of its {name}: {trend.reason}"
        if most is not None and trend.flat and reached.size > reached.largest:
            return f"no prediction of its {name}: {trend.flat}"
        if most is not None and reached.value(name) > most:
            needed = f"{limits.loss:g} nats take {reached.size:,.0f} parameters"
            return f"{needed}: {_value_text(name, reached.value(name))}, above {_value_text(name, most)}"
    return ""


def _value_text(name: str, value: float) -> str:
    return f"{value:,.0f} B" if name == "bytes" else f"{1e3 * value:.3g} ms"
