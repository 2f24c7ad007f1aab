"""The caption of loss against compute speaks of continued and fine-tuned runs where there are some."""

import numpy as np
import pandas as pd
import pytest
from report_support import STUDY, trial

from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.figures.runs import compute_figure
from scalebench.reporting.svg import canvas


@pytest.mark.parametrize(("parent", "first", "continued", "tuned"),
                         [(None, 0, False, False), ("p", 300, True, False), ("p", 0, False, True)])  # fmt: skip
def test_continued_and_fine_tuned_runs(parent, first, continued, tuned):
    rng = np.random.default_rng(0)
    rows = pd.DataFrame([trial(size, 0, rng) for size in (1000, 4000, 16_000)])
    rows = rows.assign(parent_trial_id=parent, first_step=first, parent_flops=1e9)
    with canvas("a") as marks:
        text = compute_figure(marks, StudyAnalysis("synthetic", STUDY, rows)).text
    assert ("continued" in text) is continued
    assert ("fine-tuned" in text) is tuned
