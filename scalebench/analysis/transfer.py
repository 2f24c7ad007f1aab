"""Effective data transferred (Hernandez et al. 2021): the value of earlier training, in data of training from scratch.

Fine-tuned on D_F tokens a model reaches a loss that training from scratch reaches with D_E: D_T = D_E - D_F is the data
that its earlier training was worth. The runs from scratch are found among the other studies of the same results: same
family, size, data, batch size, sequence length and optimizer, without a parent. Between their lengths log D is taken
to be linear in the mean loss; it is not extrapolated beyond the shortest or longest run. All points of a size are read
off one curve and share its error, which the intervals of the law hold (see `curve_errors`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.analysis.curve_errors import shared_errors
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, determined
from scalebench.analysis.trials import DATA_SEEN, LOSS, N, numeric
from scalebench.laws import FitRefused, fit

SAME = ("family", "data_sha256", "batch_size", "sequence_length", "optimizer", "precision")
HELD_OUT = "validation_fraction"  # which records of older versions do not have
RECIPE = (
    "learning_rate",
    "schedule",
    "warmup_steps",
    "decay_fraction",
    "weight_decay",
)  # one of each per size, or nothing compares
FULL = "full"
ROUNDING = 1e-12  # nats: an error below this is that of the arithmetic
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Curve:
    """The loss from scratch of one size: ``tokens`` (n,), mean ``losses`` (n,) and the standard error of one mean.

    The error pools the spread of the seeds over all lengths, with ``freedom`` degrees of freedom. Between two lengths
    the curve is a monotone cubic in the log of the tokens (PCHIP): losses are convex there, so that a straight line
    would lie above them and favour what is compared. Beyond the lengths nothing is known.
    """

    tokens: Array
    losses: Array
    error: float
    freedom: int

    def tokens_for(self, loss: float) -> float:
        """Return the tokens that training from scratch needs for a loss; NaN outside the losses measured."""
        return float(np.exp(self._tokens_by_loss(-loss)))

    def loss_at(self, tokens: float) -> float:
        """Return the loss from scratch on an amount of data; NaN outside the lengths measured."""
        return float(self._loss_by_tokens(np.log(tokens)))

    @cached_property
    def _tokens_by_loss(self) -> Callable[[float], Array]:
        """The log of the tokens at a loss times -1."""
        return _between(-self.losses, np.log(self.tokens))

    @cached_property
    def _loss_by_tokens(self) -> Callable[[float], Array]:
        """The loss at the log of the tokens."""
        return _between(np.log(self.tokens), self.losses)


def _between(places: Array, values: Array) -> Callable[[float], Array]:
    """Return the monotone cubic through values (n,) at rising places (n,); it is NaN outside them."""
    from scipy.interpolate import PchipInterpolator

    cubic: Callable[[float], Array] = PchipInterpolator(places, values, extrapolate=False)
    return cubic


@dataclass(frozen=True)
class Transfer:
    """One size, fine-tuned by one method on ``tokens`` (D_F), with the mean loss over ``seeds``.

    ``effective`` is D_E and ``low`` and ``high`` its 95 % interval, NaN where it ends beyond the runs from scratch or
    where a single seed shows no spread. ``by_seed`` has D_E of each seed, ``losses`` their losses. ``reason`` is why
    there is none.
    """

    size: float
    tokens: float
    method: str
    loss: float
    error: float
    seeds: int
    effective: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    by_seed: tuple[float, ...] = ()
    losses: tuple[float, ...] = ()
    reason: str = ""

    @property
    def known(self) -> bool:
        """Whether the runs from scratch reach its loss."""
        return not self.reason

    @property
    def transferred(self) -> float:
        """D_T in tokens; negative where training from scratch would have done better."""
        return self.effective - self.tokens

    @property
    def ends(self) -> tuple[float, float]:
        """The 95 % interval of D_T."""
        return self.low - self.tokens, self.high - self.tokens


@dataclass(frozen=True, eq=False)
class TransferAnalysis:
    """The transfers of a fine-tuning study, smallest size first; ``reason`` is why there are none.

    ``curves`` are those from scratch by size, which all points of a size share.
    """

    points: tuple[Transfer, ...]
    reason: str = ""
    curves: Mapping[float, Curve | str] = field(default_factory=dict)

    @cached_property
    def law(self) -> Trend:
        """The law D_T = k D_F^a N^b of the models whose weights were all trained, or the reason why not."""
        usable = [point for point in self.fully_tuned if _positive(point)]
        if not usable:
            return Trend(None, self._left_out())
        rows = _law_points(usable)
        try:
            trend = determined(fit(rows, law="transfer"))
        except FitRefused as refusal:
            return Trend(None, "; ".join(filter(None, (str(refusal), self._left_out()))))
        return trend if trend.fit is None or trend.no_interval else self._with_shared_errors(trend, rows)

    def _with_shared_errors(self, trend: Trend, rows: pd.DataFrame) -> Trend:
        """Return the law with the errors of the curves, or the reason why it has no interval."""
        assert trend.fit is not None
        curves = {size: curve for size, curve in self.curves.items() if isinstance(curve, Curve)}
        if single := [f"{size:,.0f}" for size in sorted({*rows["params"]}) if not curves[size].freedom]:
            reason = "have one seed, so that the error which all points of a size share is not known: repeat them"
            return replace(trend, no_interval=f"the runs from scratch of {', '.join(single)} parameters {reason}")
        return replace(trend, shared=shared_errors(trend.fit, rows, curves))

    @property
    def fully_tuned(self) -> list[Transfer]:
        """The points whose weights were all trained."""
        return [point for point in self.points if point.method == FULL]

    def _left_out(self) -> str:
        """Return which points the law cannot use, and why."""
        rows = self.fully_tuned
        outside, covered = sum(not point.by_seed for point in rows), [point for point in rows if point.by_seed]
        worse = sum(not _positive(point) for point in covered)
        parts = [f"{outside} of {len(rows)} points lie outside the runs from scratch"] if outside else []
        parts += [f"at {worse} of {len(rows)} points no data was transferred"] if worse else []
        return self.reason or "; ".join(parts)


def _positive(point: Transfer) -> bool:
    """Return whether every seed transferred a positive amount of data, as far as the runs from scratch show."""
    return bool(point.by_seed) and all(effective > point.tokens for effective in point.by_seed)


def _law_points(points: list[Transfer]) -> pd.DataFrame:
    """Return a row per seed, seeds of one size and amount of data as one configuration."""
    rows = [
        {
            "params": point.size,
            "tokens": point.tokens,
            "transferred": effective - point.tokens,
            "loss": loss,
            "config": place,
        }
        for place, point in enumerate(points)
        for effective, loss in zip(point.by_seed, point.losses, strict=True)
    ]
    return pd.DataFrame(rows)


@lru_cache(maxsize=8)  # its law takes a second, and a page asks for it several times
def transfer_of(study: StudyAnalysis) -> TransferAnalysis:
    """Compare the valid trials of a fine-tuning study with the runs from scratch among the other studies."""
    tuned = study.usable[study.usable[LOSS].notna()]
    if "head" in tuned:
        tuned = tuned[tuned["head"].fillna("own").eq("own")]
    fully = tuned[tuned["method"].fillna(FULL).eq(FULL)] if "method" in tuned else tuned
    differing = [name for name in study.settings if name != "method" and fully[name].nunique() > 1]
    if differing:
        chosen = "choose one with --where, or the best of each size with [fit] best_over"
        return TransferAnalysis((), f"the fine-tuned trials differ in {', '.join(differing)}: {chosen}")
    scratch = runs_from_scratch(study.others, tuned)
    if tuned.empty or scratch.empty:
        missing = "training runs from scratch on the same data, with the same sizes, batch size and sequence length"
        return TransferAnalysis((), f"there are no {missing} among these results")
    curves = {float(str(size)): curve_of(part) for size, part in scratch.groupby(N)}
    return TransferAnalysis(tuple(_points(tuned, curves)), curves=curves)


def loss_from_scratch(study: StudyAnalysis, size: float, tokens: float) -> float:
    """Return the mean loss of the runs from scratch of one size on this number of tokens; NaN if there are none."""
    tuned = study.trials[study.trials["valid"] & study.trials[LOSS].notna()]
    runs = runs_from_scratch(study.others, tuned)
    return float(runs.loc[(runs[N] == size) & (runs[DATA_SEEN] == tokens), LOSS].mean()) if len(runs) else float("nan")


def runs_from_scratch(others: pd.DataFrame, tuned: pd.DataFrame) -> pd.DataFrame:
    """Return the valid training runs without a parent that match the fine-tuned trials in ``SAME`` and held-out share.

    Losses on samples of different size are of different documents.
    """
    if others.empty or tuned.empty or not {*SAME} <= {*others} & {*tuned}:
        return others.iloc[:0]
    workload = others["workload"] if "workload" in others else pd.Series("training", index=others.index)
    parent = others["parent_trial_id"] if "parent_trial_id" in others else pd.Series(None, index=others.index)
    plain = others[others["valid"] & others[LOSS].notna() & workload.eq("training") & parent.isna()]
    return matching(plain, tuned, [*SAME, *([HELD_OUT] if HELD_OUT in plain and HELD_OUT in tuned else [])])


def matching(runs: pd.DataFrame, wanted: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return the runs whose values in ``columns`` are those of a row of ``wanted``."""
    values = set(wanted[list(columns)].astype(str).itertuples(index=False, name=None))
    alike = [row in values for row in runs[list(columns)].astype(str).itertuples(index=False, name=None)]
    return runs[np.array(alike, dtype=bool)]


