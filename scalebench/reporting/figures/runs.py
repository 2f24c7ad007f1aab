"""What happened during the runs: loss curves, compute spent, and spread of the step times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from scalebench.analysis.series import Series
from scalebench.analysis.study import MAX_STEP_TABLES, StudyAnalysis
from scalebench.analysis.trials import LOSS, PARAMETERS, first_step, numeric, training_flops
from scalebench.measure.statistics import OUTLIER_MADS, outlier_mask
from scalebench.reporting.figures.base import many, styles_of, trial_label, trial_titles, untimed
from scalebench.reporting.quantities import quantity, significant
from scalebench.reporting.svg import MUTED, SERIES_COLORS, Marks, finish, legend, ramp, size_axis
from scalebench.reporting.tables import Cell, Rows, number, table, word
from scalebench.reporting.views import Caption, FigureSpec

Times = NDArray[np.float64]
CURVE_POINTS = 100
DASHES: tuple[Any, ...] = ("-", (0, (4, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)))  # of few series, each its own
SIZES_NAMED = 8  # in the legend of a colour ramp
Curve = tuple[Any, Series, pd.DataFrame]  # the record of a trial, its series and its averaged steps


def with_steps(study: StudyAnalysis) -> Iterator[tuple[pd.Series[Any], Series, pd.DataFrame]]:
    """Yield each trial whose steps were read, smallest first, with its series and its steps."""
    by_index = {index: series for series in study.series for index in series.trials.index}
    trials = study.trials[study.trials[study.x.column].notna() & study.trials["trial_id"].isin(list(study.steps))]
    for index, row in trials.iterrows():
        if index in by_index:
            yield row, by_index[index], study.steps[row["trial_id"]]


def subset_note(study: StudyAnalysis) -> str:
    """Return a sentence for the caption where only some of the trials are shown."""
    count = len(study.steps)
    if count < MAX_STEP_TABLES:
        return ""
    return f" Shown: {count} of {len(study.trials)} trials, spread evenly over the sizes."


def binned(steps: pd.DataFrame) -> pd.DataFrame:
    """Average the training loss over equal intervals of steps, at most CURVE_POINTS of them."""
    known = steps.dropna(subset=["train_loss_nats"])
    group = np.arange(len(known)) * min(CURVE_POINTS, len(known)) // max(len(known), 1)
    return known.groupby(group)[["step", "train_loss_nats"]].mean()


def curves_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Training loss over the steps, one line per trial, coloured by size, or by series where these are what differs."""
    trials = [(row, series, binned(steps)) for row, series, steps in with_steps(study)]
    trials = [trial for trial in trials if len(trial[2])]
    if not trials:
        return None
    sizes = sorted({float(row[study.x.column]) for row, _, _ in trials})
    by_series = many(study.series) or (len(sizes) == 1 and len(study.series) > 1)
    if by_series:  # one line for each: of more, none could be followed
        trials = [_largest([trial for trial in trials if trial[1] is series]) for series in _with_curves(study, trials)]
        lines = [(line, style["color"], "-", series.label)
                 for (_, series, line), style in zip(trials, _styles(study, trials), strict=True)]  # fmt: skip
    else:
        dashes = dict(zip(map(id, study.series), DASHES, strict=False))
        colors = dict(zip(sizes, ramp(len(sizes)), strict=True))
        lines = [(line, colors[float(row[study.x.column])], dashes[id(series)], "") for row, series, line in trials]
    for line, color, dash, label in lines:
        finite = line[np.isfinite(line["train_loss_nats"])]
        marks.axes.plot(finite["step"] + 1, finite["train_loss_nats"], color=color, linewidth=1.1, linestyle=dash,
                        label=label or None)  # fmt: skip
    size_axis(marks.axes, "training step")
    marks.axes.set_ylabel("training loss (nats)")
    if not by_series:
        _legend_of_sizes(marks, study, colors)
    legend(marks, title=None if by_series else _sizes_title(study))
    columns = ("trial", "id", "first", "middle", "last")
    rows = [_curve_cells(*trial) for trial in trials]
    line_meaning = (
        "Each line is the first trial of a series at its largest size" if by_series else "Each line is one trial"
    )
    shade = " The larger the model, the darker the line (in the dark theme, the brighter)." if len(sizes) > 1 else ""
    return Caption(
        f"{line_meaning}; the loss is averaged over at most {CURVE_POINTS} equal intervals of its steps."
        f"{'' if by_series else shade}{'' if by_series else subset_note(study)}",
        table("Training loss (nats), averaged over the first, middle and last interval.", columns, rows),
    )


