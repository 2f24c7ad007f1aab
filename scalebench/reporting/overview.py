"""One row per study and series: what was tried, what size bought in loss, and how costs grow with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from scalebench.analysis.growth import Growth, growth
from scalebench.analysis.series import Series
from scalebench.analysis.trials import PARAMETERS, STEP_TIME, N, numeric
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.reporting.tables import Cell, Table, number, word

COLUMNS = (
    "study", "sizes", "from", "to", "trials ok", "loss, smallest", "loss, largest", "law's exponent",
    "step time grows as N^", "memory grows as N^", "work",
)  # fmt: skip


def overview_rows(study: str, series: Sequence[Series]) -> Iterator[tuple[Cell, ...]]:
    """Yield the overview of a study: one row per series."""
    for one in series:
        if one.x is not PARAMETERS:  # more data costs neither time per step nor memory
            yield _row(": ".join(filter(None, (study, one.label, one.x.noun))), one, None, None)
            continue
        timed = one.timed
        peaks = one.usable[one.memory_column] if one.memory_column else None
        memory = None if peaks is None else growth(one.usable[N], peaks)
        yield _row(f"{study}: {one.label}" if one.label else study, one, growth(timed[N], timed[STEP_TIME]), memory)


def overview_table(rows: Sequence[tuple[Cell, ...]]) -> Table:
    """Return the overview of several studies as a table."""
    caption = (
        "Every study: sizes in non-embedding parameters (or data, where it is the data that grows), validation loss in "
        "nats with its standard error, the exponent of its law, and how time per step and peak memory grew over the "
        "sizes, each with its 95 % interval. Work adds up the trials."
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
    """Return the exponent, or why there is none to speak of."""
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


def _growth_cell(found: Growth | None) -> Cell:
    if found is None:
        return word(None)
    return _with_interval(found.exponent, found.low, found.high), found.exponent


def _with_interval(value: float, low: float, high: float) -> str:
    one, ends = bounded(value, low, high)
    return f"{one} ({ends})"
