"""A caption speaks of what its figure has drawn, and of nothing else: read from the artists, not from flags."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from report_support import broken, changed, compared, synthetic

from scalebench.analysis.study import StudyAnalysis, analyse
from scalebench.reporting.sections.comparison_figures import FIGURES as COMPARED
from scalebench.reporting.sections.comparison_figures import Part, part_of
from scalebench.reporting.sections.comparison_tables import suite_table
from scalebench.reporting.sections.training import FIGURES
from scalebench.reporting.svg import PAPER, canvas
from scalebench.reporting.views import Caption
from scalebench.store import Results

pytestmark = pytest.mark.usefixtures("few_refits")


def face(line) -> str:
    color = line.get_markerfacecolor()
    return "none" if isinstance(color, str) and color == "none" else to_hex(color)


def marks(axes: Axes, marker: str, *, hollow: bool = True) -> bool:
    return any(
        line.get_marker() == marker and (face(line) == PAPER) >= hollow
        for line in axes.lines
        if np.size(line.get_xdata())
    )


def segments(axes: Axes) -> bool:
    """Whether a vertical bar of some length is drawn."""
    return any(
        len(segment) == 2 and segment[0][0] == segment[1][0] and segment[0][1] != segment[1][1]
        for part in axes.collections if isinstance(part, LineCollection) for segment in part.get_segments()
    )  # fmt: skip


# Words of a caption, and whether the artists that they name are there.
WORDS: dict[str, Callable[[Axes], bool]] = {
    r"with the 95 % band|shaded band|95 % bands": lambda axes: (
        any(isinstance(part, PolyCollection) for part in axes.collections)
        or any(p.get_alpha() == 0.12 for p in axes.patches)
    ),
    r"\(star\)": lambda axes: marks(axes, "*"),
    r"The diamond": lambda axes: marks(axes, "D"),
    r"[Hh]ollow mark": lambda axes: any(
        face(line) == PAPER and line.get_marker() not in ("None", "*", "D", "X", ">") for line in axes.lines
    ),
    r"Dashed|dashed": lambda axes: any(line.get_linestyle() == "--" for line in axes.lines),
    r"bars span the 20th|Bars are 95 %|with its standard error|interval of a new run": segments,
    r"Arrows": lambda axes: marks(axes, ">", hollow=False),
    r"Bars split": lambda axes: any(patch.get_alpha() is None for patch in axes.patches),
    r"Grey: ": lambda axes: any(
        to_hex(line.get_color()) == "#777777" and np.size(line.get_xdata()) == 60 for line in axes.lines
    ),
}


# These are said wherever they are drawn; other bars and dashed lines may be named by the legend.
MUST_SAY = (
    r"with the 95 % band|shaded band|95 % bands",
    r"\(star\)",
    "The diamond",
    "[Hh]ollow mark",
    "Grey: ",
    "Arrows",
)


def studies(folder: Path) -> dict[str, Results]:
    full = synthetic(folder)
    frame = full.frame
    plain = {"validation_loss_se_nats": None, "step_time_p20_s": None, "step_time_p80_s": None}
    return {
        "full": full,
        "one seed without errors": Results(frame[frame["seed"] == 0].assign(**plain), (), full.studies),
        "a shared machine": changed(full, 11, timing_exclusive=False),
        "a pure power law": Results(
            frame.assign(validation_loss_nats=4 * frame["params_non_embedding"] ** -0.05), (), full.studies),
        **{name: broken(full)[name] for name in ("two sizes", "one size", "four sizes")},
    }  # fmt: skip


# Figures of many marks, drawn for every case.
SLOW = ("loss", "backtest", "step-time", "profile", "curves", "noise", "memory")


@pytest.fixture(scope="module")
def analysed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, StudyAnalysis]:
    recorded = studies(tmp_path_factory.mktemp("steps"))
    return {name: analyse(results, "synthetic") for name, results in recorded.items()}


@pytest.mark.parametrize(
    "spec", [pytest.param(spec, marks=pytest.mark.slow if spec.key in SLOW else (), id=spec.key) for spec in FIGURES]
)
def test_captions_speak_of_what_is_drawn(analysed: dict[str, StudyAnalysis], spec) -> None:
    for name, study in analysed.items():
        with canvas("x") as drawn:
            caption = spec.draw(drawn, study)
            if not isinstance(caption, Caption):
                continue
            for words, shown in WORDS.items():
                if re.search(words, caption.text):
                    assert shown(drawn.axes), f"{name}: the caption says {words!r}, which is not drawn"
            for words in MUST_SAY:
                if WORDS[words](drawn.axes):
                    assert re.search(words, caption.text), f"{name}: {words!r} is drawn, the caption does not say so"


def test_slow_outliers_alone_are_called_slow(analysed: dict[str, StudyAnalysis]) -> None:
    """A step a hundred times faster than the others is an outlier, but no arrow."""
    study = analysed["full"]
    for steps in study.steps.values():
        steps.loc[150, "step_time_s"] = steps["step_time_s"].median() / 100
    spec = next(spec for spec in FIGURES if spec.key == "noise")
    with canvas("x") as drawn:
        caption = spec.draw(drawn, study)
    assert isinstance(caption, Caption)
    assert "Arrows" not in caption.text
    assert {row[-1][1] for row in caption.table.rows} == {1.0}


# --- comparisons -----------------------------------------------------------------------------------------------------

COMPARED_WORDS: dict[str, Callable[[Axes], bool]] = {
    "bars are its 95 %": segments,
    "Dashed": lambda axes: any(line.get_linestyle() == "--" for line in axes.lines),
    "Lines join": lambda axes: any(
        line.get_linestyle() == "-" and np.size(line.get_xdata()) > 1 for line in axes.lines
    ),
}
NOT_MEASURED = {
    "everything": [],
    "no intervals": ["time_low_s", "time_high_s"],
    "no ceilings": ["matmul_ceiling_flops_per_s", "copy_ceiling_bytes_per_s"],
    "no matrix product": ["matmul_ceiling_flops_per_s"],
}


def parts() -> dict[str, Part]:
    """The comparison whole, without some columns, and of one case, which no line can join to another."""
    rows = compared().frame
    frames = {name: rows.assign(**dict.fromkeys(columns, np.nan)) for name, columns in NOT_MEASURED.items()}
    frames["one case"] = rows[rows["case_index"] == 0]
    return {name: part_of(frame, ["eager", "fused", "wrong"]) for name, frame in frames.items()}


@pytest.mark.parametrize("spec", COMPARED, ids=lambda spec: spec.key)
@pytest.mark.parametrize(("name", "part"), parts().items(), ids=list(parts()))
def test_captions_of_comparisons_speak_of_what_is_drawn(name: str, part: Part, spec) -> None:
    with canvas("x") as drawn:
        caption = spec.draw(drawn, part)
    if not isinstance(caption, Caption):
        assert name in ("no ceilings", "no matrix product")
        return
    for words, shown in COMPARED_WORDS.items():
        assert (words in caption.text) == shown(drawn.axes), f"{words!r}: {caption.text}"


def test_a_comparison_has_its_providers_over_all_cases_in_one_table() -> None:
    rows = {row[0][0]: row for row in suite_table(parts()["everything"]).rows}
    assert set(rows) == {"fused", "wrong"}
    assert [cell[1] for cell in rows["fused"]][1:] == [5, 5, 0, 0, 0, 0, pytest.approx(2), 1]
    assert rows["wrong"][-3][1] == 5
    assert rows["wrong"][-2][1] is None
