"""The command `predict`: what a size will need and reach, as a table or as JSON."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from scalebench.analysis.predictions import Answer, Prediction, predict_fit, predict_results
from scalebench.cli.output import duration, print_json, say, table
from scalebench.errors import InputError
from scalebench.points.files import is_table_file
from scalebench.points.fit_file import from_document, json_safe
from scalebench.reporting.quantities import bounded, percent, quantity, significant

if TYPE_CHECKING:
    from scalebench.laws import Forecast

SENSIBLE = (1e-30, 1e30)  # beyond these, powers of the number overflow
PREFIXED = ("s", "B", "FLOP")  # units that take a prefix
TESTED_REACH = 10  # coverage of intervals is measured for predictions this many times beyond the data


def run_predict(
    source: Path,
    params: float | None,
    tokens: float | None,
    others: Mapping[str, float],
    where: str | None,
    *,
    as_json: bool,
) -> int:
    """Print the prediction for a size; exit code 2 when nothing of it can be answered."""
    _check(params, tokens, others)
    found = _predict(source, params, tokens, others, where)
    if as_json:
        rows = [row.to_dict() for row in found.backtest]
        answers = {answer.quantity.replace(" ", "_"): asdict(answer) for answer in found.answers}
        print_json(json_safe({"params": found.params, "tokens": found.tokens, "answers": answers, "backtest": rows}))
    else:
        print_prediction(found)
    return 0 if any(answer.value is not None for answer in found.answers) else 2


def _check(params: float | None, tokens: float | None, others: Mapping[str, float]) -> None:
    options = {"--params": params, "--tokens": tokens}
    given = {name: value for name, value in options.items() if value is not None}
    given |= {f"--input {name}": value for name, value in others.items()}
    low, high = SENSIBLE
    wrong = [
        f"{name} {value:g}: a number from {low:g} to {high:g} is needed"
        for name, value in given.items()
        if not low <= value <= high
    ]
    if wrong:
        raise InputError(wrong)


def _predict(
    source: Path, params: float | None, tokens: float | None, others: Mapping[str, float], where: str | None
) -> Prediction:
    if is_table_file(source):
        made = f"scalebench fit {source} --json fit.json"
        raise InputError(
            [f"{source}: points are predicted from by a law: `{made}`, then `scalebench predict fit.json`"]
        )
    if source.is_dir() or source.suffix != ".json":
        if others:
            raise InputError([f"{source}: --input is for fitted laws; trials are predicted from --params and --tokens"])
        if params is None:
            raise InputError([f"{source}: trials are predicted by size; give --params"])
        return predict_results(source, params, tokens, where)
    if where is not None:
        raise InputError([f"{source}: --where chooses trials of a results folder; a fit has chosen its points"])
    fitted, document = from_document(source)
    columns = (document.get("source") or {}).get("columns") or {}
    inputs = {"params": params, "x": params, "tokens": tokens, **others}
    options = {"--params": ("params", "x"), "--tokens": ("tokens",), **{f"--input {name}": (name,) for name in others}}
    for option, names in options.items():
        if inputs[names[0]] is not None and not set(names) & set(fitted.law.inputs):
            needed = " and ".join(fitted.law.inputs)
            print(f"{option} is not used: {fitted.law.name} predicts from {needed}", file=sys.stderr)
    return predict_fit(source, fitted, inputs, str(columns.get(fitted.law.response, fitted.law.response)))


def print_prediction(found: Prediction) -> None:
    """Print the answers, then the refusals with their reasons, then how earlier predictions of the loss went."""
    seen = "" if found.tokens is None else f", {quantity(found.tokens)} of data"
    say(
        f"prediction for {quantity(found.params)} parameters{seen}" if found.params else f"prediction at {found.at}", ""
    )
    known = [answer for answer in found.answers if answer.value is not None]
    header = ("quantity", "predicted", "95 % interval of a new run", "beyond the data", "worst hold-out error")
    table("", header, [_row(answer) for answer in known])
    refused = [answer for answer in found.answers if answer.value is None]
    for reason in dict.fromkeys(answer.reason for answer in refused):
        names = ", ".join(answer.quantity for answer in refused if answer.reason == reason)
        say(f"{names}: refused: {reason}")
    say("", *(f"{answer.quantity}: {answer.basis}" for answer in known), "")
    say(*filter(None, (hold_out_line(found.backtest, found.held_out), reach_line(found))))


def _row(answer: Answer) -> tuple[str, ...]:
    assert answer.value is not None
    low, high = (float("nan") if end is None else end for end in (answer.low, answer.high))
    value, interval = bounded(answer.value, low, high, answer.unit if answer.unit in PREFIXED else "")
    value = value if answer.unit in PREFIXED else f"{value} {answer.unit}".rstrip()
    if answer.beyond is None:
        return answer.quantity, quantity(answer.value, answer.unit), "", "", ""
    if answer.unit == "s" and answer.value >= 60:
        value, interval = (
            duration(answer.value),
            interval if math.isnan(low) else f"{duration(low)} to {duration(high)}",
        )
    reach = "inside" if answer.beyond == 1 else f"×{significant(answer.beyond)}"
    held = "none" if answer.hold_out_percent is None else percent(answer.hold_out_percent / 100, sign=False)
    return answer.quantity, value, interval, reach, held


def reach_line(found: Prediction) -> str:
    """Warn of predictions farther out than intervals have been tested."""
    farthest = max((answer.beyond or 1.0 for answer in found.answers), default=1.0)
    if farthest <= TESTED_REACH:
        return ""
    return (
        f"×{significant(farthest)} beyond the data: the intervals hold only if the laws do; theirs are tested "
        f"up to ×{TESTED_REACH}. Measure nearer sizes first."
    )


def hold_out_line(rows: Sequence[Forecast], named: str) -> str:
    """Say how far off the loss, or what is ``named``, of each larger size was when predicted from the smaller ones."""
    if not rows:
        return f"rolling hold-out of {named}: none, too few sizes to hold one out"
    errors = ", ".join(f"{percent(row.error_percent / 100)} at {quantity(row.size)}" for row in rows)
    worst = max(abs(row.error_percent) for row in rows) / 100
    return f"rolling hold-out of {named}: {errors}; at worst {percent(worst, sign=False)}"