def curve_of(runs: pd.DataFrame) -> Curve | str:
    """Return the curve of one size's runs from scratch, or the reason why there is none."""
    varied = [name for name in RECIPE if name in runs and runs[name].nunique() > 1]
    if varied:
        return f"its runs from scratch differ in {', '.join(varied)}"
    groups = runs.groupby(DATA_SEEN)[LOSS]
    means, counts = groups.mean(), groups.count()
    if len(means) < 2:
        return "it has runs from scratch of one length only"
    rises = [f"{size:,.0f}" for size, step in zip(means.index[1:], np.diff(means), strict=True) if step >= 0]
    if rises:
        return f"its loss from scratch does not fall at {', '.join(rises)} tokens"
    freedom = int((counts - 1).sum())
    squares = float((runs[LOSS] - groups.transform("mean")).pow(2).sum())
    error = np.sqrt(squares / freedom / counts.min()) if freedom else np.nan
    return Curve(means.index.to_numpy(dtype=float), means.to_numpy(dtype=float), float(error), freedom)


def _points(tuned: pd.DataFrame, curves: dict[float, Curve | str]) -> Iterator[Transfer]:
    method = tuned["method"] if "method" in tuned else pd.Series(FULL, index=tuned.index)
    for _, part in tuned.groupby([tuned[N], method, numeric(tuned, DATA_SEEN)]):
        size, tokens, name = (part[N].iloc[0], part[DATA_SEEN].iloc[0], method[part.index[0]])
        losses = part[LOSS].to_numpy(dtype=float)
        error = float(losses.std(ddof=1) / np.sqrt(len(losses))) if len(losses) > 1 else float("nan")
        point = (float(size), float(tokens), str(name), float(losses.mean()), error, len(losses))
        curve = curves.get(size, "no run from scratch has this size")
        if isinstance(curve, str):
            yield Transfer(*point, reason=f"{size:,.0f} parameters: {curve}")
        else:
            yield _compared(Transfer(*point), losses, curve)


