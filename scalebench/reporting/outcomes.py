"""What a study concludes on a page of several: what it measured, its law, and the published findings that it tests."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trends import Trend, undetermined
from scalebench.analysis.trials import N, numeric
from scalebench.errors import number_of
from scalebench.measure.statistics import mean_interval
from scalebench.reporting.quantities import NBSP, bounded, formula, interval_words, quantity, symbol
from scalebench.reporting.tables import Cell, Table, number, word

FEWEST_SEEDS = 3  # with fewer no finding is confirmed or contradicted
REFUSED = "refused: "  # begins the text of a law that there is not
AGREES, DISAGREES, OPEN, UNTESTED = "agrees", "disagrees", "not resolved", "not tested"


@dataclass(frozen=True)
class Finding:
    """A published finding beside the effect that this study measured.

    ``value`` is an effect that lies above ``null`` where the published finding holds, ``low`` and ``high`` its 95 %
    interval over ``seeds`` independent trainings, of one model each or, with ``each``, of models of several sizes.
    Without a ``value``, ``reason`` is why it was not tested.

        Finding(
            "larger models lose less to pruning", "Frantar et al., arXiv:2309.08520",
            "loss added at density 0.5, 4.00 k minus 31.9 k parameters", *mean_interval(differences),
            seeds=len(differences), unit="nats",
        )
    """

    published: str
    source: str
    effect: str = ""
    value: float | None = None
    low: float = math.nan
    high: float = math.nan
    seeds: int = 0
    each: str = "seed"
    unit: str = ""
    null: float = 0.0
    reason: str = ""

    @classmethod
    def of_differences(
        cls, published: str, source: str, effect: str, differences: Sequence[float], unit: str = "nats"
    ) -> Finding:
        """Return the finding whose effect is the mean of ``differences``, one of each seed, by Student's t."""
        if not len(differences):
            return cls(
                published,
                source,
                effect,
                reason="needs a seed with every trial that is compared; no seed here has them all",
            )
        return cls(published, source, effect, *mean_interval(differences), seeds=len(differences), unit=unit)

    @property
    def verdict(self) -> str:
        """``AGREES`` or ``DISAGREES`` where the whole interval is on one side of ``null``; else ``OPEN``."""
        if self.value is None:
            return UNTESTED
        if self.seeds < FEWEST_SEEDS or not (self.low > self.null or self.high < self.null):
            return OPEN
        return AGREES if self.low > self.null else DISAGREES

    @property
    def measured(self) -> str:
        """The effect with its interval and seeds, or why there is none."""
        if self.value is None:
            return self.reason
        text, interval = bounded(self.value, self.low, self.high)
        unit = f" {self.unit}" if self.unit else ""
        few = f"; fewer than {FEWEST_SEEDS} {self.each}s" if self.seeds < FEWEST_SEEDS else ""
        return f"{self.effect}: {text}{unit} ({interval_words(interval)}, {number_of(self.seeds, self.each)}{few})"


@dataclass(frozen=True)
class Outcome:
    """A study in one row: ``measured`` in a few words, its ``law`` (``law_text``), and the findings that it tests."""

    measured: str
    law: str
    findings: tuple[Finding, ...] = ()


def law_text(trend: Trend) -> str:
    """Return a fitted law with its parameters and their intervals, or the refusal with its reason.

    A fit whose parameters are not determined, or have no intervals, is no result; in others, single parameters may not
    be determined and have no value here.
    """
    if trend.fit is None:
        return f"{REFUSED}{trend.reason}"
    if reason := undetermined(trend.fit) or trend.no_interval:
        return f"{REFUSED}{reason}"
    parts = []
    for name, value in trend.fit.parameters.items():
        if name in trend.fit.undetermined:
            parts.append(f"{symbol(name)} not determined")
            continue
        text, interval = bounded(value, *trend.interval(name))
        at_bound = ", at its bound" if name in trend.fit.bounds_hit else ""
        parts.append(f"{symbol(name)} = {text} ({interval}{at_bound})")
    return f"{formula(trend.fit.law.formula)}: {', '.join(parts)}"


