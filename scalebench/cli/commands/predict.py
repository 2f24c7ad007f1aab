"""The command `predict`: what a size will need and reach, as a table or as JSON."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scalebench.analysis.in_use import PREDICTABLE, predict_selected
from scalebench.analysis.predictions import PredictedQuantity, SizePrediction, predict_fit
from scalebench.analysis.selected import select_study
from scalebench.cli.output import duration, print_json, say, table, warn
from scalebench.errors import InputError
from scalebench.points.files import is_fit, is_results, is_table_file
from scalebench.points.fit_file import from_document
from scalebench.reporting.quantities import PREFIXED, bounded, percent, quantity, significant
from scalebench.running.dials import count_dial
from scalebench.store import left_out_line

if TYPE_CHECKING:
    from scalebench.laws import Forecast

SENSIBLE = (1e-30, 1e30)  # beyond these, powers of the number overflow
TESTED_REACH = 10  # coverage of intervals is measured for predictions this many times beyond the data
MINUTE_S = 60  # longer times are printed in minutes, hours and days
OPTIONS = {"x": "--params", "params": "--params", "tokens": "--tokens"}  # inputs of laws with an option of their own


def run_predict(
    source: Path,
    params: float | None,
    tokens: float | None,
    others: Mapping[str, float],
    where: str | None,
    *,
    as_json: bool,
) -> int:
    """Print the prediction for a size; exit code 2 when no quantity can be predicted."""
    _check_numbers(params, tokens, others)
    passed = {"params": params, "x": params, "tokens": tokens}
    if twice := [name for name in others if passed.get(name) is not None]:
        raise InputError([f"--input {name}: {OPTIONS[name]} has it already; leave one out" for name in twice])
    prediction = _predict(source, params, tokens, others, where)
    if as_json:
        print_json("predict", _document(prediction))
    else:
        print_prediction(prediction)
    return 0 if any(quantity.value is not None for quantity in prediction.quantities) else 2


def _document(prediction: SizePrediction) -> dict[str, Any]:
    answers = {predicted.quantity.replace(" ", "_"): predicted.to_dict() for predicted in prediction.quantities}
    backtest = [row.to_dict() for row in prediction.backtest]
    return {"params": prediction.params, "tokens": prediction.tokens, "answers": answers, "backtest": backtest}


def _check_numbers(params: float | None, tokens: float | None, others: Mapping[str, float]) -> None:
    options = {"--params": params, "--tokens": tokens, **{f"--input {name}": value for name, value in others.items()}}
    low, high = SENSIBLE
    wrong = [
        f"{name} {value:g}: a number from {low:g} to {high:g} is needed"
        for name, value in options.items()
        if value is not None and not low <= value <= high
    ]
    if wrong:
        raise InputError(wrong)


def _predict(
    source: Path, params: float | None, tokens: float | None, others: Mapping[str, float], where: str | None
) -> SizePrediction:
    if is_table_file(source) or (source.is_dir() and not is_results(source)):
        law = "" if tokens is None else " --law chinchilla"
        fit = f"scalebench fit {shlex.quote(str(source))}{law} --output fit.json"
        raise InputError([f"{source}: predict needs a fitted law: `{fit}`, then `scalebench predict fit.json`"])
    if not is_fit(source):
        if others:
            raise InputError([f"{source}: --input is for fitted laws; trials are predicted from --params and --tokens"])
        if params is None:
            raise InputError([f"{source}: trials are predicted by size; give --params"])
        return _predict_trials(source, params, tokens, where)
    if where is not None:
        raise InputError([f"{source}: --where selects trials of a results folder; a fit already holds its points"])
    return _predict_law(source, {"params": params, "x": params, "tokens": tokens, **others})


def _predict_trials(path: Path, params: float, tokens: float | None, where: str | None) -> SizePrediction:
    study = select_study(path, where, count_dial, PREDICTABLE)
    if study.left_out:
        warn(left_out_line(study.left_out))
    if tokens is not None and study.series[0].recipe.unit != "tokens":
        raise InputError([f"{path}: these trials count samples, not tokens: leave --tokens out"])
    return predict_selected(study, params, tokens)


def _predict_law(path: Path, values: Mapping[str, float | None]) -> SizePrediction:
    """Predict from the JSON of a fit; options that the law does not use are reported on standard error."""
    fitted, document = from_document(path)
    law, needed = fitted.law, " and ".join(fitted.law.inputs)
    options = {name: f"--input {name}" for name in values} | {"params": "--params", "tokens": "--tokens"}
    for name in (name for name in options if name != "x" and values[name] is not None):
        if not {name, "x" if name == "params" else name} & set(law.inputs):
            warn(f"{options[name]} is not used: {law.name} predicts from {needed}")
    inputs = {name: value for name in law.inputs if (value := values.get(name)) is not None}
    missing = [OPTIONS.get(name, f"--input {name}=NUMBER") for name in law.inputs if name not in inputs]
    if missing:
        raise InputError([f"{path}: {law.name} predicts from {needed}; give {' and '.join(missing)}"])
    columns = (document.get("source") or {}).get("columns") or {}
    return predict_fit(fitted, inputs, str(columns.get(law.response, law.response)))


def print_prediction(prediction: SizePrediction) -> None:
    """Print predicted quantities, then refusals with their reasons, then the errors of earlier predictions."""
    unit = next((predicted.unit for predicted in prediction.quantities if predicted.quantity == "data"), "tokens")
    data = "" if prediction.tokens is None else f", {quantity(prediction.tokens)} {unit}"
    place = f"for {quantity(prediction.params)} parameters{data}" if prediction.params else f"at {prediction.place}"
    say(f"prediction {place}", "")
    known = [predicted for predicted in prediction.quantities if predicted.value is not None]
    header = ("quantity", "predicted", "95 % interval of a new run", "beyond the data", "worst hold-out error")
    table("", header, [_row(predicted) for predicted in known])
    refused = [predicted for predicted in prediction.quantities if predicted.value is None]
    for reason in dict.fromkeys(predicted.reason for predicted in refused):
        names = ", ".join(predicted.quantity for predicted in refused if predicted.reason == reason)
        say(f"{names}: refused: {reason}")
    say("", *(f"{predicted.quantity}: {predicted.basis}" for predicted in known), "")
    closing = (hold_out_line(prediction.backtest, prediction.held_out), reach_line(prediction), count_line(prediction))
    say(*filter(None, closing))


def _row(predicted: PredictedQuantity) -> tuple[str, ...]:
    assert predicted.value is not None
    name, unit = predicted.quantity, predicted.unit
    if predicted.beyond is None:
        return name, quantity(predicted.value, unit), "counted" if predicted.counted else "", "", ""
    low, high = (math.nan if end is None else end for end in (predicted.low, predicted.high))
    value, interval = bounded(predicted.value, low, high, unit if unit in PREFIXED else "")
    if unit not in PREFIXED:
        value = f"{value} {unit}".rstrip()
    if unit == "s" and predicted.value >= MINUTE_S:
        value = duration(predicted.value)
        interval = interval if math.isnan(low) else f"{duration(low)} to {duration(high)}"
    reach = "inside" if predicted.beyond == 1 else f"×{significant(predicted.beyond)}"
    error = predicted.hold_out_percent
    return name, value, interval, reach, "none" if error is None else percent(error / 100, sign=False)


def reach_line(prediction: SizePrediction) -> str:
    """Warn of predictions farther beyond the data than the coverage of intervals was measured."""
    farthest = max((predicted.beyond or 1.0 for predicted in prediction.quantities), default=1.0)
    if farthest <= TESTED_REACH:
        return ""
    return (
        f"×{significant(farthest)} beyond the data: the intervals hold only if the laws do; their coverage is measured "
        f"up to ×{TESTED_REACH}. Measure nearer sizes first."
    )


def count_line(prediction: SizePrediction) -> str:
    """Return how to count compute exactly, where the prediction has that of a law fitted to trials."""
    if not any(predicted.quantity == "compute" and predicted.by == "law" for predicted in prediction.quantities):
        return ""
    plan = f"scalebench plan STUDY --set model.params={prediction.params:.6g}"
    return f"compute comes from a law, as the other quantities do: `{plan}` counts it for a study that sets params"


def hold_out_line(rows: Sequence[Forecast], response: str) -> str:
    """Report the error of predicting each larger size from the smaller ones."""
    if not rows:
        return f"rolling hold-out of {response}: none, too few sizes to hold one out"
    errors = ", ".join(f"{percent(row.error_percent / 100)} at {quantity(row.size)}" for row in rows)
    worst = max(abs(row.error_percent) for row in rows) / 100
    return f"rolling hold-out of {response}: {errors}; at worst {percent(worst, sign=False)}"
