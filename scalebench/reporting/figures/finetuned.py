"""Fine-tuning by size: the loss before and after, LoRA against all weights, forgetting, and data transferred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from scalebench.analysis.finetuning import BEFORE, FORGETTING, LORA, Tuned, lora_against_full, tuned_alike
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.transfer import FULL, Transfer, transfer_of
from scalebench.analysis.trials import LOSS
from scalebench.reporting.quantities import bounded, quantity, uncertain
from scalebench.reporting.svg import MUTED, PAPER, Marks, finish, series_style
from scalebench.reporting.tables import Cell, number, table, word
from scalebench.reporting.views import Caption, FigureSpec


def label_of(group: Tuned, groups: Sequence[Tuned]) -> str:
    """Return what a group was tuned with, of what differs between the groups: "LoRA rank 4, 102 k tokens"."""
    rank = group.settings["rank"]
    method = "all weights" if group.method == FULL else f"LoRA rank {rank:g}" if rank is not None else "LoRA"
    parts = [method] if len({(other.method, other.settings["rank"]) for other in groups}) > 1 else []
    parts += [amount_of(group)] if len({other.tokens for other in groups}) > 1 else []
    for name in ("source", "head", "pooling"):
        if len({str(other.settings[name]) for other in groups}) > 1:
            parts.append(f"{name} {group.settings[name]}")
    parts += group.others_text
    return ", ".join(parts) or method


def amount_of(group: Tuned) -> str:
    """Return the data that a group was tuned on."""
    sequences = "tokens_seen" in group.trials and group.trials["tokens_seen"].notna().any()
    return f"{quantity(group.tokens)} {'tokens' if sequences else 'samples'}"


def _means(marks: Marks, group: Tuned, label: str, column: str, i: int, unit: str) -> list[tuple[Cell, ...]]:
    """Draw a group's means with their standard errors, and return the rows of the table."""
    frame, style = group.means(column), series_style(i)
    hollow = {"markerfacecolor": PAPER, "markeredgecolor": style["color"]} if group.method == LORA else {}
    marks.axes.plot(frame["size"], frame["mean"], color=style["color"], linewidth=1)
    marks.bars(frame["size"], frame["mean"] - frame["se"], frame["mean"] + frame["se"], color=style["color"])
    texts = [uncertain(mean, error) for mean, error in zip(frame["mean"], frame["se"], strict=True)]
    titles = [f"{label} at {quantity(size)} parameters: {text} {unit}".rstrip()
              for size, text in zip(frame["size"], texts, strict=True)]  # fmt: skip
    marks.draw(frame["size"], frame["mean"], titles, **style, **hollow, label=label)
    return [(word(label), number(row["size"]), number(row["seeds"]), (text, row["mean"]))
            for row, text in zip(frame.to_dict("records"), texts, strict=True)]  # fmt: skip