def _compared(point: Transfer, losses: Array, curve: Curve) -> Transfer:
    effective = curve.tokens_for(point.loss)
    about = (point.size, point.tokens, point.method, point.loss, point.error, point.seeds)
    if np.isnan(effective):
        side, end = ("below", -1) if point.loss < curve.losses[-1] else ("above", 0)
        reached = f"the {curve.losses[end]:.3f} of {curve.tokens[end]:,.0f} tokens from scratch"
        run = "longest" if end else "shortest"
        return Transfer(*about, reason=f"{point.size:,.0f} parameters on {point.tokens:,.0f} tokens: the loss "
                        f"{point.loss:.3f} is {side} {reached}, the {run} run")  # fmt: skip
    half = _half_width(point, curve)
    by_seed = tuple(curve.tokens_for(loss) for loss in losses)
    inside = () if any(np.isnan(by_seed)) else by_seed
    low, high = (curve.tokens_for(point.loss + sign * half) for sign in (1, -1))
    return Transfer(*about, effective=effective, low=low, high=high, by_seed=inside, losses=tuple(losses.tolist()))


def _half_width(point: Transfer, curve: Curve) -> float:
    """Return half of the 95 % interval of the difference of both mean losses (Welch's t).

    NaN without replicates, and where all of them are equal to the last digit: copies show no noise.
    """
    from scipy.special import stdtrit  # scipy.stats takes a second to import

    total = point.error**2 + curve.error**2
    if not total > ROUNDING**2:
        return float("nan")
    freedom = total**2 / ((point.error**4) / (point.seeds - 1) + (curve.error**4) / curve.freedom)
    return float(stdtrit(freedom, 0.975) * np.sqrt(total))
