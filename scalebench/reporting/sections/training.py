"""Training models of several sizes: the loss and its law, predictions, and what size costs."""

from __future__ import annotations

from pathlib import Path

from scalebench.analysis.series import Series
from scalebench.analysis.trials import DATA_SEEN, LOSS, LOSS_SE, STEP_TIME, TRAINING_FLOPS, TRAINING_TIME
from scalebench.reporting.figures.costs import EFFICIENCY, MEMORY, STEP_TIMES
from scalebench.reporting.figures.frontier import FRONTIER
from scalebench.reporting.figures.laws import BACKTEST, RESIDUALS
from scalebench.reporting.figures.loss import LOSS_BY_SIZE
from scalebench.reporting.figures.profile import PROFILE
from scalebench.reporting.figures.runs import COMPUTE, CURVES, NOISE
from scalebench.reporting.figures.tradeoffs import GAP, LOSS_BY_MEMORY, LOSS_BY_TIME
from scalebench.reporting.figures.tuned import tuned_figures
from scalebench.reporting.fit_tables import fit_tables
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of
from scalebench.reporting.sentences import (
    cost_sentence,
    far_sentence,
    held_out_sentence,
    law_sentence,
    series_sentences,
    streak_sentence,
)

TEMPLATE = Path(__file__).with_name("training.html.j2")
ANSWERS = (LOSS_BY_SIZE, STEP_TIMES, MEMORY, COMPUTE, EFFICIENCY, GAP, LOSS_BY_TIME, LOSS_BY_MEMORY, FRONTIER, BACKTEST)
DIAGNOSTICS = (RESIDUALS, PROFILE, CURVES, NOISE)
FIGURES = (*ANSWERS, *DIAGNOSTICS)
COLUMNS = (
    Column("validation loss (nats)", LOSS, digits=5),
    Column("± (validation)", LOSS_SE, digits=2),
    Column("step time", STEP_TIME, "s"),
    Column("training time", TRAINING_TIME, "s"),
    Column("compute", TRAINING_FLOPS, "FLOP"),
    Column("tokens or samples seen", DATA_SEEN),
    *RESOURCES,
)
METHODS = (
    "Every trial trains for the number of steps in its row. Step times are medians over the steps after warm-up; the "
    "first step is reported separately. Losses are in nats on a held-out validation sample, with standard errors "
    "clustered by document or chain. The standard error of a size's mean combines the spread over seeds, divided by "
    "their number, with the validation error, which all seeds share; with one seed it is the validation error alone. "
    "Intervals are 95 % intervals. Sizes are non-embedding parameters.",
    DRAWN_WITH,
)


def details(series: Series) -> tuple[str, ...]:
    """Return what one series found, beyond how its loss changed."""
    costs = (cost_sentence(series, "step_time"), cost_sentence(series, "memory"))
    return law_sentence(series), streak_sentence(series), far_sentence(series), held_out_sentence(series), *costs


SECTION = StudySection(
    shows=lambda study: workload_of(study) == "training",
    sentences=lambda study: series_sentences(study, details),
    figures=lambda study: (*ANSWERS, *tuned_figures(study), *DIAGNOSTICS),
    columns=lambda _: COLUMNS,
    methods=METHODS,
    tables=lambda study: fit_tables(study.series, study.surfaces),
    template=TEMPLATE,
)
