"""Fine-tuning: what it gains by size, LoRA against all weights, what is forgotten, and the data that it saves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from scalebench.analysis.finetuning import (
    BEFORE,
    FORGETTING,
    Paired,
    Tuned,
    lora_against_full,
    trained_share,
    tuned_alike,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.transfer import FULL, Transfer, loss_from_scratch, transfer_of
from scalebench.analysis.trials import LOSS, LOSS_SE
from scalebench.reporting.figures.costs import STEP_TIMES
from scalebench.reporting.figures.finetuned import (
    AFTER,
    FORGOTTEN,
    LORA_COST,
    TRANSFER_COLUMNS,
    TRANSFERRED,
    amount_of,
    interval_of,
    label_of,
    transfer_row,
)
from scalebench.reporting.figures.runs import CURVES
from scalebench.reporting.outcomes import Finding, Outcome, law_text, loss_outcome
from scalebench.reporting.quantities import NBSP, bounded, percent, quantity, significant, uncertain
from scalebench.reporting.sections.common import DRAWN_WITH, RESOURCES, Column, StudySection, workload_of
from scalebench.reporting.tables import Table, table
from scalebench.reporting.views import FigureSpec

HERNANDEZ = "Hernandez et al. 2021, arXiv:2102.01293"
BIDERMAN = "Biderman et al. 2024, arXiv:2405.09673"
CLAIMS = (  # of LoRA: column, sign of the difference to all weights, published finding, effect
    (LOSS, 1, "LoRA learns less than all weights", "loss of LoRA minus all weights"),
    (FORGETTING, -1, "LoRA forgets less than all weights", "forgetting of all weights minus LoRA"),
)


def sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield gain, transfer, LoRA's cost and forgetting, each from the smallest to the largest size."""
    groups = tuned_alike(study)
    if not groups:
        return
    longest = max(
        (group for group in groups if group.method == FULL), key=lambda group: group.tokens, default=groups[0]
    )
    yield gain_sentence(longest, study)
    if not longest.means("metric_accuracy").empty:
        yield accuracy_sentence(longest, groups)
    yield from transfer_sentences(study)
    yield from lora_sentences(study, groups)
    yield from forgetting_sentences(longest, groups)


def gain_sentence(group: Tuned, study: StudyAnalysis) -> str:
    """Return the loss before and after at both ends of the sizes, and that of as much data from scratch."""
    before, after = group.means(BEFORE), group.means(LOSS)
    ends = []
    for place in dict.fromkeys((0, len(after) - 1)):
        row = after.iloc[place]
        was = before.loc[before["size"] == row["size"], "mean"]
        start = f"from {was.iloc[0]:.3f} " if len(was) else ""
        scratch = loss_from_scratch(study, float(row["size"]), group.tokens)
        beside = f" (from scratch {scratch:.3f})" if np.isfinite(scratch) else ""
        ends.append(f"{start}to {uncertain(row['mean'], row['se'])} nats{beside} at {quantity(row['size'])} parameters")
    method = ", ".join(["all weights" if group.method == FULL else "LoRA", *group.others_text])
    return f"Fine-tuned on {amount_of(group)} ({method}), the loss goes {' and '.join(ends)}."


def accuracy_sentence(group: Tuned, groups: Sequence[Tuned]) -> str:
    """Return accuracy, and macro F1 where the task has it, at both ends of the sizes."""
    accuracy, f1 = group.means("metric_accuracy"), group.means("metric_f1").set_index("size")
    ends = []
    for i in dict.fromkeys((0, len(accuracy) - 1)):
        row = accuracy.iloc[i]
        scores = [f1.loc[row["size"]]] if row["size"] in f1.index else []
        beside = "".join(f" (macro F1 {uncertain(each['mean'], each['se'])})" for each in scores)
        ends.append(f"{_share(row['mean'], row['se'])}{beside} at {quantity(row['size'])} parameters")
    return f"Accuracy ({label_of(group, groups)}) is {' and '.join(ends)}."


