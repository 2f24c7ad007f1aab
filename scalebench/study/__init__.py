"""The study file, its axes, and its trials."""

from scalebench.study.definition import Study, WorkloadTable, study_class
from scalebench.study.sections import FromSection, ParentSection, Point, Section
from scalebench.study.trials import Batching, DataSpec, Parent, Scalar, Trial, trial_id

__all__ = [
    "Batching", "DataSpec", "FromSection", "Parent", "ParentSection", "Point", "Scalar", "Section", "Study", "Trial",
    "WorkloadTable", "study_class", "trial_id",
]  # fmt: skip