def loss_outcome(study: StudyAnalysis) -> Outcome:
    """Return the outcome of a study of training: its validation loss, with the law of each of at most three series.

    Where its trials determine a law of size and data, it is that one, which holds for the series of all lengths.
    """
    surfaces = [(each.label, each.trend) for each in study.surfaces]
    fitted = [(label, trend) for label, trend in surfaces if not law_text(trend).startswith(REFUSED)]
    fits = fitted or [(each.label, each.loss_all) for each in study.series]
    labels_by_text: dict[str, list[str]] = {}  # the series of each text: refusals are often the same
    for label, trend in fits:
        labels_by_text.setdefault(law_text(trend), []).append(label)
    laws = [f"{', '.join(labels)}: {text}".removeprefix(": ") for text, labels in labels_by_text.items()]
    shown = laws if len(laws) <= 3 else [f"{len(study.series)} series, each with its law in its section"]
    return Outcome("validation loss, time, memory", "; ".join(shown))


COLUMNS = ("study", "workload", "sizes", "trials ok", "seeds", "what was measured", "law", "wall time")


def outcome_row(study: StudyAnalysis, workload: str, outcome: Outcome) -> tuple[Cell, ...]:
    """Return a study's row of the table of outcomes."""
    trials = study.trials
    sizes, seeds = trials.loc[trials["valid"], N], trials.loc[trials["valid"], "seed"].nunique()
    ends = f"{quantity(sizes.min())} to {quantity(sizes.max())} ({sizes.nunique()})" if len(sizes) else None
    done = int(trials["valid"].sum())
    wall = numeric(trials, "wall_time_s").dropna()
    return (
        word(study.name), word(workload), word(ends), (f"{done} of {len(trials)}", done), number(seeds or None),
        word(outcome.measured), word(outcome.law), number(wall.sum() if len(wall) else None, "s"),
    )  # fmt: skip


def outcomes_table(rows: Iterable[tuple[Cell, ...]], links: Sequence[str] = ()) -> Table:
    """Return the outcomes of all studies as a table."""
    caption = (
        "Every study: sizes are non-embedding parameters (how many of them), laws have 95 % intervals or the reason of "
        "their refusal, wall time is the sum over all trials."
    )
    return Table(caption, COLUMNS, tuple(rows), links=tuple(links))


def findings_table(findings: Sequence[tuple[str, Finding]], links: Sequence[str] = ()) -> Table:
    """Return every finding with the name of the study that tests it, and what it measured.

    ``links`` has the id of each finding's study on the page.
    """
    rows = [
        (
            word(study),
            word(f"{finding.published} ({finding.source})"),
            word(finding.verdict),
            word(finding.measured.replace(" %", f"{NBSP}%")),
        )
        for study, finding in findings
    ]
    caption = (
        "Published findings and what these studies measured. An effect is above zero (a ratio above one) where the "
        f"finding holds; a verdict needs {FEWEST_SEEDS} seeds and a 95 % interval on one side."
    )
    return Table(caption, ("study", "published finding", "verdict", "effect measured"), tuple(rows), links=tuple(links))


def findings_sentence(findings: Sequence[Finding]) -> str:
    """Return with how many findings the studies agree and disagree, and how many they leave open."""
    if not findings:
        return "No study on this page tests a published finding."
    counts = [
        sum(finding.verdict == verdict for finding in findings) for verdict in (AGREES, DISAGREES, OPEN, UNTESTED)
    ]
    agree, disagree, unclear, untested = counts
    return (
        f"Of {len(findings)} published findings these studies agree with {agree} and disagree with {disagree}; "
        f"not resolved: {unclear}, not tested: {untested}."
    )