def _share(value: float, error: float) -> str:
    """Return a share in percent, with its standard error if known."""
    return f"{uncertain(100 * value, 100 * error)}{NBSP}%" if error > 0 else percent(value, sign=False)


def classifies(study: StudyAnalysis) -> bool:
    """Return whether all trials have a new head of classes, whose loss is comparable with no run from scratch."""
    return "head" in study.trials and bool(study.trials["head"].eq("classes").all())


def transfer_sentences(study: StudyAnalysis) -> Iterator[str]:
    """Yield how much data the earlier training was worth, and its law or why there is none; nothing of other heads."""
    if classifies(study):
        return
    transfer = transfer_of(study)
    known = [point for point in transfer.fully_tuned if point.known]
    if known:
        tokens = sorted({point.tokens for point in known})
        middle = [point for point in known if point.tokens == tokens[len(tokens) // 2]]
        ends = [_worth(point) for point in dict.fromkeys((middle[0], middle[-1]))]
        where = f"to a model that is fine-tuned on {quantity(middle[0].tokens)} tokens"
        yield f"The earlier training is worth, {where}, {' and '.join(ends)}."
    if transfer.law.fit is None:
        yield f"No law of transfer: {transfer.law.reason}."
    else:
        published = f"from text to Python {HERNANDEZ} report a = 0.18, b = 0.38"
        yield f"The law of transfer is {law_text(transfer.law)}; {published}."


def _worth(point: Transfer) -> str:
    return (f"{quantity(point.transferred)} tokens from scratch at {quantity(point.size)} parameters "
            f"(95 % interval {interval_of(point)})")  # fmt: skip


def lora_sentences(study: StudyAnalysis, groups: Sequence[Tuned]) -> Iterator[str]:
    """Yield what LoRA trains and how far its loss is from that of all weights, at both ends of the sizes."""
    pairs = lora_against_full(study, LOSS)
    shares = [trained_share(group) for group in groups if group.method != FULL]
    for label, tokens in dict.fromkeys((pair.label, pair.tokens) for pair in pairs):
        part = [pair for pair in pairs if (pair.label, pair.tokens) == (label, tokens)]
        ends = [_difference(pair) for pair in dict.fromkeys((part[0], part[-1]))]
        low, high = min(share[0] for share in shares), max(share[1] for share in shares)
        share = " to ".join(dict.fromkeys(percent(each, sign=False) for each in (low, high)))
        trained = f" (trains {share} of the parameters)"
        name = f"LoRA of {label}" if label.startswith("rank") else label
        yield f"{name}{trained} on {quantity(tokens)} tokens ends {' and '.join(ends)}."


def _difference(pair: Paired) -> str:
    """Return a difference with its side where it is clear of noise, else with its sign; for one seed without either."""
    where = f"all weights at {quantity(pair.size)} parameters"
    if np.isnan(pair.low):
        return f"{significant(pair.value)} nats from {where} (one seed, so its noise is unknown)"
    sign = -1 if pair.clear and pair.value < 0 else 1
    low, high = sorted((sign * pair.low, sign * pair.high))
    value, interval = bounded(sign * pair.value, low, high)
    side = ("above" if pair.value > 0 else "below") if pair.clear else "from"
    noise = "" if pair.clear else ", which is within noise"
    return f"{value} nats {side} {where} (95 % interval {interval}, {pair.seeds} seeds{noise})"


def forgetting_sentences(group: Tuned, groups: Sequence[Tuned]) -> Iterator[str]:
    """Yield by how much the loss on the parents' data rose, or fell, at both ends of the sizes."""
    frame = group.means(FORGETTING)
    if frame.empty:
        return
    rows = [frame.iloc[i] for i in dict.fromkeys((0, len(frame) - 1))]
    falls = {row["mean"] < 0 for row in rows}
    verb, sign = ("changes", 1) if len(falls) > 1 else ("falls", -1) if True in falls else ("rises", 1)
    ends = [f"{uncertain(sign * row['mean'], row['se'])} nats at {quantity(row['size'])} parameters" for row in rows]
    yield f"On the parents' data the loss {verb} by {' and '.join(ends)} ({label_of(group, groups)})."


def tables(study: StudyAnalysis) -> Iterator[Table]:
    """Yield every transfer, those that are refused with the reason."""
    rows = [transfer_row(point) for point in transfer_of(study).fully_tuned]
    yield table("Effective data transferred with all weights: every point.", TRANSFER_COLUMNS, rows)


def outcome(study: StudyAnalysis) -> Outcome:
    """Return what was measured, the law of transfer, and the findings that the study tests."""
    if classifies(study):
        by_size = loss_outcome(study).law
        return Outcome("loss, accuracy and F1 of a classifier", by_size, tuple(_lora_findings(study, CLAIMS[:1])))
    law = transfer_of(study).law
    findings = [_law_finding(study), *_lora_findings(study, CLAIMS)]
    return Outcome("loss before and after, forgetting, effective data transferred", law_text(law), tuple(findings))


def _law_finding(study: StudyAnalysis) -> Finding:
    published, law = "larger models transfer more data (b > 0)", transfer_of(study).law
    if law.fit is None:
        return Finding(published, HERNANDEZ, reason=law.reason)
    seeds = min(point.seeds for point in transfer_of(study).fully_tuned)
    return Finding(published, HERNANDEZ, "exponent b of D_T = k D_F^a N^b", law.fit.parameters["b"],
                   *law.interval("b"), seeds=seeds)  # fmt: skip


def _lora_findings(study: StudyAnalysis, claims: Sequence[tuple[str, int, str, str]]) -> Iterator[Finding]:
    """Yield whether LoRA learns less and forgets less, at the largest size and amount of data that both have."""
    for column, sign, published, effect in claims:
        pairs = sorted(lora_against_full(study, column), key=lambda pair: (pair.tokens, pair.size))
        if not pairs:
            yield Finding(published, BIDERMAN, reason="the study has no LoRA beside all weights")
            continue
        pair = pairs[-1]
        low, high = sorted((sign * pair.low, sign * pair.high))
        which = f"{pair.label}, " if len({each.label for each in pairs}) > 1 else ""
        where = f"{effect}, {which}{quantity(pair.size)} parameters on {quantity(pair.tokens)} tokens"
        yield Finding(published, BIDERMAN, where, sign * pair.value, low, high, seeds=pair.seeds, unit="nats")


def figures(study: StudyAnalysis) -> tuple[FigureSpec[StudyAnalysis], ...]:
    """Return the figures; a head of classes has no runs from scratch to compare with."""
    return (AFTER, *(() if classifies(study) else (TRANSFERRED,)), LORA_COST, FORGOTTEN, STEP_TIMES, CURVES)


METHODS = (
    "Every trial starts from the weights of a parent and trains for the steps in its row; data are counted from there. "
    "Losses are in nats on a held-out sample: that of the new data before and after, and the parent's own after, whose "
    "rise is the forgetting. LoRA and all weights are compared by parent and seed.",
    f"Effective data transferred ({HERNANDEZ}): D_E is read off the mean loss of the runs from scratch of the same "
    "size, data and batch size, with log D a monotone cubic in the loss between their lengths, nothing beyond. Its "
    "interval is the difference of both means by Welch's t, moved along that curve.",
    DRAWN_WITH,
)  # fmt: skip
COLUMNS = (
    Column("loss before (nats)", BEFORE, digits=5),
    Column("loss after (nats)", LOSS, digits=5),
    Column("± (validation)", LOSS_SE, digits=2),
    Column("forgetting (nats)", FORGETTING, digits=3),
    Column("accuracy", "metric_accuracy"),
    Column("precision", "metric_precision"),
    Column("recall", "metric_recall"),
    Column("F1", "metric_f1"),
    Column("trained parameters", "trainable_params"),
    Column("the chain before", "parent_flops", "FLOP"),
    *RESOURCES,
)
SECTION = StudySection(
    shows=lambda study: workload_of(study) == "finetune",
    sentences=sentences,
    figures=figures,
    columns=lambda _: COLUMNS,
    methods=METHODS,
    tables=tables,
    outcome=outcome,
)
