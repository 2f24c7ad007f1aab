"""One row per study and series: sizes, loss at both ends, and how loss, step time and memory grow with size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scalebench.analysis.growth import Growth, growth
from scalebench.analysis.series import Series
from scalebench.analysis.trials import PARAMETERS, STEP_TIME, N, numeric
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.reporting.tables import Cell, Table, number, word

COLUMNS = (
    "study", "sizes", "from", "to", "trials ok", "loss at smallest", "loss at largest", "loss exponent",
    "step-time exponent", "memory exponent", "total run time",
)  # fmt: skip


def overview_rows(study: str, all_series: Sequence[Series]) -> Iterator[tuple[Cell, ...]]:
    """Yield the overview of a study: one row per series."""
    for series in all_series:
        if series.x is not PARAMETERS:  # more data costs neither time per step nor memory
            yield _row(": ".join(filter(None, (study, series.label, series.x.noun))), series, None, None)
            continue
        timed = series.timed
        peaks = series.usable[series.memory_column] if series.memory_column else None
        memory = None if peaks is None else growth(series.usable[N], peaks)
        yield _row(
            f"{study}: {series.label}" if series.label else study, series, growth(timed[N], timed[STEP_TIME]), memory
        )


def overview_table(rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Return the overview of several studies as a table."""
    caption = (
        "Every study. Sizes are non-embedding parameters (tokens or samples where the data grows); validation loss is "
        "in nats with its standard error. Exponents have 95 % intervals: α of the fitted loss law, and b of cost ∝ N^b "
        "for time per step and peak memory. Total run time is the sum over all trials."
    )
    return Table(caption, COLUMNS, tuple(rows))


def _row(name: str, series: Series, step_time: Growth | None, memory: Growth | None) -> tuple[Cell, ...]:
    sizes, trials = series.sizes, series.trials
    done = (f"{int(trials['valid'].sum())} of {len(trials)}", int(trials["valid"].sum()))
    work = numeric(trials, "wall_time_s").dropna()
    if sizes.empty:
        return (word(name), word(None), word(None), word(None), done, *[word(None)] * (len(COLUMNS) - 5))
    first, last = sizes.iloc[0], sizes.iloc[-1]
    return (
        word(name),
        (str(len(sizes)), len(sizes)),
        (quantity(first["size"]), float(first["size"])),
        (quantity(last["size"]), float(last["size"])),
        done,
        (uncertain(first["mean"], first["se"]), float(first["mean"])),
        (uncertain(last["mean"], last["se"]), float(last["mean"])),
        _exponent(series),
        _growth_cell(step_time),
        _growth_cell(memory),
        number(work.sum() if len(work) else None, "s"),
    )


def _exponent(series: Series) -> Cell:
    """Return the exponent of the loss, or why it is not resolved."""
    fitted, means = series.loss_all.fit, series.sizes["mean"]
    if fitted is None or "alpha" not in fitted.parameters:
        return word(None)
    if means.iloc[-1] >= means.iloc[0]:
        return "none: the loss does not fall", None
    low, high = series.loss_all.interval("alpha")
    least, most = fitted.law.exponents["alpha"]
    if low <= least and high >= most:
        return f"not resolved ({least:g} to {most:g})", None
    return _with_interval(fitted.parameters["alpha"], low, high), fitted.parameters["alpha"]


def _growth_cell(growth: Growth | None) -> Cell:
    if growth is None:
        return word(None)
    return _with_interval(growth.exponent, growth.low, growth.high), growth.exponent


def _with_interval(value: float, low: float, high: float) -> str:
    text, interval = bounded(value, low, high)
    return f"{text} ({interval})"
