"""`predict --max-loss`: the cheapest model within limits of loss, bytes and time, as a table or as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from scalebench.analysis.cheapest import (
    MEASURED,
    PREDICTED,
    QUANTITIES,
    Candidate,
    Cheapest,
    Estimate,
    Limits,
    find_cheapest,
)
from scalebench.analysis.study import StudyAnalysis
from scalebench.analysis.tradeoff import HELD_OUT, by_weights, chain, tradeoff_points
from scalebench.cli.output import print_json, say, table, warn
from scalebench.errors import InputError, number_of
from scalebench.points.files import is_results
from scalebench.points.table import select_rows
from scalebench.reporting.quantities import bounded, quantity, significant
from scalebench.store import left_out_line, of_plans, read_results

NAMED = 3  # kinds of model that a line of refusals names; the JSON has all
HEADER = ("", "parameters, model", "loss, 95 % of a new run", "weights", "forward pass", "FLOPs of the chain")


def run_cheapest(
    path: Path,
    options: Mapping[str, float | None],
    sizes: Mapping[str, object],
    where: str | None,
    *,
    as_json: bool,
) -> int:
    """Print the cheapest model within the limits; exit code 2 if no model is within them."""
    limits = _limits(options, sizes)
    points = comparable_points(path, where)
    answer = find_cheapest(points, limits)
    if as_json:
        print_json("predict", asdict(answer))
    else:
        print_cheapest(answer, points)
    return 0 if answer.candidates else 2


def _limits(options: Mapping[str, float | None], sizes: Mapping[str, object]) -> Limits:
    """Return the limits, each a positive number. Raises ``InputError``."""
    wrong = [f"{name} {value:g}: a positive number is needed" for name, value in options.items()
             if value is not None and not 0 < value < math.inf]  # fmt: skip
    wrong += [f"{name} is for predictions of one size; with --max-loss leave it out" for name, value in sizes.items()
              if value is not None]  # fmt: skip
    loss = options["--max-loss"]
    if loss is None:
        wrong.append("--max-bytes and --max-latency need --max-loss: the loss in nats that the model has to reach")
    if wrong or loss is None:
        raise InputError(wrong)
    return Limits(loss, options["--max-bytes"], options["--max-latency"])


def comparable_points(path: Path, where: str | None) -> pd.DataFrame:
    """Return the points of all studies in a results folder that match an expression.

    Raises ``InputError`` when there is none, or when they have different families or held-out samples.
    """
    if not is_results(path):
        raise InputError([f"{path}: --max-loss needs the trials of a results folder"])
    results = read_results(path)
    planned = of_plans(results).frame
    if len(results.frame) > len(planned):
        warn(left_out_line(len(results.frame) - len(planned)))
    rows = select_rows(path, planned, where)
    studies = [StudyAnalysis(name, definition, part) for name, definition in results.studies.items()
               if len(part := rows[rows["study"] == name])]  # fmt: skip
    points = tradeoff_points(studies)
    if points.empty:
        selected = f" that --where {where!r} selects" if where else ""
        raise InputError([f"{path}: no trial{selected} ended ok with a validation loss"])
    if points["held_out"].nunique() > 1:
        raise InputError([f"{path}: these trials are not comparable: {_differences(rows)}"])
    return points


def _differences(rows: pd.DataFrame) -> str:
    """Return in which of ``HELD_OUT`` trials differ, with the values, and how to choose one."""
    values = {name: sorted(rows[name].dropna().unique()) for name in HELD_OUT if name in rows}
    values = {name: each for name, each in values.items() if len(each) > 1}
    if "source" in values:
        values.pop("data_sha256", None)  # the same difference, in 64 digits
    differences = "; ".join(f"{name} is {', '.join(map(str, each))}" for name, each in values.items())
    name = next(iter(values))
    value = json.dumps(values[name][-1])
    return f"{differences}; choose with --where, such as --where '{name} == {value}'"


def print_cheapest(answer: Cheapest, points: pd.DataFrame) -> None:
    """Print the candidates, where each comes from, and the reasons why there are no others."""
    say(f"fewest FLOPs with {_limits_text(answer.limits)}", "")
    if answer.candidates:
        table("", HEADER, [_row(candidate) for candidate in answer.candidates], text_columns=2)
        say("", *_notes(answer, points))
    if answer.refused:
        say(*[""] * bool(answer.candidates))
        alike: dict[tuple[str, str], list[str]] = {}
        for refusal in answer.refused:
            alike.setdefault((refusal.basis, refusal.reason), []).append(refusal.models)
        for (basis, reason), kinds in alike.items():
            more = f" and {len(kinds) - NAMED} more" if len(kinds) > NAMED else ""
            subject = "" if basis == MEASURED else f"{'; '.join(kinds[:NAMED])}{more}: "
            say(f"none {basis}: {subject}{reason}")


def _limits_text(limits: Limits) -> str:
    parts = [f"a loss of at most {limits.loss:g} nats"]
    parts += [f"{quantity(limits.bytes, 'B')} of weights"] * (limits.bytes is not None)
    parts += [f"{quantity(limits.latency, 's')} per forward pass"] * (limits.latency is not None)
    return ", ".join(parts)


def _row(candidate: Candidate) -> tuple[str, ...]:
    model = f"{quantity(candidate.size)}, {' '.join(filter(None, (candidate.study, candidate.settings)))}"
    cells = [_estimate(getattr(candidate, name), "" if unit == "nats" else unit) for name, unit in QUANTITIES]
    return candidate.basis, model, *cells


def _estimate(estimate: Estimate, unit: str) -> str:
    if math.isnan(estimate.low):
        return quantity(estimate.value, unit)
    value, interval = bounded(estimate.value, estimate.low, estimate.high, unit)
    return f"{value} ({interval})"


def _notes(answer: Cheapest, points: pd.DataFrame) -> Iterator[str]:
    known = by_weights(points)
    ids = {row["trial_id"]: row for row in points.to_dict("records")}
    for candidate in answer.candidates:
        name = f"{candidate.basis}, {quantity(candidate.size)}"
        if candidate.basis == PREDICTED:
            reach = (
                "inside the measured sizes"
                if candidate.beyond == 1
                else f"×{significant(candidate.beyond)} beyond them"
            )
            note = f"{name}: no trial has this size; by the laws of its kind of model, {reach}"
        else:
            first, *others = candidate.trials
            more = f", and {number_of(len(others), 'other seed')}" if others else "; one seed, whose noise is unknown"
            note = f"{name}: {chain(ids[first], known)}{more}"
        beyond = candidate.loss.high > answer.limits.loss
        yield note + f"; its loss interval goes beyond {answer.limits.loss:g} nats" * beyond
