"""What to grow and how: the study file, its axes, and the trials it stands for."""

from scalebench.study.sections import BUDGETS, Point, Study
from scalebench.study.trials import DataSpec, InferenceSpec, TrainSpec, Trial, trial_id

__all__ = ["BUDGETS", "DataSpec", "InferenceSpec", "Point", "Study", "TrainSpec", "Trial", "trial_id"]
