"""Training models of one size on growing amounts of data."""

from __future__ import annotations

from scalebench.analysis.series import Series
from scalebench.analysis.trials import DATA
from scalebench.reporting.figures.loss import LOSS_BY_DATA
from scalebench.reporting.figures.profile import PROFILE
from scalebench.reporting.figures.runs import COMPUTE, CURVES, NOISE
from scalebench.reporting.sections import training
from scalebench.reporting.sections.common import StudySection, workload_of
from scalebench.reporting.sentences import held_out_sentence, law_sentence, series_sentences


def details(series: Series) -> tuple[str, str]:
    """Return what one series found, beyond how its loss changed; more data costs no more per step."""
    return law_sentence(series), held_out_sentence(series)


SECTION = StudySection(
    shows=lambda study: workload_of(study) == "training" and study.x is DATA,
    sentences=lambda study: series_sentences(study, details),
    figures=lambda _: (LOSS_BY_DATA, PROFILE, COMPUTE, CURVES, NOISE),
    columns=lambda _: training.COLUMNS,
    methods=training.METHODS,
)
