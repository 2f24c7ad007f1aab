"""Decay branches of one run per size: the loss against data for the price of one run, beside runs from scratch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from scalebench.analysis.branches import TOTAL, Agreement, branch_law, branched, branches_of
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import DATA_SEEN, LOSS, N, first_step
from scalebench.reporting.figures.runs import COMPUTE, CURVES, NOISE
from scalebench.reporting.outcomes import Outcome, law_text
from scalebench.reporting.quantities import bounded, percent, quantity, uncertain
from scalebench.reporting.sections import training
from scalebench.reporting.sections.common import StudySection, workload_of
from scalebench.reporting.svg import PAPER, Marks, finish, series_style
from scalebench.reporting.tables import Cell, Table, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

HAGELE = "Hägele et al. 2024, arXiv:2405.18392"
DATA_LABEL = "data D (tokens or samples seen)"


def shows(study: StudyAnalysis) -> bool:
    """Return whether all of a study's trials branch from runs under way, at more than one step."""
    valid = study.trials[study.trials["valid"]]
    started = first_step(valid)
    return workload_of(study) == "training" and len(valid) > 0 and bool((started > 0).all()) and started.nunique() > 1


def figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Draw the loss of branches and of runs from scratch against data, one colour per size."""
    branches, scratch = branched(study), branches_of(study).scratch
    rows: list[tuple[Cell, ...]] = []
    for i, size in enumerate(sorted(branches[N].unique())):
        style = series_style(i)
        hollow = {"color": PAPER, "marker": "o", "markersize": 9, "markeredgecolor": style["color"]}
        for name, frame, mark_style in (("from scratch", scratch, hollow), ("branches", branches, style)):
            part = frame[frame[N] == size]
            means = part.groupby(DATA_SEEN)[LOSS].agg(["mean", "sem", "count"]).reset_index()
            texts = [uncertain(row["mean"], row["sem"]) for row in means.to_dict("records")]
            label = f"{quantity(size)} parameters" if name == "branches" else None
            titles = [f"{name}, {quantity(size)} parameters, {quantity(data)} tokens or samples: {text} nats"
                      for data, text in zip(means[DATA_SEEN], texts, strict=True)]  # fmt: skip
            marks.bars(means[DATA_SEEN], means["mean"] - means["sem"], means["mean"] + means["sem"],
                       color=style["color"])  # fmt: skip
            marks.draw(means[DATA_SEEN], means["mean"], titles, **mark_style, label=label)
            rows += [(word(name), number(size), number(row[DATA_SEEN]), number(row["count"]), (text, row["mean"]))
                     for row, text in zip(means.to_dict("records"), texts, strict=True)]  # fmt: skip
    finish(marks, "validation loss (nats)")
    marks.axes.set_xlabel(DATA_LABEL)
    return Caption(
        "Filled marks are branches, hollow ones runs from scratch of the same length and schedule; means over seeds "
        "with their standard errors.",
        table("Loss by length.", ("", "size", "data", "seeds", "loss (nats)"), rows),
    )


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield whether branches agree with runs from scratch, with equal seeds and with others, and what they save."""
    branches = branches_of(study)
    known = [place for place in branches.places if np.isfinite(place.low)]
    if not branches.places:
        absent = "There are no runs from scratch of the same lengths and schedule among these results"
        yield f"{absent}: whether the branches agree with them is open."
    if known:
        yield agreement_sentence(known)
    pairs, gap = (
        sum(place.pairs for place in branches.places),
        max((p.equal for p in branches.places if p.pairs), default=0.0),
    )
    if pairs:
        exact = "the same loss to the last bit" if gap == 0 else f"losses that differ by at most {gap:.2g} nats"
        yield f"With equal seeds branch and run from scratch have {exact} ({pairs} pairs)."
    if np.isfinite(branches.share):
        lengths = branched(study)[TOTAL].nunique()
        spent, saved = (percent(share, sign=False) for share in (branches.share, 1 - branches.share))
        scratch = f"that runs from scratch to the same {lengths} lengths take"
        yield f"One run per size and seed with its branches took {spent} of the FLOPs {scratch}: {saved} saved."


def agreement_sentence(places: list[Agreement]) -> str:
    """Return at how many sizes and lengths the difference is within noise, and the largest of all."""
    inside = sum(place.within_noise for place in places)
    widest = max(places, key=lambda place: abs(place.difference))
    value, interval = bounded(widest.difference, widest.low, widest.high)
    verdict = "agree" if inside == len(places) else "do not agree everywhere"
    where = f"at {quantity(widest.size)} parameters and {quantity(widest.steps)} steps"
    count = f"at {inside} of {len(places)} sizes and lengths zero lies in the 95 % interval of the difference"
    largest = f"The largest is {value} nats ({interval}), {where}"
    return f"The branches {verdict} with runs from scratch within the noise of the seeds: {count}. {largest}."


def tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield every size and length with both losses."""
    rows = []
    for place in branches_of(study).places:
        value, interval = bounded(place.difference, place.low, place.high)
        is_known = np.isfinite(place.difference)
        rows.append((
            number(place.size), number(place.steps), number(place.branches, digits=4), number(place.scratch, digits=4),
            (value, place.difference) if is_known else word(None), word(interval if is_known else None),
            number(place.equal if place.pairs else None, digits=2),
        ))  # fmt: skip
    columns = (
        "size", "steps in all", "branches (nats)", "from scratch (nats)", "difference, other seeds", "95 % interval",
        "largest difference, equal seeds",
    )  # fmt: skip
    yield table("Branches against runs from scratch.", columns, rows)


def outcome(study: StudyAnalysis) -> Outcome:
    """Return the agreement with runs from scratch and the FLOPs that were saved."""
    branches = branches_of(study)
    known = [place for place in branches.places if np.isfinite(place.low)]
    inside = sum(place.within_noise for place in known)
    agrees = f"within noise of runs from scratch at {inside} of {len(known)} sizes and lengths" if known else ""
    saved = f"{percent(1 - branches.share, sign=False)} of the FLOPs saved" if np.isfinite(branches.share) else ""
    return Outcome("; ".join(filter(None, ("loss against data", agrees, saved))), law_text(branch_law(study)))


BRANCHES = FigureSpec("branches", "Loss of branches and of runs from scratch", figure)
SECTION = StudySection(
    shows=shows,
    sentences=sentences,
    figures=lambda _: (BRANCHES, COMPUTE, CURVES, NOISE),
    columns=lambda _: training.COLUMNS,
    methods=(
        f"A branch continues a run at a constant rate from a checkpoint and decays it ({HAGELE}). Differences are "
        "between the means over seeds that only one side has; their intervals are Student's t with the spread over the "
        "seeds of either side. FLOPs: the run that is branched from counts once, up to its last branch.",
        *training.METHODS,
    ),
    tables=tables,
    outcome=outcome,
)
