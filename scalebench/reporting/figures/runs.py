"""What happened during the runs: loss curves, compute spent, and spread of the step times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from numpy.typing import NDArray

from scalebench.analysis.series import Series
from scalebench.analysis.study import MAX_STEP_TABLES, StudyAnalysis
from scalebench.analysis.trials import LOSS, PARAMETERS, numeric, training_flops
from scalebench.measure.statistics import OUTLIER_MADS, outlier_mask
from scalebench.reporting.figures.base import trial_label, trial_titles
from scalebench.reporting.quantities import quantity, significant
from scalebench.reporting.svg import MUTED, SERIES_COLORS, Marks, finish, legend, series_style, size_axis
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

Times = NDArray[np.float64]
CURVE_POINTS = 100
DASHES: tuple[Any, ...] = ("", (4, 2), (1, 1.5), (6, 1.5, 1, 1.5))


def with_steps(study: StudyAnalysis) -> Iterator[tuple[pd.Series[Any], Series, pd.DataFrame]]:
    """Yield each trial whose steps were read, smallest first, with its series and its steps."""
    by_index = {index: series for series in study.series for index in series.trials.index}
    for index, row in study.trials[study.trials[study.x.column].notna()].iterrows():
        if row["trial_id"] in study.steps and index in by_index:
            yield row, by_index[index], study.steps[row["trial_id"]]


def subset_note(study: StudyAnalysis) -> str:
    """Return a sentence for the caption where only some of the trials are shown."""
    shown = len(study.steps)
    if shown < MAX_STEP_TABLES:
        return ""
    return f" Shown: {shown} of {len(study.trials)} trials, spread evenly over the sizes."


def binned(steps: pd.DataFrame) -> pd.DataFrame:
    """Average the training loss over equal intervals of steps, at most CURVE_POINTS of them."""
    known = steps.dropna(subset=["train_loss_nats"])
    group = np.arange(len(known)) * min(CURVE_POINTS, len(known)) // max(len(known), 1)
    return known.groupby(group)[["step", "train_loss_nats"]].mean()


def curves_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Training loss over the steps, one line per trial, coloured by size, or by series where there is one size."""
    trials = [(row, series, binned(steps)) for row, series, steps in with_steps(study)]
    trials = [trial for trial in trials if len(trial[2])]
    if not trials:
        return None
    sizes = sorted({float(row[study.x.column]) for row, _, _ in trials})
    by_size = len(sizes) > 1 or len(study.series) == 1
    # Colours distinguish sizes and dashes series; with one size, colours distinguish series until they repeat.
    turn = 1 if by_size else len(SERIES_COLORS)
    dashes = {series.label: DASHES[i // turn % len(DASHES)] for i, series in enumerate(study.series)}
    hues: list[Any] = sizes if by_size else list(dashes)
    colors = {value: SERIES_COLORS[i % len(SERIES_COLORS)] for i, value in enumerate(hues)}
    lines = [
        line.assign(step=line["step"] + 1, trial=i, size=row[study.x.column], series=series.label)
        for i, (row, series, line) in enumerate(trials)
    ]
    # One index over all lines: seaborn aligns by it where it drops the rows of an infinite loss.
    data = pd.concat(lines, ignore_index=True)
    sns.lineplot(data, x="step", y="train_loss_nats", hue="size" if by_size else "series", style="series",
                 units="trial", estimator=None, palette=colors, dashes=dashes, ax=marks.axes, linewidth=1.1,
                 legend=False)  # fmt: skip
    for value, color in colors.items():
        dash = () if by_size else dashes[value]
        marks.axes.plot([], [], color=color, dashes=dash or (None, None), label=quantity(value) if by_size else value)
    for label in filter(None, dashes if by_size else ()):
        marks.axes.plot([], [], color=MUTED, dashes=dashes[label] or (None, None), label=label)
    size_axis(marks.axes, "training step")
    marks.axes.set_ylabel("training loss (nats)")
    what = "size N" if study.x is PARAMETERS else study.x.noun
    legend(marks, title=what if by_size else None)
    rows = []
    for row, series, line in trials:
        ends = [number(line["train_loss_nats"].iloc[k], digits=4) for k in (0, len(line) // 2, -1)]
        rows.append([word(trial_label(row, series)), word(row["trial_id"]), *ends])
    return Caption(
        f"Each line is one trial; the loss is averaged over at most {CURVE_POINTS} equal intervals of its steps."
        f"{subset_note(study)}",
        table(
            "Training loss (nats), averaged over the first, middle and last interval.",
            ("trial", "id", "first", "middle", "last"),
            rows,
        ),
    )


def compute_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Validation loss against the training compute spent."""
    frame = study.trials.assign(compute=training_flops(study.trials))
    frame = frame[frame["valid"] & (frame["compute"] > 0) & frame[LOSS].notna()]
    if frame.empty:
        return None
    rows: list[Sequence[Cell]] = []
    for i, series in enumerate(study.series):
        part, style = frame.loc[frame.index.intersection(series.usable.index)], series_style(i)
        marks.draw(
            part["compute"], part[LOSS], trial_titles(series, part, LOSS, "nats"), **style, label=series.label or None
        )
        means = part.groupby(study.x.column)[["compute", LOSS]].mean()
        marks.axes.plot(means["compute"], means[LOSS], color=style["color"], linewidth=1)
        for _, row in part.iterrows():
            rows.append((word(trial_label(row, series)), number(row["compute"], "FLOP"), number(row[LOSS], "nats", 4)))
    finish(marks, "validation loss (nats)")
    marks.axes.set_xlabel("training compute (FLOP)")
    return Caption(
        "FLOPs per step times steps, against the loss reached; lines join the means of the sizes. A continued run "
        "includes the FLOPs of its parents, a fine-tuned one does not.",
        table("Training compute and loss.", ("trial", "compute", "validation loss"), rows),
    )


def noise_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Step times of each trial relative to its median, and the number of outliers."""
    trials = [
        (trial_label(row, series), row["trial_id"], warm_times(steps)) for row, series, steps in with_steps(study)
    ]
    trials = [trial for trial in trials if len(trial[2])]
    if not trials:
        return None
    data = pd.concat(
        [pd.DataFrame({"ratio": x / np.median(x), "trial": i}) for i, (*_, x) in enumerate(trials)], ignore_index=True
    )
    for inside, width in ((90, 1.2), (50, 4)):
        bars: dict[str, Any] = {
            "errorbar": ("pi", inside),
            "err_kws": {"linewidth": width},
            "markersize": 4,
            "linestyle": "none",
        }
        sns.pointplot(data, x="ratio", y="trial", orient="y", estimator="median", color=SERIES_COLORS[0],
                      ax=marks.axes, **bars)  # fmt: skip
    # A few slow steps would compress all others into a line: they are drawn at the edge.
    low, high = data["ratio"].quantile([0.01, 0.99]) + np.array([-0.02, 0.03])
    rows = []
    for i, (name, trial_id, x) in enumerate(trials):
        outliers = int(outlier_mask(x).sum())
        _slowest(marks, i, x, (low, high))
        rows.append((word(name), word(trial_id), number(len(x)), number(np.median(x), "s"), number(outliers)))
    marks.axes.set_yticks(range(len(trials)), [name.replace(" parameters", "") for name, *_ in trials])
    marks.figure.set_figheight(1.0 + 0.22 * len(trials))
    marks.axes.set(xlabel="step time ÷ median of the trial", ylabel="", xlim=(low, high))
    columns = ("trial", "id", "timed steps", "median", "outliers")
    return Caption(
        "Dots are medians; thick bars span the middle half of a trial's timed steps, thin bars the middle 90 %. "
        + (
            "Arrows are the slowest outliers, at most five per trial, drawn at the edge if they are beyond it. "
            if "arrow" in marks.drawn
            else ""
        )
        + "An outlier is more "
        f"than {OUTLIER_MADS} median absolute deviations from the median; outliers are counted, never dropped."
        f"{subset_note(study)}",
        table("Spread of the step times.", columns, rows),
    )


def _slowest(marks: Marks, place: int, times: Times, edges: tuple[float, float]) -> None:
    """Mark a trial's slowest outliers; those beyond the edges are drawn at the edge."""
    median = np.median(times)
    outliers = np.flatnonzero(outlier_mask(times) & (times > median))
    worst = times[outliers[np.argsort(-times[outliers], kind="stable")[:5]]]
    titles = [f"a step of {quantity(time, 's')}, {significant(time / median)} times the median" for time in worst]
    marks.drawn |= {"arrow"} if worst.size else set()
    marks.draw(np.clip(worst / median, *edges), np.full(len(worst), place), titles, color=SERIES_COLORS[1], marker=">",
               markersize=5, clip_on=False)  # fmt: skip


def warm_times(steps: pd.DataFrame) -> Times:
    """Return the step times (n,) in seconds after warm-up."""
    warm = steps[steps["warm"].astype(bool)] if "warm" in steps else steps
    return np.asarray(numeric(warm, "step_time_s").dropna(), dtype=np.float64)


CURVES = FigureSpec("curves", "Training loss over the steps", curves_figure, diagnostic=True)
COMPUTE = FigureSpec("compute", "Validation loss against compute", compute_figure)
NOISE = FigureSpec("noise", "Spread of the step times", noise_figure, diagnostic=True)
