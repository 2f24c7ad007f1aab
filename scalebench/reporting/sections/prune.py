"""Pruning trained models: loss against density by size and method, the dense model of equal bytes, and the law."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from scalebench.analysis.pruning import (
    CONTROL,
    FEWEST_DENSITIES,
    SIZE,
    TOLERATED_NATS,
    Estimate,
    against_control,
    against_dense,
    groups,
    pruned,
    slope,
    slopes,
    sparsity_fits,
    tolerated,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.trials import LOSS, LOSS_SE
from scalebench.laws import Fit
from scalebench.reporting.figures.pruning import BYTES, DENSITIES, LATENCY, METHODS_COMPARED, TOLERANCE
from scalebench.reporting.outcomes import FEWEST_SEEDS
from scalebench.reporting.quantities import (
    NBSP,
    bounded,
    formula,
    interval_words,
    percent,
    quantity,
    significant,
    symbol,
)
from scalebench.reporting.sections.common import DRAWN_WITH, Column, StudySection, workload_of
from scalebench.reporting.sections.prune_findings import law_sentence, outcome, parameters
from scalebench.reporting.tables import Cell, Table, number, table, word

FEWEST_FOR_PERCENTILES = 10
COLUMNS = (
    Column("density", "density_found"),
    Column("loss added (nats)", "loss_added_nats"),
    Column("± (paired)", "loss_added_se_nats", digits=2),
    Column("validation loss (nats)", LOSS, digits=5),
    Column("± (validation)", LOSS_SE, digits=2),
    Column("weights", "weight_bytes", "B"),
    Column("packed", "packed_bytes", "B"),
    Column("latency", "latency_s", "s"),
    Column("of the unpruned", "latency_before_s", "s"),
    Column("recovery steps", "recovery_steps"),
)
METHODS = (
    "Pruned are the matrices of hidden layers; embeddings, the first and the last layer (tied or not), norms and "
    "biases are not. The method magnitude-global removes the smallest weights of all of them together, "
    "magnitude-layer those of each, and random, the control, any. Heads, hidden units and layers are left out that "
    "write least on one training batch, by the norm of what they add to the residual stream. The density is the share "
    "of the pruned matrices' weights that remains.",
    "Loss added is the loss on the held-out sample minus that of the unpruned model on the same sample. Intervals are "
    "95 % t intervals over the unpruned models, each of one size and seed. A mask saves neither bytes nor time by "
    "itself: packed bytes are those of a file that stores each pruned matrix as a bit mask and the weights that "
    "remain, which has to be expanded when it is loaded.",
    DRAWN_WITH,
)


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield how size, method and bytes decide what pruning costs."""
    trials = pruned(study.trials)
    if trials.empty:
        yield "No trial has a loss before and after pruning."
        return
    parts = methods(trials)
    for label, part in parts.items():
        yield from _size_sentence(label, part)
    yield from _control_sentences(trials)
    for label, part in parts.items():
        yield from _bytes_sentence(label, part)
    whole = dict(groups(trials, lengths=False))
    for label, fitted in sparsity_fits(study).items():
        if (whole[label]["recovery_steps"] > 0).all():
            yield law_sentence(label, fitted)
    yield from _time_sentence(trials)


