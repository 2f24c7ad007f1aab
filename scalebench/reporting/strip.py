"""The strip on the first screen: what growth cost and bought, measured at both ends and projected beyond."""

from __future__ import annotations

import math

from scalebench.analysis.ends import FACTORS, Ends, ends_of
from scalebench.analysis.series import Series
from scalebench.analysis.trials import PARAMETERS
from scalebench.reporting.fit_tables import PREFIXED, projected_cell
from scalebench.reporting.quantities import NO_SPREAD, bounded, quantity, significant
from scalebench.reporting.tables import Cell, Table, word


def strip_table(series: Series) -> Table | None:
    """Return the strip of a series of sizes; None of one that grows in data, or that has no two sizes."""
    if series.x is not PARAMETERS or len(series.sizes) < 2:
        return None
    sizes = series.sizes["size"]
    first, last = float(sizes.min()), float(sizes.max())
    columns = ("", f"N = {quantity(first)}", f"N = {quantity(last)}", "factor",
               *(f"projected ×{factor}\nN = {quantity(factor * last)}" for factor in FACTORS))  # fmt: skip
    label = f" ({series.label})" if series.label else ""
    caption = f"What growth cost and bought{label}. Projections are for a new run. Brackets: 95 % intervals."
    return Table(caption, columns, tuple(_row(ends) for ends in ends_of(series)))


def _row(ends: Ends) -> tuple[Cell, ...]:
    unit = ends.unit if ends.unit in PREFIXED else ""
    name = ends.quantity if unit else f"{ends.quantity} ({ends.unit})"
    if ends.reason:
        return (word(f"{name}\n{ends.reason}"), *[word(None)] * 3, *(projected_cell(q, "\n") for q in ends.projected))
    digits = 4 if ends.unit == "nats" else 3
    measured = [(quantity(value, unit, digits), value) for value in (ends.smallest, ends.largest)]
    return (word(name), *measured, (_factor(ends), ends.factor), *(projected_cell(q, "\n") for q in ends.projected))


def _factor(ends: Ends) -> str:
    if math.isnan(ends.low):
        return f"×{significant(ends.factor)}"
    value, interval = bounded(ends.factor, ends.low, ends.high)
    return f"×{value}" if interval == NO_SPREAD else f"×{value}\n({interval})"