def before_and_after(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Draw the loss on the new data by size, before and after each way of tuning."""
    groups = tuned_alike(study)
    if not groups:
        return None
    rows = _before(marks, groups)
    for i, group in enumerate(groups):
        rows += _means(marks, group, label_of(group, groups), LOSS, i, "nats")
    finish(marks, "validation loss (nats)")
    return Caption(
        "Means over seeds on the held-out sample of the new data, with their standard errors; hollow marks are LoRA, "
        "grey ones the parents before they are tuned.",
        table("Loss before and after fine-tuning.", ("", "size", "seeds", "loss (nats)"), rows),
    )


def _before(marks: Marks, groups: Sequence[Tuned]) -> list[tuple[Cell, ...]]:
    """Draw the loss of the parents, once for each parent, and return the rows of the table."""
    trials = pd.concat([group.trials for group in groups])
    if BEFORE not in trials or trials[BEFORE].isna().all():
        return []
    once = trials.drop_duplicates([name for name in ("parent_trial_id", "seed", "source") if name in trials])
    frame = Tuned({}, once).means(BEFORE)
    titles = [f"before, at {quantity(row['size'])} parameters: {uncertain(row['mean'], row['se'])} nats"
              for row in frame.to_dict("records")]  # fmt: skip
    marks.axes.plot(frame["size"], frame["mean"], color=MUTED, linewidth=1, linestyle=":")
    marks.draw(frame["size"], frame["mean"], titles, color=MUTED, marker="x", label="before")
    rows = frame.to_dict("records")
    texts = [uncertain(row["mean"], row["se"]) for row in rows]
    return [(word("before"), number(row["size"]), number(row["seeds"]), (text, row["mean"]))
            for row, text in zip(rows, texts, strict=True)]  # fmt: skip


def forgetting(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Draw by how much the loss on the parents' data rose, by size."""
    groups = [group for group in tuned_alike(study) if len(group.means(FORGETTING))]
    if not groups:
        return None
    rows: list[tuple[Cell, ...]] = []
    for i, group in enumerate(groups):
        rows += _means(marks, group, label_of(group, groups), FORGETTING, i, "nats")
    finish(marks, "rise of the loss on the old data (nats)")
    return Caption(
        "Loss on the parents' held-out sample after fine-tuning minus before; means over seeds with their standard "
        "errors. Hollow marks are LoRA.",
        table("Forgetting.", ("", "size", "seeds", "rise (nats)"), rows),
    )


def paired(marks: Marks, study: StudyAnalysis) -> Caption | None:
    """Draw by how much the loss of LoRA is above that of all weights, by size, paired by parent."""
    pairs = lora_against_full(study, LOSS)
    if not pairs:
        return None
    rows: list[Sequence[Cell]] = []
    kinds = list(dict.fromkeys((pair.label, pair.tokens) for pair in pairs))
    for i, (label, tokens) in enumerate(kinds):
        part, name = (
            [pair for pair in pairs if (pair.label, pair.tokens) == (label, tokens)],
            f"{label}, {quantity(tokens)} tokens",
        )
        style, sizes, values = series_style(i), [pair.size for pair in part], [pair.value for pair in part]
        marks.bars(sizes, [pair.low for pair in part], [pair.high for pair in part], color=style["color"])
        texts = [bounded(pair.value, pair.low, pair.high) for pair in part]
        titles = [f"{name}, {quantity(pair.size)} parameters: {value} nats ({interval})"
                  for pair, (value, interval) in zip(part, texts, strict=True)]  # fmt: skip
        marks.draw(sizes, values, titles, **style, label=name if len(kinds) > 1 else None)
        rows += [(word(name), number(pair.size), number(pair.seeds), (value, pair.value), word(interval))
                 for pair, (value, interval) in zip(part, texts, strict=True)]  # fmt: skip
    marks.axes.axhline(0, color=MUTED, linewidth=1, linestyle="--")
    finish(marks, "loss of LoRA minus all weights (nats)")
    return Caption(
        "Each difference is between trials of one parent and one seed on the same data; bars are 95 % intervals of the "
        "mean over seeds (Student's t). Above zero LoRA ends worse.",
        table("LoRA minus all weights.", ("", "size", "seeds", "difference (nats)", "95 % interval"), rows),
    )


def data_transferred(marks: Marks, study: StudyAnalysis) -> Caption | str | None:
    """Draw the effective data transferred by size for each amount of data, with the law where it was fitted."""
    transfer = transfer_of(study)
    known = [point for point in transfer.points if point.method == FULL and point.transferred > 0]
    if not known:
        return f"No effective data transferred: {transfer.law.reason}."
    rows: list[Sequence[Cell]] = []
    for i, tokens in enumerate(sorted({point.tokens for point in known})):
        part = [point for point in known if point.tokens == tokens]
        rows += _transfers(marks, part, f"{quantity(tokens)} tokens", i)
        if (law := transfer.law.fit) is not None:
            x = np.geomspace(min(p.size for p in known), max(p.size for p in known), 30)
            y = law.predict(params=x, tokens=np.full(30, tokens))
            marks.axes.plot(x, y, color=series_style(i)["color"], linewidth=1, linestyle="--")
    finish(marks, "effective data transferred D_T (tokens)", log=True)
    law_text = " Dashed: the fitted law." if transfer.law.fit is not None else ""
    left_out = len([point for point in transfer.points if point.method == FULL]) - len(known)
    return Caption(
        "D_T = D_E − D_F: tokens from scratch that reach the same loss, minus those that it was tuned on (colours). "
        "Bars are 95 % intervals over seeds; an end beyond the runs from scratch is not drawn."
        + law_text
        + (f" {left_out} points without a positive D_T within those runs are in the table." if left_out else ""),
        table("Effective data transferred.", TRANSFER_COLUMNS, rows),
    )  # fmt: skip


TRANSFER_COLUMNS = ("tuned on", "size", "loss (nats)", "as from scratch", "D_T", "95 % interval")


def _transfers(marks: Marks, points: Sequence[Transfer], label: str, i: int) -> list[tuple[Cell, ...]]:
    style: dict[str, Any] = series_style(i)
    sizes = [point.size for point in points]
    marks.bars(sizes, [max(p.ends[0], 1.0) for p in points], [p.ends[1] for p in points], color=style["color"])
    titles = [f"{label}, {quantity(p.size)} parameters: {quantity(p.transferred)} tokens transferred" for p in points]
    marks.draw(sizes, [p.transferred for p in points], titles, **style, label=label)
    return [transfer_row(point) for point in points]


def transfer_row(point: Transfer) -> tuple[Cell, ...]:
    """Return one transfer as a row of ``TRANSFER_COLUMNS``."""
    known = point.known
    return (
        number(point.tokens), number(point.size), (uncertain(point.loss, point.error), point.loss),
        number(point.effective if known else None), number(point.transferred if known else None),
        word(interval_of(point) if known else point.reason),
    )  # fmt: skip


def interval_of(point: Transfer) -> str:
    """Return the 95 % interval of D_T in words; an end beyond the runs from scratch is open."""
    low, high = point.ends
    if np.isnan(low) or np.isnan(high):
        one_end = f"above {quantity(low)}" if np.isfinite(low) else f"below {quantity(high)}"
        return "not determined" if np.isnan(low) and np.isnan(high) else one_end
    return f"{quantity(low)} to {quantity(high)}"


AFTER = FigureSpec("after", "Loss before and after fine-tuning", before_and_after)
TRANSFERRED = FigureSpec("transfer", "Effective data transferred", data_transferred)
LORA_COST = FigureSpec("lora", "LoRA against all weights", paired, optional=True)
FORGOTTEN = FigureSpec("forgetting", "Forgetting: loss on the old data", forgetting, optional=True)