def methods(trials: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the trials of each group but the control; those of the control if it is the only group."""
    every = dict(groups(trials))
    return {label: part for label, part in every.items() if CONTROL not in set(part["method"])} or every


def interval(estimate: Estimate, unit: str = "") -> str:
    """Format an estimate with its interval: 0.12 (95 % interval 0.08 to 0.16)."""
    value, ends = bounded(estimate.value, estimate.low, estimate.high)
    return f"{value}{unit} ({interval_words(ends)})".replace(" %", f"{NBSP}%")


def _size_sentence(label: str, part: pd.DataFrame) -> Iterator[str]:
    """Yield whether larger models tolerate a lower density, where all parents reach the loss that decides."""
    if part["density"].nunique() < FEWEST_DENSITIES:
        yield from _slope_sentences(label, part)
        return
    points = tolerated(part)
    change = None if points["density"].isna().any() else slope(points["size"], points["density"])
    if change is None:
        lowest = part["density"].min()
        reached = int(points["density"].notna().sum())
        yield (
            f"{label}: {reached} of {len(points)} models lose more than {TOLERATED_NATS:g} nats at a density tried, "
            f"down to {lowest:g}: how low a density they tolerate is not compared by size."
        )
        return
    means = points.groupby("size")["density"].mean()
    verdict = "no clear change with size"
    if change.clear:
        verdict = f"larger models tolerate {'less' if change.value > 0 else 'more'} pruning"
    yield (
        f"{label}: {verdict}. The density down to which less than {TOLERATED_NATS:g} nats are lost is {_ends(means)}; "
        f"it changes by {interval(change)} per doubling, over {change.n} models."
    )


def _ends(by_size: pd.Series[float], unit: str = "") -> str:
    """Return the values at the smallest and at the largest size."""
    values = (f"{significant(by_size.iloc[i], 2)}{unit} at {quantity(by_size.index[i])} parameters" for i in (0, -1))
    return " and ".join(values)


def _slope_sentences(label: str, part: pd.DataFrame) -> Iterator[str]:
    """Yield how the loss added at each of a few densities changes with size."""
    for density, change in slopes(part):
        verdict = "no clear change with size"
        if change.clear:
            verdict = f"larger models lose {'more' if change.value > 0 else 'less'}"
        added = part[part["density"] == density].groupby(SIZE)["loss_added_nats"].mean()
        yield (
            f"{label}: {verdict}. The loss added at density {density:g} is {_ends(added, ' nats')}; it changes by "
            f"{interval(change, ' nats')} per doubling, over {change.n} models."
        )


def _control_sentences(trials: pd.DataFrame) -> Iterator[str]:
    for method in dict.fromkeys(trials["method"]):
        compared = list(against_control(trials, method)) if method != CONTROL else []
        texts = [f"{interval(difference)} nats at density {density:g}" for density, difference in compared]
        if texts:
            yield f"Pruning at random loses more than {method} by {', '.join(texts)} ({compared[0][1].n} models)."


def _bytes_sentence(label: str, part: pd.DataFrame) -> Iterator[str]:
    """Yield the density at which a group does best beside dense models of equal bytes."""
    compared = against_dense(part, together=True)
    if not compared:
        return
    density, excess = min(compared, key=lambda each: each[1].value)
    lower = sum(each.high < 0 and each.n >= FEWEST_SEEDS for _, each in compared)
    several = f"; the intervals of all {len(compared)} hold together" if len(compared) > 1 else ""
    yield (
        f"{label}: beside dense models of equal {'packed ' if part['packed_bytes'].notna().any() else ''}bytes, pruned "
        f"ones have a clearly lower loss at {lower or 'none'} of {len(compared)} densit"
        f"{'ies' if len(compared) > 1 else 'y'} tried. The best, {density:g}, differs by "
        f"{interval(excess, ' nats')} over {excess.n} seed{'s' * (excess.n > 1)}{several}."
    )


def _time_sentence(trials: pd.DataFrame) -> Iterator[str]:
    """Yield bytes and time of models that are only masked, that run on 2:4 kernels, and that really are smaller."""
    kernels, masked = trials["method"] == "2:4", trials["packed_bytes"].notna()
    kinds = {"masked models": masked & ~kernels, "2:4 models on their kernels": kernels, "smaller models": ~masked}
    for kind, rows in kinds.items():
        part = trials[rows].dropna(subset=["latency_ratio"])
        if part.empty:
            continue
        low, middle, high = part["latency_ratio"].quantile([0.1, 0.5, 0.9])
        sizes = part["weight_bytes"] / part["weight_bytes_before"]
        size = "as many bytes as" if (sizes == 1).all() else f"{percent(sizes.median(), sign=False)} of the bytes of"
        spread = f"; 10th to 90th percentile {significant(low)} to {significant(high)}"
        yield (
            f"The {kind} have {size} the unpruned ones and take {significant(middle)} times as long (medians of "
            f"{len(part)} trials{spread if len(part) >= FEWEST_FOR_PERCENTILES else ''})."
        )


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield loss added by density, its change with size, the comparison with dense models, and the law."""
    trials = pruned(study.trials)
    if trials.empty:
        return
    parts = dict(groups(trials))
    yield _sizes_table(parts)
    yield _bytes_table(parts)
    yield _law_table(sparsity_fits(study))


def estimated(estimate: Estimate) -> tuple[Cell, Cell]:
    """Return the cells of an estimate and of its interval."""
    value, ends = bounded(estimate.value, estimate.low, estimate.high)
    return (value, estimate.value), word(ends)


def _sizes_table(parts: dict[str, pd.DataFrame]) -> Table:
    rows: list[Sequence[Cell]] = []
    for label, part in parts.items():
        for density, change in slopes(part):
            added = part[part["density"] == density]["loss_added_nats"].mean()
            rows.append((word(label), number(density), number(added), *estimated(change), number(change.n)))
    columns = (
        "method",
        "density",
        "loss added (nats)",
        "change per doubling of size (nats)",
        "95 % interval",
        "models",
    )
    caption = "Loss added by pruning, and how it changes with the size of the model; every interval is for one density."
    return table(caption, columns, rows)


def _bytes_table(parts: dict[str, pd.DataFrame]) -> Table:
    rows = [
        (word(label), number(density), *estimated(excess), number(excess.n))
        for label, part in parts.items()
        for density, excess in against_dense(part)
    ]
    columns = ("method", "density", "loss above dense (nats)", "95 % interval", "seeds")
    beside = "Loss of pruned models beside dense models of equal bytes (masked ones packed)"
    return table(f"{beside}; every interval is for one density.", columns, rows)


def _law_table(fits: Mapping[str, Fit | str]) -> Table:
    rows: list[Sequence[Cell]] = []
    for label, fitted in fits.items():
        if isinstance(fitted, str):
            rows.append((word(label), word(None), word(None), word(None), word(f"not fitted: {fitted}")))
            continue
        rows += [
            (
                word(label),
                word(symbol(name)),
                (value, fitted.parameters[name]),
                word(ends),
                word(formula(fitted.law.formula)),
            )
            for name, value, ends in parameters(fitted)
        ]
    columns = ("method", "parameter", "value", "95 % interval", "law")
    return Table("The law of sparse models (Frantar et al. 2023).", columns, tuple(map(tuple, rows)), appendix=True)


SECTION = StudySection(
    shows=lambda study: workload_of(study) == "prune",
    sentences=sentences,
    figures=lambda _: (DENSITIES, BYTES, TOLERANCE, METHODS_COMPARED, LATENCY),
    columns=lambda _: COLUMNS,
    methods=METHODS,
    tables=tables,
    strip=False,
    outcome=outcome,
)
