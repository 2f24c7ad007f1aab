"""The strip on the first screen: what growth cost and bought, measured at both ends and projected beyond."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scalebench.analysis.ends import FACTORS, Ends, ends_of
from scalebench.analysis.series import Series
from scalebench.analysis.trials import PARAMETERS
from scalebench.reporting.fit_tables import compute_note, projected_cell
from scalebench.reporting.quantities import NO_SPREAD, PREFIXED, bounded, quantity, significant
from scalebench.reporting.tables import COVERED, Cell, Table, word


def strip_table(series: Series) -> Table | None:
    """Return the strip of a series of sizes; None of one that grows in data, or that has no two sizes."""
    if series.x is not PARAMETERS or len(series.sizes) < 2:
        return None
    sizes = series.sizes["size"]
    first, last = float(sizes.min()), float(sizes.max())
    columns = ("", f"N = {quantity(first)}", f"N = {quantity(last)}", "factor",
               *(f"projected ×{factor}\nN = {quantity(factor * last)}" for factor in FACTORS))  # fmt: skip
    label, measured = f" ({series.label})" if series.label else "", ends_of(series)
    caption = f"What growth cost and bought{label}. Projections are for a new run. Brackets: 95 % intervals."
    compute = [each for ends in measured if ends.quantity == "compute" for each in ends.projected if each is not None]
    caption += compute_note(compute)
    return Table(caption + _not_projected(measured), columns, tuple(_row(ends) for ends in measured))


def _row(ends: Ends) -> tuple[Cell, ...]:
    unit = ends.unit if ends.unit in PREFIXED else ""
    name = ends.quantity if unit else f"{ends.quantity} ({ends.unit})"
    if ends.reason:
        projected = [projected_cell(each, "\n") for each in ends.projected]
        nothing = all(key is None for _, key in projected)
        rest = [COVERED] * len(projected) if nothing else projected
        return (word(name), word(ends.reason), COVERED, COVERED, *rest)
    digits = 4 if ends.unit == "nats" else 3
    measured = [(quantity(value, unit, digits), value) for value in (ends.smallest, ends.largest)]
    return (word(name), *measured, (_factor(ends), ends.factor), *(projected_cell(q, "\n") for q in ends.projected))


def _not_projected(measured: Sequence[Ends]) -> str:
    """Return what was measured and has no law to project by, in a sentence that begins with a space."""
    refused = (ends for ends in measured if any(each is not None and each.value is None for each in ends.projected))
    names = [ends.quantity for ends in refused if not ends.reason]
    return f" Not projected, as no law could be fitted: {', '.join(names)}." if names else ""


def _factor(ends: Ends) -> str:
    if math.isnan(ends.low):
        return f"×{significant(ends.factor)}"
    value, interval = bounded(ends.factor, ends.low, ends.high)
    return f"×{value}" if interval == NO_SPREAD else f"×{value}\n({interval})"
