"""The loss against each tuned value: one figure per field of numbers, the best of each size marked."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from report_support import SIZES, STUDY, trial

from scalebench.analysis.study import StudyAnalysis
from scalebench.reporting.figures.tuned import tuned_figures
from scalebench.reporting.views import FigureView, draw_figures

BEST = dict(zip(SIZES, np.geomspace(3e-2, 3e-3, len(SIZES)), strict=True))
RATES = np.geomspace(1e-4, 1e-1, 7)


def study(tuned: list[str], **changes: object) -> StudyAnalysis:
    """Six sizes at seven learning rates, each with its own weight decay, about a best rate that falls with size."""
    rng = np.random.default_rng(0)
    rows = [
        trial(size, seed, rng) | changes | {
            "trial_id": f"{size:08x}{number:04x}{seed:04x}", "learning_rate": rate, "weight_decay": 0.1 * (1 + number),
            "validation_loss_nats": 2 + size**-0.3 + 0.02 * np.log(rate / BEST[size]) ** 2 + 1e-4 * seed,
        }
        for size in SIZES for number, rate in enumerate(RATES) for seed in (0, 1)
    ]  # fmt: skip
    axes = {"params": list(SIZES), "learning_rate": list(RATES), "seed": [0, 1]}
    definition = STUDY | {"axes": axes, "fit": {"law": "power", "best_over": tuned}}
    return StudyAnalysis("synthetic", definition, pd.DataFrame(rows))


def views(tuned: list[str], **changes: object) -> tuple[FigureView, ...]:
    made = study(tuned, **changes)
    return draw_figures("s", tuned_figures(made), made)


def test_each_tuned_number_has_a_figure_with_the_best_of_each_size() -> None:
    rate, decay = views(["learning_rate", "weight_decay"])
    assert (rate.title, decay.title) == (
        "Validation loss against learning rate",
        "Validation loss against weight decay",
    )
    assert rate.table is not None
    best = [row[1][1] for row in rate.table.rows]
    nearest = [min(RATES, key=lambda rate: abs(np.log(rate / BEST[size]))) for size in SIZES]
    assert best == pytest.approx(nearest)
    assert "Weight decay varies as well" in rate.caption
    assert rate.svg.count("best: ") == len(SIZES)
    assert "mathdefault" not in rate.svg + decay.svg  # ticks of a logarithmic axis in the words of TeX
    assert ">0.001<" in rate.svg


def test_fields_that_are_not_tuned_or_of_no_numbers_have_none() -> None:
    assert views([]) == ()
    assert views(["optimizer", "absent"]) == ()
    assert views(["learning_rate"], status="failed") == ()
