"""How well the data determine the irreducible loss E: the profile of the objective over it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalebench.analysis.series import Series, to_fit
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import numeric
from scalebench.reporting.figures.laws import why_no_fit
from scalebench.reporting.quantities import bounded, percent
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, series_style
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

if TYPE_CHECKING:
    from scalebench.laws.intervals.profile import Profile


def profile_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Objective above its optimum against a fixed irreducible loss E; the reason where every profile is refused.

    The rise is drawn in percent of the optimum, so that all series share one axis; the 95 % interval of E is that of
    the table of parameters.
    """
    profiles = [(series, series.profile) for series in to_fit(study.series) if series.loss_all.fit is not None]
    if not profiles:
        return why_no_fit(study)
    refusals = [_with_label(series, f"no profile: {why}.") for series, why in profiles if isinstance(why, str)]
    drawn = [(i, series, profile) for i, (series, profile) in enumerate(profiles) if not isinstance(profile, str)]
    if not drawn:
        return " ".join(refusals)
    rows: list[Sequence[Cell]] = []
    for i, series, profile in drawn:
        rows += _draw(marks, series, profile, i)
    for floor in numeric(study.trials, "floor_nats").dropna().unique()[:1]:
        marks.axes.axvline(floor, color=MUTED, linestyle="--", linewidth=1.2, label="known floor")
    marks.axes.set(xlabel="irreducible loss E (nats)", ylabel="rise of the objective (%)")
    legend(marks, direct=False)
    values = [_with_label(series, f"E = {_interval(series)}.") for _, series, _ in drawn]
    band = "The shaded band is the 95 % interval of E. " if "band" in marks.drawn else ""
    return Caption(
        " ".join([*values, *refusals, CAPTION.format(band=band)]), table(TABLE, COLUMNS, rows, series=len(profiles))
    )


CAPTION = (
    "The law is refitted with E fixed at each value; the curve is the rise of the objective above its optimum (hollow "
    "mark). {band}A flat curve means that the data cannot separate E from a smaller exponent."
)
TABLE = "Objective of the law at each fixed E."
COLUMNS = ("series", "E (nats)", "objective", "above the optimum", "rise")


def _with_label(series: Series, text: str) -> str:
    return f"{series.label}: {text}" if series.label else text[0].upper() + text[1:]


def _interval(series: Series) -> str:
    assert series.loss_all.fit is not None
    value, interval = bounded(series.loss_all.fit.parameters["E"], *series.loss_all.interval("E"))
    return f"{value} nats, 95 % interval {interval}"


def _draw(marks: Marks, series: Series, profile: Profile, i: int) -> list[Sequence[Cell]]:
    """Draw one series and return its rows."""
    assert series.loss_all.fit is not None
    style, prefix, best = series_style(i), f"{series.label}: " if series.label else "", series.loss_all.fit
    above = profile.objective - min(profile.objective.min(), best.objective)
    share = above / best.objective
    marks.axes.plot(profile.values, 100 * share, color=style["color"], label=series.label or "profile")
    if all(map(math.isfinite, series.loss_all.interval("E"))):
        marks.axes.axvspan(*series.loss_all.interval("E"), color=style["color"], alpha=0.12, linewidth=0)
        marks.drawn.add("band")
    hollow = style | {"color": PAPER, "markeredgecolor": style["color"]}
    titles = [f"{prefix}optimum: {_interval(series)}"]
    marks.draw([best.parameters["E"]], [0], titles, **hollow, label=None if series.label else "optimum")
    return [
        (word(series.label or "all trials"), number(value, digits=5), number(objective), number(rise),
         (percent(part), float(part)))
        for value, objective, rise, part in zip(profile.values, profile.objective, above, share, strict=True)
    ]  # fmt: skip


PROFILE = FigureSpec("profile", "Profile of the irreducible loss E", profile_figure, diagnostic=True)
