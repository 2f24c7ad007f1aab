"""The figure that says how well the irreducible loss is pinned down: the profile of the objective over it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from scalebench.analysis.series import Series, numeric
from scalebench.laws import FitRefused
from scalebench.reporting.figures import Analysis, Words
from scalebench.reporting.law_figures import why_no_fit
from scalebench.reporting.quantities import bounded
from scalebench.reporting.svg import MUTED, PAPER, Marks, legend, look
from scalebench.reporting.tables import Cell, number, table, word

if TYPE_CHECKING:
    from scalebench.laws.intervals.profile import Profile

STUDIES = 400  # simulated for the 95 % limit: with 200 an end moved by a seventh of the interval between two seeds


def profile_figure(marks: Marks, study: Analysis) -> Words | str | None:
    """Objective above its optimum against the irreducible loss E held there; the reason where every profile is refused.

    The rise is drawn in units of the rise at the true E that 95 % of simulated studies stay below, so that all series
    share one axis and every interval ends at 1.
    """
    found = [(one, _profiled(one)) for one in study.series if one.loss_all.fit is not None]
    if not found:
        return why_no_fit(study)
    refusals = [_named(one, f"no profile: {why}.") for one, why in found if isinstance(why, str)]
    drawn = [(i, one, profile) for i, (one, profile) in enumerate(found) if not isinstance(profile, str)]
    if not drawn:
        return " ".join(refusals)
    rows: list[Sequence[Cell]] = []
    for i, one, profile in drawn:
        rows += _draw(marks, one, profile, i)
    marks.axes.axhline(1, color=MUTED, linewidth=1.2)
    for floor in numeric(study.frame, "floor_nats").dropna().unique()[:1]:
        marks.axes.axvline(floor, color=MUTED, linestyle="--", linewidth=1.2, label="known floor")
    marks.axes.set(xlabel="irreducible loss E (nats)", ylabel="rise of the objective (95 % limit = 1)")
    legend(marks)
    ends = [_named(one, f"E = {_interval(one, profile)}.") for _, one, profile in drawn]
    return Words(" ".join([*ends, *refusals, CAPTION]), table(TABLE, COLUMNS, rows, series=len(found)))


CAPTION = (
    "The law is fitted anew with E held at each value; the objective rises from its optimum (hollow mark). The 95 % "
    f"interval ends (full marks) where it has risen by more than at the true E of 95 % of {STUDIES} simulated studies, "
    "or at the bound of E. A flat curve says that the data hardly tell E from a smaller exponent."
)
TABLE = "Objective of the law at each held E."
COLUMNS = ("series", "E (nats)", "objective", "above the optimum", "over the 95 % limit")


def _profiled(one: Series) -> Profile | str:
    """Profile the law fitted to every size, or say why that is refused."""
    assert one.loss_all.fit is not None
    try:
        profile = one.loss_all.fit.profile("E", n=STUDIES)
    except FitRefused as refusal:
        return str(refusal)
    return profile if profile.rise > 0 else "the points lie on the law exactly, so there is no noise to calibrate by"


def _named(one: Series, text: str) -> str:
    return f"{one.label}: {text}" if one.label else text[0].upper() + text[1:]


def _interval(one: Series, profile: Profile) -> str:
    assert one.loss_all.fit is not None
    value, interval = bounded(one.loss_all.fit.parameters["E"], *profile.interval)
    return f"{value} nats, {interval} at 95 %"


def _draw(marks: Marks, one: Series, profile: Profile, i: int) -> list[Sequence[Cell]]:
    """Draw one series and return its rows."""
    assert one.loss_all.fit is not None
    style, prefix, best = look(i), f"{one.label}: " if one.label else "", one.loss_all.fit
    above = profile.objective - min(profile.objective.min(), best.objective)
    share = above / profile.rise
    marks.axes.plot(profile.values, share, color=style["color"])
    ends = [f"{prefix}{side} end of the 95 % interval: E = {end:.4f} nats"
            for side, end in zip(("lower", "upper"), profile.interval, strict=True)]  # fmt: skip
    marks.draw(profile.values[[0, -1]], share[[0, -1]], ends, **style, label=one.label or "ends of the interval")
    hollow = style | {"color": PAPER, "markeredgecolor": style["color"]}
    titles = [f"{prefix}optimum: {_interval(one, profile)}"]
    marks.draw([best.parameters["E"]], [0], titles, **hollow, label=None if one.label else "optimum")
    return [
        (word(one.label or "all trials"), number(value, digits=5), number(objective), number(rise),
         (f"{part:.2f}", float(part)))
        for value, objective, rise, part in zip(profile.values, profile.objective, above, share, strict=True)
    ]  # fmt: skip