def _with_curves(study: StudyAnalysis, trials: Sequence[Curve]) -> list[Series]:
    drawn = {id(series) for _, series, _ in trials}
    return [series for series in study.series if id(series) in drawn]


def _styles(study: StudyAnalysis, trials: Sequence[Curve]) -> list[dict[str, Any]]:
    styles = dict(zip(map(id, study.series), styles_of(study.series), strict=True))
    return [styles[id(series)] for _, series, _ in trials]


def _largest(trials: Sequence[Curve]) -> Curve:
    """Return the first trial of the largest size."""
    return max(trials, key=lambda trial: float(trial[0][trial[1].x.column]))


def _sizes_title(study: StudyAnalysis) -> str:
    return "size N" if study.x is PARAMETERS else study.x.noun


def _legend_of_sizes(marks: Marks, study: StudyAnalysis, colors: dict[float, str]) -> None:
    """Enter at most SIZES_NAMED sizes, spread evenly, and the dashes of the series in the legend."""
    sizes = list(colors)
    for i in sorted({*np.linspace(0, len(sizes) - 1, min(len(sizes), SIZES_NAMED)).round().astype(int).tolist()}):
        marks.axes.plot([], [], color=colors[sizes[i]], label=quantity(sizes[i]))
    for series, dash in zip(study.series, DASHES, strict=False):
        if series.label:
            marks.axes.plot([], [], color=MUTED, linestyle=dash, label=series.label)


def _curve_cells(row: pd.Series[Any], series: Series, line: pd.DataFrame) -> Sequence[Cell]:
    ends = [number(line["train_loss_nats"].iloc[k], digits=4) for k in (0, len(line) // 2, -1)]
    return [word(trial_label(row, series)), word(row["trial_id"]), *ends]


def compute_figure(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Validation loss against the training compute spent."""
    frame = study.trials.assign(compute=training_flops(study.trials))
    frame = frame[frame["valid"] & (frame["compute"] > 0) & frame[LOSS].notna()]
    if frame.empty:
        return None
    rows = Rows(len(study.series))
    for series, style in zip(study.series, styles_of(study.series), strict=True):
        part = frame.loc[frame.index.intersection(series.usable.index)]
        means = part.groupby(study.x.column)[["compute", LOSS]].mean()
        few = not many(study.series)
        if few:
            marks.draw(part["compute"], part[LOSS], trial_titles(series, part, LOSS, "nats"), **style,
                       label=series.label or None)  # fmt: skip
        marks.axes.plot(means["compute"], means[LOSS], color=style["color"], linewidth=1,
                        label=None if few else series.label)  # fmt: skip
        rows.add(part, partial(_compute_cells, series))
    finish(marks, "validation loss (nats)")
    marks.axes.set_xlabel("training compute (FLOP)")
    return Caption(
        f"FLOPs per step times steps, against the loss reached; lines join the means of the sizes.{_of_parents(study)}",
        table("Training compute and loss.", ("trial", "compute", "validation loss"), rows),
    )


def _of_parents(study: StudyAnalysis) -> str:
    """Return whether the compute includes that of the trials which these started from, for those that did."""
    if "parent_trial_id" not in study.trials:
        return ""
    started = study.trials["parent_trial_id"].notna()
    continued = started & (first_step(study.trials) > 0)
    with_parents = " A continued run includes the FLOPs of its parents." if continued.any() else ""
    return with_parents + (" A fine-tuned run counts its own steps only." if (started & ~continued).any() else "")


def _compute_cells(series: Series, row: pd.Series[Any]) -> Sequence[Cell]:
    return word(trial_label(row, series)), number(row["compute"], "FLOP"), number(row[LOSS], "nats", 4)


def noise_figure(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Step times of each trial relative to its median, and the number of outliers."""
    import seaborn as sns  # here, as it takes seconds to import and sentences and tables do without

    trials = [
        (trial_label(row, series), row["trial_id"], warm_times(steps)) for row, series, steps in with_steps(study)
    ]
    trials = [trial for trial in trials if len(trial[2])]
    if not trials:
        return untimed(study)
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
